"""Finds everything that cannot work before anything long starts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_posswap.comparison.settings import STOCK, Settings
from hf_posswap.demo import TextSource, load_config, load_tokenizer, resolve_texts
from hf_posswap.errors import UnsupportedError
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.perplexity import PROTOCOLS, planned_tokens
from hf_posswap.evaluation.windows import check_lengths
from hf_posswap.schemes import parse_scheme

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Refusal:
    """A scheme that this model cannot take, and why."""

    scheme: str
    reason: str


@dataclass(frozen=True)
class Prepared:
    """Everything `run` needs; nothing in it has taken long.

    Attributes:
        settings: as given, with lengths in ascending order.
        config: the model's configuration.
        texts: the texts and their token ids, int64 (n,).
        refusals: schemes that become rows without a loss.
        tokens_per_scheme: how many tokens will be read for each scheme.
    """

    settings: Settings
    config: "PretrainedConfig"
    texts: tuple[tuple[TextSource, "Tensor"], ...]
    refusals: tuple[Refusal, ...]
    tokens_per_scheme: int

    @property
    def to_measure(self) -> list[str]:
        """Stock and every scheme that is not refused, in the order asked for."""
        refused = {refusal.scheme for refusal in self.refusals}
        return [STOCK, *(scheme for scheme in self.settings.schemes if scheme not in refused)]


def prepare(settings: Settings) -> Prepared:
    """Check the settings against the model and the texts, and tokenise the texts.

    Raises:
        PosSwapError: an unknown scheme or model, a model that is swapped, is an encoder or is not supported, a text
            that is missing or too short, or schemes of which this model can take none.
    """
    settings = _normalised(settings)
    configs = {scheme: parse_scheme(scheme) for scheme in settings.schemes}
    sources = [source for name in settings.texts for source in resolve_texts(name)]
    raw_texts = [source.read() for source in sources]
    config = load_config(settings.model)
    if getattr(config, "pos_scheme", None) is not None:
        raise EvaluationError(
            f"model {settings.model!r} is swapped already ({config.pos_scheme!r}), so there is no stock model to "
            "compare with. Give the model it was made from."
        )
    refusals = _refusals(settings, config, {spec: scheme.name for spec, scheme in configs.items()})
    tokenizer = load_tokenizer(settings.model)
    texts = tuple((source, _tokenise(tokenizer, text)) for source, text in zip(sources, raw_texts, strict=True))
    counts = [len(ids) for _, ids in texts]
    tokens = sum(planned_tokens(counts, settings.lengths, protocol, settings.tokens) for protocol in PROTOCOLS)
    return Prepared(settings, config, texts, refusals, tokens)


def _normalised(settings: Settings) -> Settings:
    """Put the lengths in order and refuse what no model could be measured with."""
    if not settings.texts:
        raise EvaluationError("no text given. Give a UTF-8 text file or demo:books.")
    if settings.tokens < 1:
        raise EvaluationError(f"the budget is {settings.tokens} tokens. Give at least 1.")
    for scheme in settings.schemes:
        if settings.schemes.count(scheme) > 1:
            raise EvaluationError(f"scheme {scheme!r} is given twice.")
    return Settings(**{**vars(settings), "lengths": tuple(check_lengths(settings.lengths))})


def _refusals(settings: Settings, config: "PretrainedConfig", names: dict[str, str]) -> tuple[Refusal, ...]:
    """Look up each scheme's cell of the capability table."""
    import hf_posswap

    architecture = config.model_type
    supported = hf_posswap.list_architectures()
    if architecture not in supported:
        raise UnsupportedError(
            f"architecture {architecture!r} of model {settings.model!r} is not supported. "
            f"Allowed: {', '.join(supported)}."
        )
    cells = [cell for cell in hf_posswap.capabilities() if cell.architecture == architecture]
    if any(cell.mode == "encoder" for cell in cells) and not getattr(config, "is_decoder", False):
        raise EvaluationError(
            f"model {settings.model!r} is an encoder ({architecture}): it sees the tokens it would be asked to "
            "predict. Compare measures causal language models, such as demo:gpt2 or demo:llama."
        )
    reasons = {
        cell.scheme: cell.reason or "not supported" for cell in cells if cell.mode == "causal" and not cell.supported
    }
    refusals = tuple(Refusal(spec, reasons[name]) for spec, name in names.items() if name in reasons)
    if names and len(refusals) == len(names):
        listed = "\n".join(f"  {refusal.scheme}: {refusal.reason}" for refusal in refusals)
        raise UnsupportedError(f"model {settings.model!r} can take none of the schemes:\n{listed}")
    return refusals


def _tokenise(tokenizer: Any, text: str) -> "Tensor":
    """Return the token ids of a text, int64 (n,), without special tokens: windows start in the middle of the text."""
    import torch

    # verbose=False: a text longer than the model's limit is the point, and needs no warning.
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)
