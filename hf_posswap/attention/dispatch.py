"""Entry point of attention: selects the first path of a backend that can compute a call."""

from torch import Tensor

from hf_posswap.attention.inputs import AttentionInputs, Mix
from hf_posswap.attention.paths import PATHS, Call, Natively, Path, first_path
from hf_posswap.common.biases import Bias, LinearBias
from hf_posswap.common.summed_bias import SummedBias
from hf_posswap.errors import BackendError

BACKENDS = tuple(PATHS)
FLASH = "flash_attention"
"""Prefix of transformers' names of flash attention backends; kernels from the Hub have other names."""


def attend(
    inputs: AttentionInputs, bias: Bias | None, mix: Mix | None, backend: str, natively: Natively | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the context (B, H, Lq, D) of attention and its weights (B, H, Lq, Lk); only eager returns weights.

    Args:
        inputs: the attention call.
        bias: bias that is added to the scaled scores, or None.
        mix: function whose result is added to the context, or None.
        backend: one of `BACKENDS`, or another version of flash attention.
        natively: the stock attention function; flash attention calls it.

    Raises:
        BackendError: the backend is unknown or cannot compute the call; the message names the backends that can.
    """
    call = Call(inputs, bias, mix, natively)
    return path_of_call(call, backend).run(call)


def explain_path(inputs: AttentionInputs, bias: Bias | None, mix: Mix | None, backend: str, device: str) -> str:
    """Return a description of the path that a call takes, for `describe`; compute nothing.

    Args:
        inputs: an example of the attention calls to describe.
        bias: see `attend`.
        mix: see `attend`.
        backend: see `attend`.
        device: type of the device that will compute the calls, such as "cuda".

    Raises:
        BackendError: the backend cannot compute the call.
    """
    call = Call(inputs, bias, mix, meant_for=device)
    if call.changes_nothing:
        return f"{backend}, exactly as in the stock model"
    return path_of_call(call, backend).words.format(backend=backend)


def path_of_call(call: Call, backend: str) -> Path:
    """Return the path that a call takes.

    Raises:
        BackendError: the backend has no path for the call. The bias is never left out silently.
    """
    name = "flash_attention_2" if backend.startswith(FLASH) else backend
    path = first_path(PATHS.get(name, ()), call)
    if path is None:
        works = ", ".join(name for name, paths in PATHS.items() if first_path(paths, call) is not None)
        raise BackendError(
            f"backend {backend!r} cannot carry {_carried(call)}. Backends that work: {works}. "
            'Choose one with attn_implementation="sdpa" or model.set_attn_implementation("sdpa").'
        )
    return path


def _carried(call: Call) -> str:
    """Return a description of what a backend must support for this call, for the error message."""
    if call.mix is not None:
        return "a scheme with a value side, which reads the attention weights"
    if call.inputs.reshapes_scores:
        return "a bias beside a softcap or attention sinks"
    if isinstance(call.bias, LinearBias | SummedBias) and call.learns_bias:
        what = "slopes" if isinstance(call.bias, LinearBias) else "steps"
        return f"the gradient of a bias's {what}, which half precision would lose"
    return f"a bias on the scores ({type(call.bias).__name__})"
