"""Calibrates a swapped model layer by layer, measures it before and after, and undoes a calibration that is worse."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_posswap.architectures import architecture_of
from hf_posswap.architectures.base import Architecture
from hf_posswap.calibration.fitting import CalibrationError, FitSettings
from hf_posswap.calibration.layers import FittedLayer
from hf_posswap.calibration.measuring import Yardstick
from hf_posswap.calibration.streams import enter
from hf_posswap.calibration.texts import hold_back, together
from hf_posswap.errors import NotSwappedError, UnsupportedError
from hf_posswap.loading.entry import healed_before, is_healed
from hf_posswap.schemes.curves import Curve
from hf_posswap.swapped.applying import natively
from hf_posswap.swapped.modules import is_unfitted, unfitted_too
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.questions import (
    is_swapped,
    longest_position,
    plain_model,
    stock_longest_position,
    unfitted_reason,
)


class CalibrationWarning(UserWarning):
    """Warning: calibration made the model worse and was undone."""


@dataclass(frozen=True)
class CalibrationReport:
    """The result of a calibration.

    Attributes:
        tokens: number of tokens that the scheme was fitted to.
        quantity: the quantity of the losses: "loss" of the next token or "masked loss", both mean −ln p in nats;
            "agreement", 1 − the mean cosine of the model's text embeddings to the stock model's. None: the model was
            not measured.
        held_back: number of held-back tokens that the losses were measured on. 0: there were too few texts to hold
            some back, and the losses were measured on the texts that the scheme was fitted to.
        loss_stock: loss of the stock model.
        loss_before: loss of the swapped model before calibration; None if it cannot run before, as `rope` with
            `frequencies=chosen`, which is then never undone.
        loss_after: loss of the swapped model after calibration, whether calibration was kept or not.
        kept_start: whether the loss did not fall, so that calibration was undone.
        explained: for each layer and head, the share of the weighted variance of score differences that the curve
            explains: 1 is all, 0 is none. A head with a share near 0 or below attends by more than the distance.
    """

    tokens: int
    quantity: str | None
    held_back: int
    loss_stock: float | None
    loss_before: float | None
    loss_after: float | None
    kept_start: bool
    explained: list[list[float]]

    def worst_heads(self, count: int = 10) -> list[tuple[int, int, float]]:
        """Return (layer, head, explained) of the `count` heads that fit worst, starting with the worst."""
        heads = [(layer, head, share) for layer, row in enumerate(self.explained) for head, share in enumerate(row)]
        return sorted(heads, key=lambda item: item[2])[:count]


@torch.no_grad()
def calibrate(
    model: Any,
    batches: Iterable[Tensor],
    progress: Callable[[int, int], None] | None = None,
    settings: FitSettings | None = None,
    measure: bool = True,
    tokenizer: Any = None,
) -> CalibrationReport:
    """Fit the parameters of a swapped model's scheme to the stock model's attention, layer by layer.

    RoPE has no parameters to fit, but it rotates some dimensions of a head faster than others. Calibration of RoPE
    changes each head's coordinates so that the largest components rotate slowest, see
    `hf_posswap.calibration.alignment`, and adds a vector to all keys of a head, see `hf_posswap.calibration.key_shift`.
    This changes the weights of the query and key projections, but not the output of the stock model, except for
    rounding.

    With `frequencies=chosen`, calibration of RoPE chooses the pairs that turn, see `hf_posswap.schemes.rope`.

    Calibration then measures the model on texts that were held back: by its loss, or by the agreement of its embeddings
    with the stock model's. If calibration made the model worse, it is undone.

    Args:
        model: a swapped model whose scheme has parameters that calibration can fit; changed in place.
        batches: token ids, int64, (B, L), each batch of one length and without padding. A row is a separate text, of 2
            tokens or more; for an encoder, between its special tokens, see `text_windows`. A few thousand tokens are
            enough. Of 5 texts or more, one in nine is held back.
        progress: called with (layers done, layers).
        settings: weights and iterations of the fit. None: the defaults, which gave the best results.
        measure: whether to hold texts back and measure the model on them. False: fit to all texts and keep the fit.
        tokenizer: the model's tokenizer. With a tokenizer, a masked language model is measured by its loss on masked
            tokens; without one, by the agreement of its embeddings with the stock model's.

    Returns:
        The losses, and how well each head was fitted.

    Warns:
        CalibrationWarning: calibration made the model worse and was undone.

    Raises:
        NotSwappedError: the model is not swapped.
        UnsupportedError: the scheme has no parameters that calibration can fit.
        CalibrationError: there are no batches, a text is shorter than 2 tokens or longer than the models can read, or a
            ramp has not ended.
    """
    model = plain_model(model)
    refusal = calibration_refusal(model)
    if refusal is not None:
        raise UnsupportedError(refusal)
    if core_of(model).pos_ramp is not None:
        raise CalibrationError(
            f"the model is on a ramp, at {float(core_of(model).pos_ramp.share):.0%} of its scheme: calibration would "
            "fit a scheme that acts in part. End the ramp first: hf_posswap.ramp.set_ramp(model, None)."
        )
    texts = [_checked(batch).to(model.device) for batch in batches]
    if not texts:
        raise CalibrationError("calibration needs at least one batch of texts of 2 tokens or more; there is none.")
    _require_positions(model, max(text.shape[1] for text in texts))
    fitted, held = hold_back(texts) if measure else (texts, [])
    fitted = together(fitted)
    training = model.training
    model.eval()
    before = after = None
    kept_start = False
    try:
        yardstick = Yardstick(model, together(held or fitted), tokenizer) if measure else None
        if yardstick is not None and unfitted_reason(model) is None:
            before = yardstick.measure(model)
        start = _Start(model)
        try:
            with unfitted_too(core_of(model)):
                explained = _fit_layers(model, fitted, progress, settings or FitSettings())
            core_of(model).pos_fitted = not is_unfitted(core_of(model))
            if yardstick is not None:
                after = yardstick.measure(model)
                kept_start = before is not None and not after <= before
        except BaseException:
            start.put_back()
            raise
        if kept_start:
            start.put_back()
    finally:
        model.train(training)
    report = CalibrationReport(
        tokens=sum(text.numel() for text in fitted),
        quantity=None if yardstick is None else yardstick.quantity,
        held_back=sum(text.numel() for text in held),
        loss_stock=None if yardstick is None else yardstick.stock,
        loss_before=before,
        loss_after=after,
        kept_start=kept_start,
        explained=explained,
    )
    if kept_start:
        # stacklevel=3: the decorator adds one stack frame.
        warnings.warn(_says_kept(report, core_of(model).pos_scheme.name), CalibrationWarning, stacklevel=3)
    return report


def _says_kept(report: CalibrationReport, scheme: str) -> str:
    what = {
        "loss": "its loss rises from {:.3f} to {:.3f} nats a token",
        "masked loss": "its loss rises from {:.3f} to {:.3f} nats a masked token",
        "agreement": "the cosine of its embeddings to the stock model's falls from {:.3f} to {:.3f}",
    }[str(report.quantity)]
    values = [report.loss_before or 0.0, report.loss_after or 0.0]
    if report.quantity == "agreement":
        values = [1 - value for value in values]
    where = f"on {report.held_back} tokens held back" if report.held_back else "on the texts it was fitted to"
    return (
        f"calibration would have made the model worse: {where}, {what.format(*values)}. The start is kept, and the "
        f"model is as it was swapped. Scheme {scheme!r} cannot express the old mechanism: give each layer "
        "parameters of its own (per_layer=true) if the scheme has that option, choose another scheme, or heal from the "
        "start."
    )


class _Start:
    """A copy of everything in a model that calibration may change."""

    def __init__(self, model: Any) -> None:
        self.base = core_of(model)
        self.rewritten = self.base.pos_rewritten
        swapped = [m for _, m in architecture_of(model.config).blocks(self.base) if _is_swapped(m)]
        schemes = (self.base.pos_scheme, *(module.pos_scheme for module in swapped))
        tensors = [tensor for scheme in schemes for tensor in (*scheme.parameters(), *scheme.buffers())]
        if rewrites_weights(model):
            parts = (architecture_of(model.config).query_and_key(module) for module in swapped)
            tensors += [tensor for pair in parts if pair is not None for part in pair for tensor in part]
        self.tensors = [(tensor, tensor.detach().clone()) for tensor in tensors]

    def put_back(self) -> None:
        """Restore the model's state, bit for bit."""
        for tensor, before in self.tensors:
            tensor.copy_(before)
        self.base.pos_rewritten = self.rewritten
        self.base.pos_fitted = not is_unfitted(self.base)


def _checked(batch: Any) -> Tensor:
    """Return the batch; raise `CalibrationError` if it does not hold token ids of texts of 2 tokens or more."""
    if not isinstance(batch, Tensor) or batch.dim() != 2 or batch.shape[1] < 2 or batch.is_floating_point():
        found = f"a tensor {tuple(batch.shape)} of {batch.dtype}" if isinstance(batch, Tensor) else type(batch).__name__
        raise CalibrationError(
            f"a batch to calibrate on is {found}; it must be a tensor of token ids, (B, L), with L of 2 or more. "
            "hf_posswap.calibration.text_windows makes such batches of a text."
        )
    return batch


def _require_positions(model: Any, length: int) -> None:
    """Refuse texts longer than the longest position of the stock or the swapped model; raise `CalibrationError`."""
    limits = (stock_longest_position(model), longest_position(model))
    limit = min((limit for limit in limits if limit is not None), default=length)
    if length > limit:
        raise CalibrationError(
            f"a text to calibrate on has {length} tokens, and the model, stock or swapped, reads at most {limit}. Cut "
            f"texts to {limit} tokens or fewer."
        )


def calibration_refusal(model: Any) -> str | None:
    """Return why calibration cannot fit a swapped model's scheme, or None if it can.

    Raises:
        NotSwappedError: the model is not swapped.
    """
    model = plain_model(model)
    if not is_swapped(model):
        raise NotSwappedError(
            "calibration fits the scheme of a swapped model: call hf_posswap.swap(model, scheme) first."
        )
    if is_healed(model.config):
        return f"{healed_before(model.config)} Calibration fits a scheme to stock attention: swap that model anew."
    base = core_of(model)
    if rewrites_weights(model):
        return None
    learning = [part for number, part in enumerate(base.pos_scheme.parts) if _can_learn(base, number)]
    if not learning:
        return _nothing_to_fit(base.pos_scheme.name)
    if all(part.calibration_refusal for part in learning):
        return f"calibration cannot fit scheme {learning[0].name!r}: {learning[0].calibration_refusal}"
    return None


def _can_learn(base: Any, number: int) -> bool:
    """Return whether one part of the scheme has parameters, shared ones or in its layers, or layers with a choice."""
    blocks = architecture_of(base.config).blocks(base)
    layers: list[Any] = [m.pos_scheme for _, m in blocks if _is_swapped(m) and m.pos_part == number]
    chooses = any(layer.unfitted() is not None for layer in layers)
    return chooses or any(True for part in (base.pos_scheme.part(number), *layers) for _ in part.parameters())


def rewrites_weights(model: Any) -> bool:
    """Return whether calibrating a swapped model changes the weights of its query and key projections.

    It does if two conditions hold: the scheme does not treat all dimensions alike, and the heads' coordinates can be
    changed, which requires that the native mechanism does not rotate q and k.
    """
    base, architecture = core_of(model), architecture_of(model.config)
    blocks = architecture.blocks(base)
    return any(_new_order(base, architecture, module) is not None for _, module in blocks if _is_swapped(module))


def _new_order(base: Any, architecture: Architecture, attention: Any) -> Tensor | None:
    """Return the order in which calibration puts the dimensions of a layer's heads; None: it does not change them."""
    scheme = base.pos_scheme.part(attention.pos_part)
    if scheme.config.keep_native or architecture.rotary(base) is not None:
        return None
    order: Tensor | None = scheme.steady_dimensions()
    return None if order is None or architecture.query_and_key(attention) is None else order


def _nothing_to_fit(name: str) -> str:
    return (
        f"scheme {name!r} has no parameters that calibration can fit with these options. Give it some, as "
        "alibi:trainable=true does, or choose a scheme that has them: t5, relative_bias, shaw, transformer_xl."
    )


def _is_swapped(attention: Any) -> bool:
    return "stock_class" in vars(type(attention))


def _fit_layers(
    model: Any, texts: list[Tensor], progress: Callable[[int, int], None] | None, settings: FitSettings
) -> list[list[float]]:
    base, architecture = core_of(model), architecture_of(model.config)
    blocks = architecture.blocks(base)
    with natively(base, architecture):
        teachers = [enter(base, [block for block, _ in blocks], text) for text in texts]
    students = [enter(base, [block for block, _ in blocks], text) for text in texts]
    pairs = list(zip(teachers, students, strict=True))
    fitted = rewrites_weights(model)
    base.pos_rewritten = base.pos_rewritten or fitted
    curves: dict[int, list[Curve]] = {}
    explained = []
    attention: Any
    for done, (block, attention) in enumerate(blocks, start=1):
        if _is_swapped(attention):
            layer = FittedLayer(base, architecture, block, attention, pairs)
            order = _new_order(base, architecture, attention)
            samples = layer.samples() if order is None else layer.aligned_samples(order, settings)
            if attention.pos_scheme.choose([(sample.stock_query, sample.stock_key) for sample in samples]):
                fitted, samples = True, layer.samples()
            curve, share = layer.curve(samples, settings)
            del samples
            fitted = attention.pos_scheme.fit(curve) or fitted
            curves.setdefault(attention.pos_part, []).append(replace(curve, content=None))
            explained.append(share.tolist())
        for teacher, student in pairs:
            with natively(base, architecture):
                teacher.step(block)
            if settings.follow:
                student.step(block)
            else:
                student.hidden = teacher.hidden
        if progress is not None:
            progress(done, len(blocks))
    shared = [base.pos_scheme.part(number).fit(found) for number, found in curves.items()]
    if not any(shared) and not fitted:
        raise UnsupportedError(_nothing_to_fit(base.pos_scheme.name))
    return explained
