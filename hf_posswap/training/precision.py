"""The default precision of healing: bfloat16 on devices that have instructions for it, otherwise float32.

A CPU without instructions for bfloat16 converts each number: a step takes several times as long as in float32, and
saves no memory.
"""

import warnings

import torch

from hf_posswap.training.options import Precision

NAMES = {"no": "float32", "bf16": "bfloat16"}


class SlowPrecisionWarning(UserWarning):
    """Healing uses a precision that is slow on its device."""


def fast_precision(device: str) -> Precision:
    """Return "bf16" if a device, such as "cpu" or "cuda:1", has instructions for bfloat16, otherwise "no" (float32)."""
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if kind == "cpu" and torch.backends.mkldnn.is_available():
        return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no"
    return "no"


def slowness(precision: str, device: str) -> str | None:
    """Return a warning if the requested precision is slow on the device, otherwise None."""
    if precision != "bf16" or fast_precision(device) == "bf16":
        return None
    kind = torch.device(device).type
    return (
        f"precision 'bf16' computes in bfloat16, for which this {kind} has no instructions: a step takes several times "
        "as long as with 'no', which computes in float32."
    )


def choice_in_words(precision: Precision, device: str) -> str:
    """Return a description of the precision that was chosen for the device."""
    kind = torch.device(device).type
    if precision == "bf16":
        return f"Healing computes in bfloat16, at which this {kind} is fast; --precision no computes in float32."
    return f"Healing computes in float32: this {kind} has no instructions for bfloat16, --precision bf16."


def warn_if_slow(precision: Precision, device: str) -> None:
    """Issue the warning of `slowness`, if there is one."""
    text = slowness(precision, device)
    if text is not None:
        warnings.warn(text, SlowPrecisionWarning, stacklevel=3)
