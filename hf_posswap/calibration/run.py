"""Calibrate a swapped model: layer after layer, measured before and after, and taken back if it was better before."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_posswap.architectures import Architecture, architecture_of
from hf_posswap.calibration.alignment import Coordinates
from hf_posswap.calibration.fitting import CalibrationError, FitSettings, fit_curve, mismatch, sum_by_query
from hf_posswap.calibration.key_shift import key_shift
from hf_posswap.calibration.measuring import Yardstick
from hf_posswap.calibration.streams import Projections, Stream, enter, projected, projections, turned_units
from hf_posswap.calibration.texts import hold_back, together
from hf_posswap.errors import NotSwappedError, UnsupportedError
from hf_posswap.loading.entry import healed_before, is_healed
from hf_posswap.schemes.curves import Curve
from hf_posswap.swapped.plan import core_of, natively
from hf_posswap.swapped.questions import (
    is_swapped,
    longest_position,
    plain_model,
    stock_longest_position,
)


class CalibrationWarning(UserWarning):
    """Calibration would have made the model worse, and was taken back."""


@dataclass(frozen=True)
class CalibrationReport:
    """What calibration did.

    Attributes:
        tokens: number of tokens the scheme was fitted to.
        quantity: what the losses are, by what the model is for: "loss" of the next token or "masked loss", mean −ln p
            in nats; "agreement", 1 − the mean cosine of the model's text embeddings to the stock model's. None: they
            were not measured.
        held_back: number of tokens they were measured on, none of which the scheme was fitted to; 0: there were too few
            texts, and they were measured on those it was fitted to.
        loss_stock: loss of the stock model.
        loss_before: of the swapped model before calibration.
        loss_after: of the swapped model after it, whether that was kept or not.
        kept_start: whether the model was better before, so that it has been left as it was.
        explained: for each layer and head, the share of the weighted variance of score differences that the curve
            explains: 1 is all, 0 none. Heads near 0 or below attend by what a bias of the distance cannot say.
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
        """Return (layer, head, explained) of the heads that fit worst."""
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
    """Fit the parameters of a swapped model's scheme to the stock model's attention, layer after layer.

    RoPE has no parameters, but turns some dimensions of a head faster than others: the heads get coordinates in which
    the fastest hold what they read least, see `hf_posswap.calibration.alignment`, and keys a vector in common whose
    turns say what the old mechanism said of distances, see `hf_posswap.calibration.key_shift`. That changes the weights
    of queries and keys, and nothing that the stock model computes, to rounding.

    The model is then measured by what it is for, on texts that were held back, and left as it was if it was better so.

    Args:
        model: a swapped model whose scheme has something that calibration can fit; changed in place.
        batches: token ids, int64, (B, L), each batch of one length and without padding. A row is a text of its own, of
            2 tokens or more; an encoder's stands between its special tokens, see `text_windows`. A few thousand tokens
            are enough. Of 5 texts or more, one in nine is held back.
        progress: called with (layers done, layers).
        settings: how to weigh and iterate. None: the defaults, which measured best.
        measure: hold texts back and measure the model on them. False: fit to all texts, and keep the fit.
        tokenizer: the model's tokenizer: a masked language model is measured by masked tokens if it is given, else by
            how far its embeddings agree with the stock model's.

    Returns:
        What was measured, and how well each head was fitted.

    Warns:
        CalibrationWarning: the model was better before, and has been left so.

    Raises:
        NotSwappedError: the model is not swapped.
        UnsupportedError: the scheme has nothing to fit.
        CalibrationError: no batches, texts shorter than 2 tokens, or a ramp that has not ended.
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
        if yardstick is not None:
            before = yardstick.measure(model)
        start = _Start(model)
        try:
            explained = _fit_layers(model, fitted, progress, settings or FitSettings())
            if yardstick is not None and before is not None:
                after = yardstick.measure(model)
                kept_start = not after <= before
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
        # The decorator is a frame of its own.
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
        f"model is as it was swapped. Scheme {scheme!r} cannot say what the old mechanism said: give each layer "
        "parameters of its own (per_layer=true) if the scheme has that option, choose another scheme, or heal from the "
        "start."
    )


class _Start:
    """What calibration may change in a model, as it is before."""

    def __init__(self, model: Any) -> None:
        self.base = core_of(model)
        self.rewritten = self.base.pos_rewritten
        swapped = [m for _, m in architecture_of(model.config).blocks(self.base) if _is_swapped(m)]
        schemes = (self.base.pos_scheme, *(module.pos_scheme for module in swapped))
        tensors = [tensor for scheme in schemes for tensor in scheme.parameters()]
        if rewrites_weights(model):
            parts = (architecture_of(model.config).query_and_key(module) for module in swapped)
            tensors += [tensor for pair in parts if pair is not None for part in pair for tensor in part]
        self.tensors = [(tensor, tensor.detach().clone()) for tensor in tensors]

    def put_back(self) -> None:
        """Give the model what it had, bit for bit."""
        for tensor, before in self.tensors:
            tensor.copy_(before)
        self.base.pos_rewritten = self.rewritten


def _checked(batch: Any) -> Tensor:
    """Return a batch if it is one of token ids of 2 tokens or more; raise `CalibrationError` if not."""
    if not isinstance(batch, Tensor) or batch.dim() != 2 or batch.shape[1] < 2 or batch.is_floating_point():
        found = f"a tensor {tuple(batch.shape)} of {batch.dtype}" if isinstance(batch, Tensor) else type(batch).__name__
        raise CalibrationError(
            f"a batch to calibrate on is {found}; it must be a tensor of token ids, (B, L), with L of 2 or more. "
            "hf_posswap.calibration.text_windows makes such batches of a text."
        )
    return batch


def _require_positions(model: Any, length: int) -> None:
    """Refuse texts longer than the stock model or the swapped one has positions for; raise `CalibrationError`."""
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
    layers = (module.pos_scheme for _, module in architecture_of(model.config).blocks(base) if _is_swapped(module))
    if not any(True for part in (base.pos_scheme, *layers) for _ in part.parameters()):
        return _nothing_to_fit(base.pos_scheme.name)
    if base.pos_scheme.calibration_refusal:
        return f"calibration cannot fit scheme {base.pos_scheme.name!r}: {base.pos_scheme.calibration_refusal}"
    return None


def rewrites_weights(model: Any) -> bool:
    """Return whether calibrating a swapped model changes the weights of its queries and keys.

    It does if the scheme prefers some dimensions to others, and the heads' coordinates can be chosen: the old mechanism
    must not turn them.
    """
    base, architecture = core_of(model), architecture_of(model.config)
    if base.pos_scheme.steady_dimensions() is None or base.pos_scheme.config.keep_native:
        return False
    if architecture.rotary(base) is not None:
        return False
    swapped = [module for _, module in architecture.blocks(base) if _is_swapped(module)]
    return all(architecture.query_and_key(module) is not None for module in swapped)


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
    order = base.pos_scheme.steady_dimensions() if rewrites_weights(model) else None
    base.pos_rewritten = base.pos_rewritten or order is not None
    curves, explained, fitted = [], [], order is not None
    attention: Any
    for done, (block, attention) in enumerate(blocks, start=1):
        if _is_swapped(attention):
            layer = _Layer(base, architecture, block, attention, pairs)
            samples = layer.samples() if order is None else layer.aligned_samples(order, settings)
            curve, share = _measure(attention, samples, architecture.is_causal(model.config), settings)
            del samples
            fitted = attention.pos_scheme.fit(curve) or fitted
            curves.append(replace(curve, content=None))
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
    shared = bool(curves) and base.pos_scheme.fit(curves)
    if not shared and not fitted:
        raise UnsupportedError(_nothing_to_fit(base.pos_scheme.name))
    return explained


SAME_SCORES = 0.05
"""Relative change of scores up to which other coordinates changed nothing but the rounding of half precision."""


def _centred_scores(query: Tensor, key: Tensor) -> Tensor:
    """Return the products of the first text's queries and keys, each query's mean taken off: float64, (H, L, L)."""
    q, k = query[0].double(), key[0].double()
    scores = q @ k.repeat_interleave(q.shape[0] // k.shape[0], dim=0).mT
    return scores - scores.mean(-1, keepdim=True)


@dataclass(frozen=True)
class _Layer:
    """A layer about to be fitted, and what reaches it of each batch: the stock model's stream and the swapped one's."""

    base: Any
    architecture: Architecture
    block: Any
    attention: Any
    pairs: list[tuple[Stream, Stream]]

    def samples(self) -> list[Projections]:
        """Return the queries and keys of each batch."""
        return [projections(self.base, self.architecture, self.block, self.attention, *pair) for pair in self.pairs]

    def aligned_samples(self, order: Tensor, settings: FitSettings) -> list[Projections]:
        """Bring heads closer to the stock scores by what the stock model does not notice, and return the samples then.

        First by other coordinates, then by a vector that all keys share. Where neither helps a head, it is left alone.
        """
        coordinates = Coordinates(self.architecture, self.attention)
        left = self._mismatch(self.samples(), settings)
        queries_and_keys = [projected(self.block, self.attention, pair[1]) for pair in self.pairs]
        coordinates.align(queries_and_keys, order)
        self._require_same_scores(queries_and_keys[0], coordinates)
        coordinates.put_back(self._mismatch(self.samples(), settings) >= left)
        samples = self.samples()
        left = self._mismatch(samples, settings)
        units = self._turned_units(len(order))
        for _ in range(settings.rounds):
            unshifted = coordinates.shift_keys(key_shift(samples, units, self._causal, settings))
            samples = self.samples()
            now = self._mismatch(samples, settings)
            if bool((now >= left).any()):
                coordinates.put_back_keys(unshifted, now >= left)
                samples = self.samples()
            left = torch.minimum(now, left)
        return samples

    def _require_same_scores(self, before: tuple[Tensor, Tensor], coordinates: Coordinates) -> None:
        """Take other coordinates back where they changed scores: q and k are then not what the weights alone make.

        Raises:
            CalibrationError: they did.
        """
        after = projected(self.block, self.attention, self.pairs[0][1])
        old, new = (_centred_scores(*pair) for pair in (before, after))
        if float((new - old).norm()) > SAME_SCORES * float(old.norm()):
            coordinates.put_back(torch.ones(before[1].shape[1], dtype=torch.bool, device=old.device))
            raise CalibrationError(
                f"{type(self.attention).__name__} changes queries and keys after their projections, so that their "
                "coordinates cannot be chosen by the weights. Heal this scheme without calibration."
            )

    def _turned_units(self, head_dim: int) -> "_TurnedUnits":
        """Return `turned_units` by length of text: texts of one length have the same positions."""
        by_length = {student.hidden.shape[1]: student for _, student in self.pairs}
        return _TurnedUnits(lambda length: turned_units(self.attention, by_length[length], head_dim))

    @property
    def _causal(self) -> bool:
        return self.architecture.is_causal(self.base.config)

    def _mismatch(self, samples: list[Projections], settings: FitSettings) -> Tensor:
        """Return how far the scores are from the stock ones, for each group of heads that share keys, (Hkv,)."""
        heads = samples[0].stock_key.shape[1]
        return mismatch(samples, self._causal, settings).view(heads, -1).sum(1)


class _TurnedUnits(dict[int, Tensor]):
    """Makes what is asked for, and holds one length at a time: texts may be of hundreds of lengths."""

    def __init__(self, make: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, length: int) -> Tensor:
        self.clear()
        self[length] = self.make(length)
        return self[length]


def _measure(attention: Any, samples: list[Projections], causal: bool, settings: FitSettings) -> tuple[Curve, Tensor]:
    """Return a layer's curve, with the sums by query if the scheme asks for them, and the share each head explains."""
    curve, share = fit_curve(samples, causal, settings)
    groups = attention.pos_scheme.content_groups(curve.distances)
    if groups is None:
        return curve, share
    return replace(curve, content=sum_by_query(samples, curve, groups, causal, settings)), share
