"""How far a swapped model starts from the stock model, and the options of healing that follow from it."""

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from hf_posswap.loading.entry import is_healed
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.proof import in_mode
from hf_posswap.swapped.questions import is_swapped, plain_model, without_scheme
from hf_posswap.training.objectives import IGNORED, LanguageModelling, Objective
from hf_posswap.training.options import HealingError, HealingOptions
from hf_posswap.training.supervision import LABELS
from hf_posswap.training.teacher import readable_length
from hf_posswap.training.texts import Window, collate

MEASURED_TOKENS = 2048
"""Approximate number of tokens that the losses are measured on."""
WORSE_THAN_GUESSING = 1.0
"""Nats above ln(vocabulary): a stock model with a larger loss does not know the language of the text."""
NEAR = 0.68
"""Share of what positions are worth up to which a start is near. In `demo:gpt2`, `t5:per_layer=true` and trainable
ALiBi lack 0.55 and 0.62 after calibration and heal better at the lower rate; `kerple` and fixed ALiBi lack 0.76 and
0.82 and heal better at the higher one (docs/what-we-learnt.md)."""
NEAR_RATE, FAR_RATE = 3e-4, 1e-3
ADAPTER_RATE, ENCODER_RATE = 1e-3, 5e-4
"""The rates at which adapters and encoders were measured (docs/healing.md)."""


@dataclass(frozen=True)
class Start:
    """The losses of a causal model before healing, in nats a token, on the beginning of the text.

    Attributes:
        stock: loss of the stock model.
        swapped: loss of the swapped model.
        bare: loss without the stock mechanism and without the scheme.
    """

    stock: float
    swapped: float
    bare: float

    @property
    def missing(self) -> float:
        """The share of what positions are worth to the stock model that the swapped model lacks."""
        worth = self.bare - self.stock
        return (self.swapped - self.stock) / worth if worth > 0 else 0.0

    @property
    def is_near(self) -> bool:
        """Whether the swapped model starts near the stock model."""
        return self.missing <= NEAR


def choose_options(
    options: HealingOptions,
    model: Any,
    objective: type[Objective],
    windows: list[Window],
    *,
    teacher: Any = None,
) -> tuple[HealingOptions, Start | None]:
    """Return the options with everything chosen that they leave open, and the start if it was measured.

    Supervision: a stock model, and one that was healed before and has no teacher, learn from the labels; a swapped
    causal model from the stock model's outputs, an encoder from its hidden states too. The peak rate of the weights:
    see `NEAR`.

    Args:
        options: the options as given.
        model: the model, or peft's wrapper of it.
        objective: the training objective.
        windows: the beginning of the text.
        teacher: the stock model, if it is given.

    Raises:
        HealingError: there is no stock model to learn from, or the stock model cannot read the text.
    """
    plain = plain_model(model)
    causal = objective is LanguageModelling
    if causal:
        _check_language(plain, windows)
    given = options.names_supervision
    if given and options.learning_rate is not None:
        return options, None
    start = None
    if causal and is_swapped(plain) and not is_healed(plain.config):
        start = measure_start(plain, windows)
    if not given:
        options = dataclasses.replace(options, supervise=_words(plain, causal, teacher))
    if options.learning_rate is None:
        options = dataclasses.replace(options, learning_rate=_rate(model, causal, start))
    return options, start


def _words(plain: Any, causal: bool, teacher: Any) -> tuple[str, ...]:
    if not is_swapped(plain) or (teacher is None and is_healed(plain.config)):
        return LABELS  # there is no stock model to learn from
    return ("logits",) if causal else ("logits", "hidden")


def _rate(model: Any, causal: bool, start: Start | None) -> float:
    if model is not plain_model(model):
        return ADAPTER_RATE
    if not causal:
        return ENCODER_RATE
    return FAR_RATE if start is not None and not start.is_near else NEAR_RATE


@torch.no_grad()
def measure_start(model: Any, windows: list[Window]) -> Start:
    """Return the losses of a swapped causal model that was not healed, on the beginnings of windows."""
    training = model.training
    model.eval()
    try:
        with without_scheme(model):
            readable = readable_length(model)
            stock = mean_loss(model, windows, readable)
        swapped = mean_loss(model, windows, readable)
        with in_mode(core_of(model), "bare"):
            bare = mean_loss(model, windows, readable)
    finally:
        model.train(training)
    return Start(stock, swapped, bare)


@torch.no_grad()
def _check_language(model: Any, windows: list[Window]) -> None:
    """Refuse texts on which the stock or healed model is worse than a uniform guess: it cannot be healed on them.

    Raises:
        HealingError: it is worse; the message gives the loss and possible reasons.
    """
    training = model.training
    model.eval()
    try:
        stock_inside = is_swapped(model) and not is_healed(model.config)
        with without_scheme(model) if stock_inside else contextlib.nullcontext():
            loss = mean_loss(model, windows, readable_length(model))
    finally:
        model.train(training)
    guess = math.log(model.get_input_embeddings().num_embeddings)
    if loss > guess + WORSE_THAN_GUESSING:
        raise HealingError(
            f"the {'stock ' if stock_inside else ''}model cannot read this text: its loss is {loss:.2f} nats a token, "
            f"and {guess:.2f} would be guessing. Either the tokenizer is not the model's own, or the text is in a "
            "language it has not learned, of which the stock model can teach nothing. Give the model's own tokenizer, "
            "or other texts."
        )


def mean_loss(model: Any, windows: list[Window], readable: int) -> float:
    """Return the mean loss over the beginnings of windows; documents do not attend to each other."""
    losses, scored = 0.0, 0
    for window in windows:
        cut = Window(window.ids[:readable], window.positions[:readable])
        batch = LanguageModelling.labelled(collate([cut], 0))
        labels = batch.pop("labels").to(model.device)
        logits = model(**{name: value.to(model.device) for name, value in batch.items()}, use_cache=False).logits
        losses += float(F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum"))
        scored += int((labels != IGNORED).sum())
    return losses / max(1, scored)
