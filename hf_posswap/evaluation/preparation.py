"""Checks the settings of `evaluate` against the model, before any long computation."""

import copy
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModel

from hf_posswap.architectures import architecture_of
from hf_posswap.evaluation.errors import EvaluationError, UnmeasurableError
from hf_posswap.evaluation.settings import CAUSAL, ENCODER, ONLY_NAMED, EvaluationSettings
from hf_posswap.loading.entry import is_healed
from hf_posswap.results.kinds import SWAPPED_STAGES
from hf_posswap.results.records import stage_of
from hf_posswap.schemes import scheme_text
from hf_posswap.swapped.plan import core_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def completed(settings: EvaluationSettings, config: "PretrainedConfig") -> EvaluationSettings:
    """Return the settings with measurements and stage; values that are not set follow from the model's configuration.

    Raises:
        EvaluationError: the model does not support a measurement, and the message lists the supported ones; or the
            stage or the stock model does not fit the model.
        UnsupportedError: the architecture is not supported.
    """
    fitting: tuple[str, ...] = CAUSAL
    if not architecture_of(config).is_causal(config):
        fitting = tuple(name for name in ENCODER if name != "masked" or has_masked_head(config))
    for name in settings.measurements:
        if name not in fitting:
            raise EvaluationError(f"{_misfit(name, settings.model)} Measurements for it: {', '.join(fitting)}.")
    swapped = settings.pos_scheme is not None or is_checkpoint(config)
    if not swapped and settings.stage in SWAPPED_STAGES:
        raise EvaluationError(
            f"stage {settings.stage!r} is for swapped models, and {settings.model!r} is stock. Leave "
            "it out, or give --pos-scheme."
        )
    if settings.stock is not None and not is_checkpoint(config):
        raise EvaluationError(
            f"--stock {settings.stock} is for a swapped checkpoint, and {settings.model!r} is none. Leave it out."
        )
    if is_healed(config) and settings.stage in ("swapped", "calibrated"):
        raise EvaluationError(
            f"stage {settings.stage!r} is not that of {settings.model!r}: its config says that it was healed. Leave "
            "--stage out."
        )
    stage = settings.stage or ("swapped" if settings.pos_scheme else stage_of(config, settings.model))
    usual = tuple(name for name in fitting if name not in ONLY_NAMED)
    if is_checkpoint(config) and settings.stock is None:
        usual = tuple(name for name in usual if name != "key-tokens")  # they could need a large download
    measured = settings.measurements or usual
    if "key-tokens" in measured:
        stock_name(settings, config)
    elif settings.stock is not None:
        raise EvaluationError(f"--stock {settings.stock} is for key-tokens, which is not measured. Leave it out.")
    return replace(settings, measurements=measured, stage=stage)


def is_checkpoint(config: "PretrainedConfig") -> bool:
    """Return whether a configuration is that of a swapped checkpoint."""
    return getattr(config, "pos_scheme", None) is not None


def stock_name(settings: EvaluationSettings, config: "PretrainedConfig") -> str:
    """Return the name of the stock model that chooses key tokens.

    Raises:
        UnmeasurableError: the settings do not name it, and a swapped checkpoint does not say what it was made from.
    """
    if not is_checkpoint(config):
        return settings.model
    name = settings.stock or config.pos_scheme.get("base_model")
    if not isinstance(name, str) or not name:
        raise UnmeasurableError(
            f"key tokens are chosen by the stock model, and {settings.model!r} does not say what it was made from. "
            "Name the stock model with --stock."
        )
    return name


def chosen_device(name: str | None) -> torch.device:
    """Return the device to compute on.

    Args:
        name: name of the device; None: CUDA if it is available, otherwise the CPU.

    Raises:
        EvaluationError: the device is unknown to torch, is not available, or cannot compute.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    way_out = "Give cpu, or cuda where there is a GPU."
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, ImportError) as error:
        # Keep the first sentence only: for a device that torch was not built for, a long list of kernels follows.
        reason = re.split(r"\.\s", str(error), maxsplit=1)[0].rstrip(".")
        raise EvaluationError(f"device {name!r} cannot be used: {reason}. {way_out}") from error
    if device.type == "meta":
        raise EvaluationError(f"device {name!r} holds no numbers, so there is nothing to measure. {way_out}")
    return device


def has_masked_head(config: "PretrainedConfig") -> bool:
    """Return whether a model's checkpoint has a head for masked language modelling."""
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


def _misfit(name: str, model: str) -> str:
    if name in CAUSAL:
        return f"measurement {name!r} is for causal language models, and {model!r} reads in both directions."
    if name == "masked":
        return f"measurement 'masked' needs a masked language model, and {model!r} has no such head."
    return f"measurement {name!r} is for encoders, and {model!r} is a causal language model."
