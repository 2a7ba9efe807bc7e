"""Forwards of models on fake CUDA tensors: everything that torch checks without numbers, and what reads the device.

A fake tensor has a device, a dtype, a shape and strides, and no values. Every operator checks them as its kernel would
and computes those of its result, so that tensors on two devices, dtypes that do not fit and wrong shapes are errors.
This needs torch built for CUDA, and neither a GPU nor a driver.

What cannot be seen: numbers, memory, time, backward passes (torch's engine asks the driver for a context first), and
whether FlexAttention's Triton kernels compile. FlexAttention runs uncompiled here, and its score_mod and mask_mod are
computed for every pair.
"""

import copy
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from hf_posswap.attention import flex
from hf_posswap.common import positions
from hf_posswap.swapped import forward_positions
from hf_posswap.swapped.cache_view import cache_keyword

BATCH, PADDING = 2, 5
WORK = ("prefill", "padded", "decode", "training")
"""A text without and with padding, one further token as `generate` passes it, and a forward that is to learn."""
Answers = list[dict[str, int]]
PLACES = ("/hf_posswap/", "/transformers/")


@dataclass
class Seen:
    """What a forward did.

    Attributes:
        reads: places that read values from the device or copy them to the CPU: the CPU waits there.
        copies: places that copy to the device.
        output: what came out.
    """

    reads: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    output: Any = None


class Watch(TorchDispatchMode):
    """Notes reads of a device's values, and answers them, since fake tensors have none.

    Args:
        whole: the answer to a boolean: what is asked of a mask is whether it hides nothing.
        number: the answer to a number.
    """

    supports_higher_order_operators = True

    def __init__(self, whole: bool, number: int) -> None:
        super().__init__()
        self.seen, self.whole, self.number = Seen(), whole, number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            self.seen.reads.append(_place())
            return self.whole if args[0].dtype == torch.bool else self.number
        result = func(*args, **kwargs)
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            if source.device != result.device:
                (self.seen.reads if result.device.type == "cpu" else self.seen.copies).append(_place())
        return result


def _place() -> str:
    """Return the innermost lines of this package or of transformers, innermost first."""
    frames = [frame for frame in traceback.extract_stack() if any(place in frame.filename for place in PLACES)]
    return " < ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in reversed(frames[-3:]))


def fake_copy(model: Any, mode: FakeTensorMode, dtype: torch.dtype, device: str) -> Any:
    """Return a copy of a model on fake tensors of another device and dtype, as `model.to(device, dtype)` makes one.

    Only parameters and buffers are on the device: a tensor that a module holds in another way would stay on the CPU.
    """
    model = copy.deepcopy(model).to(dtype)
    made: dict[int, Any] = {}
    with mode:
        for tensor in (*model.parameters(), *model.buffers()):
            fake = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
            learns = tensor.requires_grad
            made[id(tensor)] = nn.Parameter(fake, learns) if isinstance(tensor, nn.Parameter) else fake
    return copy.deepcopy(model, made)


def forward(model: Any, work: str, length: int, device: str) -> Callable[[], Tensor]:
    """Return the forward of a kind of work; for a further token, the forward before it has been run."""
    tokens = torch.zeros(BATCH, length, dtype=torch.long, device=device)
    mask = torch.ones(BATCH, length, dtype=torch.long, device=device)
    mask[0, :PADDING] = 0
    arguments: dict[str, Any] = {"input_ids": tokens}
    if work == "training":
        model.train()
        arguments["labels"] = tokens
    elif work == "padded":
        arguments["attention_mask"] = mask
    elif work == "decode":
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        first = model(tokens[:, :-1], attention_mask=mask[:, :-1], position_ids=places[:, :-1], use_cache=True)
        name = cache_keyword(first)
        arguments = {"input_ids": tokens[:, -1:], "attention_mask": mask, "position_ids": places[:, -1:]}
        arguments |= {"use_cache": True, str(name): first[name]}
    return lambda: model(**arguments).logits  # type: ignore[no-any-return]  # the model is of any class


@contextmanager
def answered(read: Callable[..., dict[str, int]]) -> Iterator[None]:
    """Have `read` stand for the one function in which the package reads the device, within a `with` block."""
    kept = positions.read_together
    positions.read_together = forward_positions.read_together = read
    try:
        yield
    finally:
        positions.read_together = forward_positions.read_together = kept


@contextmanager
def uncompiled_flex_attention() -> Iterator[None]:
    """Have FlexAttention run uncompiled, and compute each score_mod for every pair, as its kernel would."""

    def checked(q: Tensor, k: Tensor, v: Tensor, *, score_mod: Any, **given: Any) -> Any:
        sizes = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        scores = create_mask(score_mod, *sizes, device=str(q.device))
        assert scores.device == q.device
        assert scores.shape == sizes
        with torch.no_grad():  # with gradients, torch runs a backward pass of the score_mod, which needs the driver
            return flex_attention(q, k, v, score_mod=score_mod, **given)

    kept = flex.compiled_flex_attention, flex._creator
    # mypy takes an assignment to a function for a mistake; here it is the point.
    flex.compiled_flex_attention, flex._creator = lambda: checked, lambda device: create_block_mask  # type: ignore[assignment]
    flex.causal_block_mask.cache_clear()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        flex.compiled_flex_attention, flex._creator = kept
        flex.causal_block_mask.cache_clear()


def answers_to(model: Any, work: str, length: int) -> Answers:
    """Return what the package reads from the device in some work, one entry for each read: measured on the CPU."""
    answers: Answers = []
    read_together = positions.read_together

    def recorded(facts: Any) -> dict[str, int]:
        answers.append(read_together(facts))
        return answers[-1]

    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    with answered(recorded), torch.set_grad_enabled(work == "training"):
        forward(model, work, length, "cpu")()
    return answers


def rehearse(
    model: Any, work: str, length: int, answers: Answers, dtype: torch.dtype, backend: str, device: str = "cuda"
) -> Seen:
    """Run a model on fake tensors of a device.

    Args:
        model: a model on the CPU, stock or swapped; it is not changed.
        work: one of `WORK`.
        length: number of tokens.
        answers: see `answers_to`; [] for a stock model.
        dtype: the model's dtype on the device.
        backend: its attention backend.
        device: "cuda" needs torch built for it.
    """
    model = copy.deepcopy(model)
    model.set_attn_implementation(backend)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = fake_copy(model, mode, dtype, device)
    left, places = list(answers), []
    watch = Watch(whole=work not in ("padded", "decode"), number=length - 1)

    def replayed(facts: Any) -> dict[str, int]:
        assert {fact.device.type for fact in facts.values()} == {device}
        places.append(_place())
        return left.pop(0)

    with uncompiled_flex_attention(), mode, watch, answered(replayed), torch.set_grad_enabled(work == "training"):
        run = forward(model, work, length, device)
        watch.seen = Seen()
        places.clear()
        watch.seen.output = run()
    watch.seen.reads += places
    return watch.seen
