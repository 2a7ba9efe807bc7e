"""Comparing schemes on one model: the same text and lengths for the stock model and for each scheme swapped in.

`prepare` finds everything that cannot work before anything long starts; `run` loads the model once for each scheme,
swaps and measures.
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hf_posswap.demo import TextSource, load_config, load_model, load_tokenizer, resolve_texts
from hf_posswap.errors import PosSwapError, UnsupportedError
from hf_posswap.evaluation.environment import collect_environment
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.perplexity import PROTOCOLS, LengthRow, gap_row, perplexity_rows, planned_tokens
from hf_posswap.evaluation.windows import check_lengths
from hf_posswap.schemes import parse_scheme

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

FORMAT_VERSION = 1
STOCK = "stock"


@dataclass(frozen=True)
class Settings:
    """What to compare.

    Attributes:
        model: a folder, a Hub name, a GGUF file or a `demo:` name.
        schemes: scheme specifications such as "alibi" or "rope:yarn:factor=4".
        texts: files or `demo:` names.
        lengths: tokens to read at once.
        tokens: about how many tokens are read for each length, protocol and scheme.
        seed: of the bootstrap and of anything a scheme draws at random.
        dtype: in which the model computes.
        device: on which it computes, such as "cpu" or "cuda"; None picks CUDA where there is one.
    """

    model: str
    schemes: tuple[str, ...]
    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    tokens: int = 8192
    seed: int = 0
    dtype: str = "float32"
    device: str | None = None


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


class Observer:
    """Told what `run` is doing; does nothing. Override what is of interest."""

    def stage(self, scheme: str, stage: str) -> None:
        """Called when `scheme` starts "loading", or measuring with a protocol."""

    def tokens(self, count: int) -> None:
        """Called when `count` more tokens have been read."""

    def scheme_done(self, scheme: str, rows: Sequence[dict[str, Any]]) -> None:
        """Called with all rows of a scheme."""


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


def run(prepared: Prepared, observer: Observer | None = None) -> dict[str, Any]:
    """Measure stock and each scheme, and return the content of compare.json.

    A scheme whose swap is refused only once the model is there becomes rows without a loss, which say why.
    """
    observer = observer or Observer()
    settings = prepared.settings
    reasons = {refusal.scheme: refusal.reason for refusal in prepared.refusals}
    rows: list[dict[str, Any]] = []
    train_length = None
    for scheme in (STOCK, *settings.schemes):
        if scheme in reasons:
            measured = _gap_rows(settings, reasons[scheme])
        else:
            measured, train_length = _measure_scheme(prepared, scheme, observer)
        labelled = [{"model": settings.model, "scheme": scheme, **asdict(row)} for row in measured]
        rows += labelled
        observer.scheme_done(scheme, labelled)
    return {
        "format_version": FORMAT_VERSION,
        "model": settings.model,
        "train_length": train_length,
        "seed": settings.seed,
        "settings": asdict(settings),
        "texts": [
            {"name": source.name, "tokens": len(ids), "sha256": _sha256(source)} for source, ids in prepared.texts
        ],
        "environment": collect_environment(),
        "rows": rows,
    }


def _measure_scheme(prepared: Prepared, scheme: str, observer: Observer) -> tuple[list[LengthRow], int]:
    """Load, swap and measure one scheme; return its rows and the stock model's train length."""
    import torch

    import hf_posswap

    settings = prepared.settings
    observer.stage(scheme, "loading")
    # A copy, for a swap changes the configuration of its model.
    model = load_model(
        settings.model, hf_posswap.AutoModelForCausalLM, config=copy.deepcopy(prepared.config), dtype=settings.dtype
    ).to(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    train_length = hf_posswap.train_length(model)
    if scheme != STOCK:
        torch.manual_seed(settings.seed)  # a scheme may start from random numbers
        try:
            hf_posswap.swap(model, parse_scheme(scheme))
        except PosSwapError as error:
            return _gap_rows(settings, str(error)), train_length
    rows: list[LengthRow] = []
    for protocol in PROTOCOLS:
        observer.stage(scheme, protocol)
        rows += perplexity_rows(
            model,
            [ids for _, ids in prepared.texts],
            settings.lengths,
            (protocol,),
            budget=settings.tokens,
            seed=settings.seed,
            progress=observer.tokens,
        )
    return rows, train_length


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


def _gap_rows(settings: Settings, reason: str) -> list[LengthRow]:
    return [gap_row(protocol, length, reason) for protocol in PROTOCOLS for length in settings.lengths]


def _sha256(source: TextSource) -> str:
    return hashlib.sha256(source.path.read_bytes()).hexdigest()
