"""The settings of `evaluate`, which are checked against the model before any long computation."""

import copy
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModel

from hf_posswap.architectures import architecture_of
from hf_posswap.evaluation.collection import MOST_DOCUMENTS
from hf_posswap.evaluation.document_retrieval import POOLINGS
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.passkey_retrieval import DEPTHS, TRIALS
from hf_posswap.evaluation.positions import BINS
from hf_posswap.evaluation.windows import check_lengths
from hf_posswap.loading.entry import is_healed
from hf_posswap.results.kinds import STAGES, SWAPPED_STAGES
from hf_posswap.results.records import stage_of
from hf_posswap.schemes import parse_scheme, scheme_text
from hf_posswap.swapped.plan import core_of
from hf_posswap.texts.files import checked_split

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CAUSAL = ("loss", "positions", "passkey")
ENCODER = ("masked", "retrieval")
MEASUREMENTS = (*CAUSAL, *ENCODER)
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The settings of an evaluation.

    Attributes:
        model: a folder, a Hub name, a GGUF file or a `demo:` name; stock or swapped.
        texts: files or `demo:` names.
        lengths: context lengths in tokens.
        pos_scheme: a scheme to swap in first.
        measurements: names in `MEASUREMENTS`; empty: all that the model supports.
        stage: the model's stage, one of `STAGES`; None: by its config and the records in its folder.
        tokens: approximate number of tokens to read for each length and protocol.
        seed: seed of all random numbers.
        dtype: dtype of the model.
        device: the device; None: CUDA if it is available.
        bins: number of bins in loss by position.
        depths: depths of pass keys, from 0 to 1.
        trials: pass keys for each depth and length.
        documents: how texts are split into documents, see `hf_posswap.texts.files.read_files`.
        most_documents: maximum number of documents to retrieve from.
        document_tokens: tokens of a document; None: the longest length.
        pooling: "mean" or "first": the pooling that gives a text's embedding.

    Raises (on construction):
        EvaluationError: a value that is not allowed; the message gives the allowed ones.
        PosSwapError: an unknown scheme or an invalid option of it.
    """

    model: str
    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    pos_scheme: str | None = None
    measurements: tuple[str, ...] = ()
    stage: str | None = None
    tokens: int = 8192
    seed: int = 0
    dtype: str = "float32"
    device: str | None = None
    bins: int = BINS
    depths: tuple[float, ...] = DEPTHS
    trials: int = TRIALS
    documents: str | None = None
    most_documents: int = MOST_DOCUMENTS
    document_tokens: int | None = None
    pooling: str = "mean"

    def __post_init__(self) -> None:
        if not self.texts:
            raise EvaluationError("no text given. Give a UTF-8 text file or demo:books.")
        object.__setattr__(self, "lengths", tuple(check_lengths(self.lengths)))
        _require_allowed("dtype", self.dtype, DTYPES)
        _require_allowed("pooling", self.pooling, POOLINGS)
        if self.stage is not None:
            _require_allowed("stage", self.stage, STAGES)
        for name in self.measurements:
            _require_allowed("measurement", name, MEASUREMENTS)
        if self.tokens < 1:
            raise EvaluationError(f"the budget is {self.tokens} tokens. Give at least 1.")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise EvaluationError(f"the seed is {self.seed}. Give one from 0 to {LARGEST_SEED}.")
        checked_split(self.documents)
        if self.most_documents < 1:
            raise EvaluationError(f"the number of documents is {self.most_documents}. Give at least 1.")
        if self.bins < 1:
            raise EvaluationError(f"the number of bins is {self.bins}. Give at least 1.")
        if self.pos_scheme is not None:
            parse_scheme(self.pos_scheme)


LARGEST_SEED = 2**31 - 1
"""The default seed of healing, so that a whole experiment has one seed."""


def completed(settings: EvaluationSettings, config: "PretrainedConfig") -> EvaluationSettings:
    """Fill in the measurements and the stage, if they are open, by the model's configuration.

    Raises:
        EvaluationError: the model does not support a measurement; the message gives those that it supports.
        UnsupportedError: the architecture is not supported.
    """
    fitting: tuple[str, ...] = CAUSAL
    if not architecture_of(config).is_causal(config):
        fitting = tuple(name for name in ENCODER if name != "masked" or has_masked_head(config))
    for name in settings.measurements:
        if name not in fitting:
            raise EvaluationError(f"{_misfit(name, settings.model)} Measurements for it: {', '.join(fitting)}.")
    swapped = settings.pos_scheme is not None or getattr(config, "pos_scheme", None) is not None
    if not swapped and settings.stage in SWAPPED_STAGES:
        raise EvaluationError(
            f"stage {settings.stage!r} says what was done to a swapped model, and {settings.model!r} is stock. Leave "
            "it out, or give --pos-scheme."
        )
    if is_healed(config) and settings.stage in ("swapped", "calibrated"):
        raise EvaluationError(
            f"stage {settings.stage!r} is not that of {settings.model!r}: its config says that it was healed. Leave "
            "--stage out."
        )
    found = {
        "measurements": settings.measurements or fitting,
        "stage": settings.stage or ("swapped" if settings.pos_scheme else stage_of(config, settings.model)),
    }
    return EvaluationSettings(**asdict(settings) | found)


def chosen_device(name: str | None) -> torch.device:
    """Return the device to compute on: the named one, or CUDA if it is available.

    Raises:
        EvaluationError: the device is unknown to torch, is not available, or cannot compute.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    way_out = "Give cpu, or cuda where there is a GPU."
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, ImportError) as error:
        # Keep the first sentence: for a device that torch was not built for, pages about its kernels follow.
        reason = re.split(r"\.\s", str(error), maxsplit=1)[0].rstrip(".")
        raise EvaluationError(f"device {name!r} cannot be used: {reason}. {way_out}") from error
    if device.type == "meta":
        raise EvaluationError(f"device {name!r} holds no numbers, so there is nothing to measure. {way_out}")
    return device


def has_masked_head(config: "PretrainedConfig") -> bool:
    """Return whether a model's checkpoint has a masked language modelling head."""
    return re.search("MaskedLM|PreTraining", str(getattr(config, "architectures", None))) is not None


def scheme_label(settings: EvaluationSettings, config: "PretrainedConfig") -> str:
    """Return the specification of the measured model's scheme, such as "rope:yarn", or "stock"."""
    if settings.pos_scheme is not None:
        return settings.pos_scheme
    entry: dict[str, Any] | None = getattr(config, "pos_scheme", None)
    if entry is None:
        return "stock"
    with torch.device("meta"):
        base = AutoModel.from_config(copy.deepcopy(config))
    core = core_of(base)
    return scheme_text(core.pos_scheme.config, architecture_of(config).facts(core))


def _require_allowed(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise EvaluationError(f"unknown {what} {value!r}. Allowed: {', '.join(allowed)}.")


def _misfit(name: str, model: str) -> str:
    if name in CAUSAL:
        return f"measurement {name!r} is for causal language models, and {model!r} reads in both directions."
    if name == "masked":
        return f"measurement 'masked' needs a masked language model, and {model!r} has no such head."
    return f"measurement {name!r} is for encoders, and {model!r} is a causal language model."
