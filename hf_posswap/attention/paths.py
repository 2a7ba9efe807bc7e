"""All ways to compute attention with a bias: an ordered list of paths per backend.

`attend` takes the first path that can compute the call. `describe` names the path for a text without padding.
docs/speed.md has the measurements behind the order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hf_posswap.attention.cpu import strided
from hf_posswap.attention.cpu.banded import banded_attention, can_band
from hf_posswap.attention.cpu.learned import learned_relative_attention
from hf_posswap.attention.cpu.learned_masked import learned_attention_in_segments
from hf_posswap.attention.cpu.learned_traced import traced_relative_attention
from hf_posswap.attention.eager import eager_attention
from hf_posswap.attention.flex import FLEX_BIASES, flex_bias_attention
from hf_posswap.attention.folding import can_fold, fold_linear, fold_separable, fold_summed
from hf_posswap.attention.inputs import AttentionInputs, Mix, in_float32
from hf_posswap.attention.sdpa import (
    blockwise_attention,
    mixed_attention,
    plain_attention,
    relative_attention,
    single_query_attention,
)
from hf_posswap.attention.visibility import Segment, visible_segments
from hf_posswap.common.biases import Bias, LinearBias, RelativeBias, SeparableBias
from hf_posswap.common.chosen_scores import ChosenScores
from hf_posswap.common.content_biases import ClippedContentBias, RelativeContentBias
from hf_posswap.common.summed_bias import SummedBias

Output = tuple[Tensor, Tensor | None]
"""Context (B, H, Lq, D), and weights (B, H, Lq, Lk) or None."""
Natively = Callable[[AttentionInputs], Output]
"""Runs the stock attention function; returns context (B, Lq, H, D), and weights or None."""


class Call(NamedTuple):
    """One attention call with the scheme's bias and value side.

    Attributes:
        inputs: q, k, v, mask and so on.
        bias: bias that is added to the scaled scores; None: no bias.
        mix: function whose result is added to the context (the value side); None: no value side.
        natively: the stock attention function; only flash attention calls it.
        meant_for: type of the device that will compute the call, such as "cuda"; None: the device of the inputs.
    """

    inputs: AttentionInputs
    bias: Bias | None
    mix: Mix | None
    natively: Natively | None = None
    meant_for: str | None = None

    @property
    def device(self) -> str:
        """Type of the device that computes the call."""
        return self.meant_for or self.inputs.q.device.type

    @property
    def changes_nothing(self) -> bool:
        """Whether there is neither a bias nor a value side."""
        return self.bias is None and self.mix is None

    @property
    def relative(self) -> RelativeBias | None:
        """The bias as a `RelativeBias`; None if it is another kind of bias."""
        bias = self.bias.as_relative() if isinstance(self.bias, LinearBias) else self.bias
        return bias if isinstance(bias, RelativeBias) else None

    @property
    def reads_scores(self) -> bool:
        """Whether the bias depends on the scores, so that they must be written out."""
        return self.bias is not None and self.bias.reads_scores

    @property
    def learns_bias(self) -> bool:
        """Whether the slopes, the values by distance, or the steps and factors need a gradient."""
        bias = self.bias
        if isinstance(bias, SummedBias):
            return _needs_gradient(bias.steps) or (bias.factors is not None and _needs_gradient(bias.factors))
        return isinstance(bias, LinearBias | RelativeBias) and _needs_gradient(
            bias.slopes if isinstance(bias, LinearBias) else bias.values
        )

    @property
    def by_distance(self) -> bool:
        """Whether the bias has one value per head and distance."""
        return isinstance(self.bias, LinearBias | RelativeBias)

    @property
    def takes_cpu_kernels(self) -> bool:
        """Whether torch's CPU kernels can be called directly; while a graph is traced, torch's wrapper is called."""
        same_width = self.inputs.q.shape[-1] == self.inputs.v.shape[-1]
        return self.device == "cpu" and self.inputs.dropout == 0 and same_width and not torch.compiler.is_compiling()

    def segments(self) -> list[Segment] | None:
        """Return the keys that each query sees, as segments, or None if the mask has another form."""
        return visible_segments(self.inputs)


@dataclass(frozen=True)
class Path:
    """One way to compute attention.

    Attributes:
        can: returns whether the path can compute a call.
        run: computes a call.
        words: description of the path for `describe`.
    """

    can: Callable[[Call], bool]
    run: Callable[[Call], Output]
    words: str


def first_path(paths: Sequence[Path], call: Call) -> Path | None:
    """Return the first path that can compute a call, or None."""
    for path in paths:
        if path.can(call):
            return path
    return None


def _needs_gradient(tensor: Tensor) -> bool:
    return torch.is_grad_enabled() and tensor.requires_grad


def _given(run: Callable[[AttentionInputs, RelativeBias], Tensor]) -> Callable[[Call], Output]:
    """Return a function that calls `run` with the inputs and the relative bias of a call."""

    def run_call(call: Call) -> Output:
        bias = call.relative
        assert bias is not None
        return run(call.inputs, bias), None

    return run_call


def _cut(context: Tensor, call: Call) -> Tensor:
    """Return a context without the extra channels, which add the bias."""
    return context[..., : call.inputs.v.shape[-1]]


# Paths that fold the bias into extra channels of q and k, for kernels that do not support a bias.


def _can_fold_linear(call: Call) -> bool:
    # Slopes that need a gradient are not folded. Their gradient would be Σ_j dS_ij·j with dS rounded to half precision;
    # with 2048 keys its error can be half of its size or more.
    if not isinstance(call.bias, LinearBias) or call.mix is not None or call.inputs.reshapes_scores:
        return False
    return can_fold(call.bias, call.inputs.q.dtype) and not call.learns_bias


def _can_fold_separable(call: Call) -> bool:
    return isinstance(call.bias, SeparableBias) and call.mix is None and not call.inputs.reshapes_scores


def _can_fold_summed(call: Call) -> bool:
    """Return whether channels can add a summed bias; in half precision its gradient needs wider channels."""
    bias, inputs = call.bias, call.inputs
    if not isinstance(bias, SummedBias) or call.mix is not None or inputs.reshapes_scores or not inputs.causal:
        return False
    # A mask whose queries see keys without gaps hides no token between a query and a key that it sees.
    return not bias.reads_mask or (not torch.compiler.is_compiling() and call.segments() is not None)


def folded(call: Call) -> AttentionInputs:
    """Return the inputs of a call without the bias and with extra channels in q and k that add the bias."""
    if isinstance(call.bias, LinearBias):
        return fold_linear(call.inputs, call.bias)
    if isinstance(call.bias, SummedBias):
        return fold_summed(call.inputs, call.bias)
    assert isinstance(call.bias, SeparableBias)
    return fold_separable(call.inputs, call.bias)


def _flash(call: Call) -> Output:
    assert call.natively is not None
    context, weights = call.natively(folded(call))
    return _cut(context, call).transpose(1, 2), weights


def _folded_sdpa(call: Call) -> Output:
    return _cut(plain_attention(folded(call)), call), None


def _learned_summed(call: Call) -> Output:
    """Fold a summed bias that learns: in float32, because half precision would round its gradient."""
    dtype = call.inputs.q.dtype
    wide = call._replace(inputs=in_float32(call.inputs)) if dtype.itemsize == 2 else call
    return _cut(plain_attention(folded(wide)), call).to(dtype), None


# The path that computes near keys as a band, and all other keys in a separate kernel call. It adds value vectors if the
# bias has them.


def _can_band(call: Call) -> bool:
    bias = call.bias
    if not isinstance(bias, ClippedContentBias) or call.inputs.reshapes_scores or call.inputs.query_length == 1:
        return False
    if (call.mix is None) is not (bias.value_table is None) or not call.takes_cpu_kernels:
        return False
    segments = call.segments()
    return segments is not None and can_band(bias, segments)


def _band(call: Call) -> Output:
    segments = call.segments()
    assert isinstance(call.bias, ClippedContentBias)
    assert segments is not None
    return banded_attention(call.inputs, call.bias, segments), None


# Paths for a bias with one value per head and distance: the bias is a strided view of a vector.


def _view(call: Call) -> Output:
    bias, segments = call.relative, call.segments()
    assert bias is not None
    assert segments is not None
    return strided.relative_attention(call.inputs, bias, segments), None


def _learned_masked(call: Call) -> Output:
    bias, segments = call.relative, call.segments()
    assert bias is not None
    assert segments is not None
    return learned_attention_in_segments(call.inputs, bias, segments), None


def _can_stride_content(call: Call) -> bool:
    bias, inputs = call.bias, call.inputs
    if not isinstance(bias, RelativeContentBias) or not call.takes_cpu_kernels or inputs.mask is not None:
        return False
    given = (bias.query, bias.table, inputs.k, inputs.v, *([] if bias.shift is None else [bias.shift]))
    return not any(map(_needs_gradient, given))


def _content(call: Call) -> Output:
    assert isinstance(call.bias, RelativeContentBias)
    return strided.content_attention(call.inputs, call.bias), None


def _blockwise(call: Call) -> Output:
    bias = call.relative or call.bias
    assert bias is not None
    return blockwise_attention(call.inputs, bias), None


def _written_out(call: Call) -> Output:
    if isinstance(call.bias, ChosenScores) and call.bias.changes_nothing:
        call = call._replace(bias=None)
    if call.changes_nothing and not call.inputs.reshapes_scores:  # a text in which all scores stay as given
        return plain_attention(call.inputs), None
    return mixed_attention(*call[:3]), None


def _can_take_row(call: Call) -> bool:
    plain = call.mix is None and not call.inputs.reshapes_scores and not call.reads_scores
    return plain and call.inputs.query_length == 1


def _single_query(call: Call) -> Output:
    assert call.bias is not None
    return single_query_attention(call.inputs, call.bias), None


EAGER = (Path(lambda call: True, lambda call: eager_attention(*call[:3]), "eager, scores written out"),)

FLEX = (
    Path(
        lambda call: call.mix is None and isinstance(call.bias, FLEX_BIASES),
        lambda call: (flex_bias_attention(call.inputs, call.bias), None),  # type: ignore[arg-type]  # it is not None
        "flex_attention, the bias as a score_mod",
    ),
)

FLASH = (
    Path(
        lambda call: _can_fold_summed(call) and not (call.learns_bias and call.inputs.q.dtype.itemsize == 2),
        _flash,
        "{backend}, the bias folded into extra channels",
    ),
    Path(_can_fold_linear, _flash, "{backend}, the bias folded into extra channels"),
    Path(_can_fold_separable, _flash, "{backend}, the bias folded into extra channels"),
)

SDPA = (
    Path(
        lambda call: call.changes_nothing and not call.inputs.reshapes_scores,
        lambda call: (plain_attention(call.inputs), None),
        "sdpa, without a bias",
    ),
    Path(_can_take_row, _single_query, "sdpa, the bias as one row"),
    Path(_can_band, _band, "sdpa, near keys as a band beside plain attention"),
    Path(
        lambda call: call.mix is not None or call.inputs.reshapes_scores or call.reads_scores,
        _written_out,
        "blocks of queries written out, because the bias, the value side, a softcap or sinks read the scores",
    ),
    # On a CPU the strided view is as fast, is exact, and needs no extra channels.
    Path(
        lambda call: call.device == "cuda" and call.inputs.q.dtype.itemsize == 2 and _can_fold_linear(call),
        _folded_sdpa,
        "sdpa, the bias folded into extra channels",
    ),
    Path(
        lambda call: call.device == "cuda" and _can_fold_separable(call),
        _folded_sdpa,
        "sdpa, the bias folded into extra channels",
    ),
    Path(
        lambda call: (
            _can_fold_summed(call)
            and call.learns_bias
            and call.device == "cuda"
            and call.inputs.q.dtype.itemsize == 2
            and call.inputs.dropout == 0
        ),
        lambda call: (flex_bias_attention(call.inputs, call.bias), None),  # type: ignore[arg-type]  # it is not None
        "sdpa, the bias as a FlexAttention score_mod, which learns",
    ),
    Path(
        lambda call: _can_fold_summed(call) and not call.learns_bias,
        _folded_sdpa,
        "sdpa, the bias folded into extra channels",
    ),
    Path(_can_fold_summed, _learned_summed, "sdpa, the bias folded into extra channels, which learn"),
    Path(
        lambda call: call.device == "cuda" and call.by_distance and call.inputs.dropout == 0,
        _given(flex_bias_attention),
        "sdpa, the bias as a FlexAttention score_mod",
    ),
    Path(
        lambda call: (
            call.by_distance and call.takes_cpu_kernels and not call.learns_bias and call.segments() is not None
        ),
        _view,
        "sdpa, the bias as a strided view of one vector per head",
    ),
    Path(
        lambda call: call.by_distance and call.takes_cpu_kernels and call.inputs.mask is None,
        _given(learned_relative_attention),
        "sdpa, the bias as a strided view of one vector per head, which learns",
    ),
    Path(
        lambda call: call.by_distance and call.takes_cpu_kernels and call.learns_bias and call.segments() is not None,
        _learned_masked,
        "sdpa, the bias as a strided view of one vector per head and mask segment, which learns",
    ),
    Path(_can_stride_content, _content, "sdpa, a block of queries' products with all distances as a strided view"),
    # Paths for calls in which the CPU kernels cannot be called directly.
    Path(
        lambda call: call.by_distance and call.inputs.mask is None and not call.learns_bias,
        _given(relative_attention),
        "sdpa, the bias as a strided view of one vector per head, through torch's wrapper",
    ),
    Path(
        lambda call: (
            call.by_distance and call.inputs.mask is None and call.device == "cpu" and call.inputs.dropout == 0
        ),
        _given(traced_relative_attention),
        "sdpa, the bias as an operator of its own, which learns",
    ),
    Path(lambda call: True, _blockwise, "sdpa, the bias made for one block of queries at a time"),
)

PATHS: dict[str, tuple[Path, ...]] = {
    "eager": EAGER,
    "sdpa": SDPA,
    "flex_attention": FLEX,
    "flash_attention_2": FLASH,
}
"""The paths of each backend, in the order in which they are tried."""
