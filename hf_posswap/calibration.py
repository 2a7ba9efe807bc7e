"""Start a scheme from what the old weights know: fit its parameters to the preference of each head for each distance.

For each layer, the stock model's scores are compared with the swapped model's, whose layers below are fitted already.
In each row (query) the difference is known up to a constant, which softmax does not see. The curve is the bias by
distance that explains the differences best, by weighted least squares; a pair weighs by how much attention it gets from
the stock model, from the swapped one, and from nobody in particular (a third each). Deterministic, without labels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_posswap.architectures import Architecture, architecture_of
from hf_posswap.errors import NotSwappedError, PosSwapError, UnsupportedError
from hf_posswap.modules import CONTEXT, ForwardContext
from hf_posswap.schemes.curves import Curve
from hf_posswap.structure import natively
from hf_posswap.swapping import is_swapped, without_scheme

ROUNDS = 3
"""Rounds of alternating least squares between row constants and the curve."""
QUERY_STEP = 4
"""Every fourth query is compared: neighbours say much the same, and all of them would cost four times as much."""


class CalibrationError(PosSwapError):
    """A text that cannot be calibrated on."""


@dataclass(frozen=True)
class CalibrationReport:
    """What calibration did.

    Attributes:
        tokens: number of tokens read.
        loss_stock: mean −ln p of the stock model on them, in nats; None for a model without a language modelling loss.
        loss_before: the same of the swapped model before calibration.
        loss_after: the same after it.
        explained: for each layer and head, the share of the weighted variance of score differences that the curve
            explains: 1 is all, 0 none. Heads near 0 or below attend by what a bias of the distance cannot say.
    """

    tokens: int
    loss_stock: float | None
    loss_before: float | None
    loss_after: float | None
    explained: list[list[float]]

    def worst_heads(self, count: int = 10) -> list[tuple[int, int, float]]:
        """Return (layer, head, explained) of the heads that fit worst."""
        heads = [(layer, head, share) for layer, row in enumerate(self.explained) for head, share in enumerate(row)]
        return sorted(heads, key=lambda item: item[2])[:count]


@dataclass
class Stream:
    """One model's way through the layers for one batch: what enters the next block."""

    hidden: Tensor
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def step(self, block: nn.Module) -> None:
        """Run the next block."""
        output = block(self.hidden, *self.arguments, **self.keywords)
        self.hidden = output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def calibrate(
    model: Any, batches: Iterable[Tensor], progress: Callable[[int, int], None] | None = None
) -> CalibrationReport:
    """Fit the parameters of a swapped model's scheme to the stock model's attention, layer after layer.

    Args:
        model: a swapped model whose scheme has parameters that calibration can fit; changed in place.
        batches: token ids, int64, (B, L), all of one length and without padding. A few thousand tokens are enough.
        progress: called with (layers done, layers).

    Returns:
        Losses before and after, and how well each head was fitted.

    Raises:
        NotSwappedError: the model is not swapped.
        UnsupportedError: the scheme has nothing to fit.
        CalibrationError: no batches, or texts shorter than 2 tokens.
    """
    if not is_swapped(model):
        raise NotSwappedError(
            "calibration fits the scheme of a swapped model: call hf_posswap.swap(model, scheme) first."
        )
    texts = [batch.to(model.device) for batch in batches]
    if not texts or min(text.shape[1] for text in texts) < 2:
        raise CalibrationError("calibration needs at least one batch of texts of 2 tokens or more; there is none.")
    training = model.training
    model.eval()
    try:
        before = mean_loss(model, texts)
        explained = _fit_layers(model, texts, progress)
        after = mean_loss(model, texts)
        with without_scheme(model):
            stock = mean_loss(model, texts)
    finally:
        model.train(training)
    return CalibrationReport(sum(text.numel() for text in texts), stock, before, after, explained)


def text_windows(tokenizer: Any, text: str, length: int, name: str = "the text") -> list[Tensor]:
    """Return a text's tokens as batches of one window each, int64, (1, length), without overlap.

    Raises:
        CalibrationError: the text is shorter than one window; says how many tokens it has.
    """
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]
    if len(ids) < length:
        raise CalibrationError(
            f"{name} has {len(ids)} tokens; calibration reads {length} at once. Give a longer text, or read at most "
            f"{len(ids)} tokens at once."
        )
    return [ids[start : start + length][None] for start in range(0, len(ids) - length + 1, length)]


def mean_loss(model: Any, texts: list[Tensor]) -> float | None:
    """Return the mean −ln p over the texts' tokens, or None if the model has no language modelling loss."""
    if not architecture_of(model.config).is_causal(model.config) or model.get_output_embeddings() is None:
        return None
    losses = [float(model(text, labels=text, use_cache=False).loss) * text[:, 1:].numel() for text in texts]
    return sum(losses) / sum(text[:, 1:].numel() for text in texts)


def _fit_layers(model: Any, texts: list[Tensor], progress: Callable[[int, int], None] | None) -> list[list[float]]:
    base, architecture = model.base_model, architecture_of(model.config)
    blocks = architecture.blocks(base)
    with natively(base, architecture):
        teachers = [_enter(base, blocks[0][0], text) for text in texts]
    students = [_enter(base, blocks[0][0], text) for text in texts]
    curves, explained, fitted = [], [], False
    block: nn.Module
    attention: Any
    for done, (block, attention) in enumerate(blocks, start=1):
        if "stock_class" in vars(type(attention)):
            pairs = [
                _scores(base, architecture, block, attention, t, s) for t, s in zip(teachers, students, strict=True)
            ]
            curve, share = fit_curve(pairs, architecture.is_causal(model.config))
            curves.append(curve)
            explained.append(share.tolist())
            fitted = attention.pos_scheme.fit(curve) or fitted
        with natively(base, architecture):
            for teacher in teachers:
                teacher.step(block)
        for student in students:
            student.step(block)
        if progress is not None:
            progress(done, len(blocks))
    shared = bool(curves) and base.pos_scheme.fit(curves)
    if not shared and not fitted:
        raise UnsupportedError(
            f"scheme {base.pos_scheme.name!r} has no parameters that calibration can fit with these options."
        )
    return explained


class _Entered(Exception):
    """Carries what enters the first block out of the base model's forward."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream


def _enter(base: Any, first: nn.Module, text: Tensor) -> Stream:
    """Return what enters the first block when the base model reads a text."""

    def stop(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        raise _Entered(Stream(arguments[0], arguments[1:], dict(keywords)))

    handle = first.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        base(text, use_cache=False)
    except _Entered as entered:
        return entered.stream
    finally:
        handle.remove()
    raise RuntimeError("the base model's forward did not reach its first block")


def _attention_inputs(block: nn.Module, attention: nn.Module, stream: Stream) -> tuple[Tensor, dict[str, Any]]:
    """Return the hidden states and keywords that a block hands to its attention module."""

    def stop(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        hidden = keywords.pop("hidden_states") if not arguments else arguments[0]
        raise _Entered(Stream(hidden, (), keywords))

    handle = attention.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        block(stream.hidden, *stream.arguments, **stream.keywords)
    except _Entered as entered:
        return entered.stream.hidden, entered.stream.keywords
    finally:
        handle.remove()
    raise RuntimeError("the block did not reach its attention module")


def _scores(
    base: Any, architecture: Architecture, block: nn.Module, attention: Any, teacher: Stream, student: Stream
) -> tuple[Tensor, Tensor]:
    """Return the scaled scores of the stock layer, and of the swapped one without its bias; see `fit_curve`."""
    with natively(base, architecture):
        hidden, keywords = _attention_inputs(block, attention, teacher)
    q, k, _ = architecture.project(attention, hidden)
    stock = _products(*architecture.rotate_natively(attention, q, k, keywords), attention.scaling)
    hidden, keywords = _attention_inputs(block, attention, student)
    context: ForwardContext = keywords[CONTEXT]
    q, k, _ = architecture.project(attention, hidden)
    if attention.pos_keep_native:
        q, k = architecture.rotate_natively(attention, q, k, keywords)
    q, k = attention.pos_scheme.transform(q, k, context.positions, context.prepared)
    return stock, _products(q, k, attention.scaling)


def _products(q: Tensor, k: Tensor, scaling: float) -> Tensor:
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return (q[:, :, compared_queries(q.shape[2], q.device)] @ k.transpose(-1, -2)).float() * scaling


def compared_queries(length: int, device: torch.device | None = None) -> Tensor:
    """Return the indices of the queries that are compared in a text of this length, the last one among them."""
    return torch.arange((length - 1) % QUERY_STEP, length, QUERY_STEP, device=device)


def fit_curve(pairs: list[tuple[Tensor, Tensor]], causal: bool, rounds: int = ROUNDS) -> tuple[Curve, Tensor]:
    """Return the bias by distance that explains stock − swapped scores best, and the share it explains for each head.

    Args:
        pairs: (stock, swapped) scaled scores of the compared queries with all keys, float32, (B, H, n, L), for each
            batch.
        causal: whether keys after the query are hidden.
        rounds: rounds of alternating least squares.
    """
    heads, length = pairs[0][0].shape[1], max(stock.shape[-1] for stock, _ in pairs)
    values = pairs[0][0].new_zeros(heads, 2 * length - 1)
    weights = values
    for _ in range(rounds):
        sums = [_round(stock, swapped, _window(values, stock.shape[-1]), causal) for stock, swapped in pairs]
        weights, weighted = (torch.stack([_widened(item[n], length) for item in sums]).sum(0) for n in (0, 1))
        values = weighted / weights.clamp(min=1e-12)
    residual = torch.stack([item[2] for item in sums]).sum(0)
    variance = torch.stack([item[3] for item in sums]).sum(0)
    distances = torch.arange(1 - length, length, device=values.device)
    return Curve(distances, values, weights), 1 - residual / variance.clamp(min=1e-12)


def _window(values: Tensor, length: int) -> Tensor:
    """Return the middle 2·length − 1 entries of values by distance."""
    cut = (values.shape[-1] - (2 * length - 1)) // 2
    return values[:, cut : values.shape[-1] - cut]


def _widened(values: Tensor, length: int) -> Tensor:
    """Return values by distance with zeros on both sides, 2·length − 1 entries."""
    missing = (2 * length - 1 - values.shape[-1]) // 2
    return nn.functional.pad(values, (missing, missing))


def _round(stock: Tensor, swapped: Tensor, values: Tensor, causal: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One round for one batch: weights and weighted values by distance, and the variance left and to explain."""
    length = stock.shape[-1]
    keys = torch.arange(length, device=stock.device)
    distance = compared_queries(length, stock.device)[:, None] - keys[None, :]
    bias = values[:, distance + length - 1]
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    minimum = torch.finfo(torch.float32).min
    shares = (scores.masked_fill(~seen, minimum).softmax(-1) for scores in (stock, swapped + bias))
    weight = (sum(shares) + seen / seen.sum(-1, keepdim=True)) / 3
    difference = stock - swapped
    row_weight = weight.sum(-1, keepdim=True)
    constant = (weight * (difference - bias)).sum(-1, keepdim=True) / row_weight
    target = difference - constant
    residual = (weight * (target - bias).square()).sum((0, 2, 3))
    centred = difference - (weight * difference).sum(-1, keepdim=True) / row_weight
    variance = (weight * centred.square()).sum((0, 2, 3))
    place = (distance + length - 1).flatten()
    return _by_distance(weight.sum(0), place), _by_distance((weight * target).sum(0), place), residual, variance


def _by_distance(matrix: Tensor, place: Tensor) -> Tensor:
    """Return the sums (H, 2L − 1) of a matrix (H, n, L) over equal distances, whose places are given flat."""
    heads, _, length = matrix.shape
    return matrix.new_zeros(heads, 2 * length - 1).index_add(1, place, matrix.flatten(1))
