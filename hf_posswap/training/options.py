"""Options of a healing run, validated on construction."""

import dataclasses
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

from hf_posswap.errors import PosSwapError

ObjectiveName = Literal["lm", "mlm", "embedding"]
Trained = Literal["all", "scheme"]
Precision = Literal["no", "bf16"]
MAY_BE_LEFT_OUT = ("tokens", "steps", "length", "shortest_length")
LARGEST_SEED = 2**31 - 1
"""A step's seed is made of it, of the step and of the process, and torch takes 64 bits."""


class HealingError(PosSwapError):
    """A healing run that cannot start or go on: options, texts, checkpoints or losses that do not fit."""


@dataclass(frozen=True, kw_only=True)
class HealingOptions:
    """How a model is healed. Everything that changes the losses is here, so that equal options give equal curves.

    Attributes:
        tokens: budget of tokens, all processes together; the number of steps follows. Give this or `steps`.
        steps: number of optimizer steps.
        length: tokens read at once. None: what the stock model was trained to read, at most 512.
        shortest_length: encoders read texts of many lengths: the windows of a batch are cut into texts of `length`
            tokens, or half of it, a quarter, … but not less than this; which, is drawn anew for each batch. None: 32
            with objective "embedding"; otherwise `length`.
        batch_size: windows that each process reads at once.
        accumulation: batches whose gradients make one step.
        objective: "lm", "mlm" or "embedding". None: what the model's head is for.
        distill: weight in [0, 1] of the stock model's outputs as the target, the rest being the objective's own.
        ramp: share of the steps in which the old mechanism fades out while the new one fades in; 0: none.
        train: "all" weights that require a gradient, or those of the "scheme" only.
        learning_rate: peak, for the weights.
        scheme_learning_rate: peak, for the scheme's own parameters.
        weight_decay: of matrices; the scheme's parameters, biases and norms have none.
        warmup: share of the steps in which the learning rate rises; it then falls as a cosine to 0. Unless it is 0, it
            rises over 3 steps at least, or half of a run shorter than 6.
        clip: largest norm of the gradient.
        precision: "bf16" computes in bfloat16 by autocast; weights stay as they are. `precision.fast_precision` says
            whether a device has instructions for it; on one without, healing warns.
        gradient_checkpointing: recompute activations in the backward pass.
        dropout: drop out activations as the model's config says. None: only without a teacher, to whose outputs it
            would be noise.
        packing: fill windows with several documents, masked from each other. None: in causal models.
        seed: of the order of the windows, of masked tokens and of dropout.
        checkpoint_every: steps between checkpoints; 0: none.
        keep_checkpoints: how many of the newest are kept.

    Raises (on construction):
        HealingError: an option out of range, or options that exclude each other.
    """

    tokens: int | None = None
    steps: int | None = None
    length: int | None = None
    shortest_length: int | None = None
    batch_size: int = 8
    accumulation: int = 1
    objective: ObjectiveName | None = None
    distill: float = 0.0
    ramp: float = 0.0
    train: Trained = "all"
    learning_rate: float = 3e-4
    scheme_learning_rate: float = 1e-2
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 1.0
    precision: Precision = "no"
    gradient_checkpointing: bool = False
    dropout: bool | None = None
    packing: bool | None = None
    seed: int = 0
    checkpoint_every: int = 200
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.steps is None):
            raise HealingError(
                f"give a budget of tokens or of steps, one of the two: tokens is {self.tokens}, steps is {self.steps}."
            )
        self._check_choices()
        self._check_integers()
        self._check_ranges()

    def _check_choices(self) -> None:
        for name, kind in (("objective", ObjectiveName), ("train", Trained), ("precision", Precision)):
            value = getattr(self, name)
            if value is not None and value not in get_args(kind):
                raise HealingError(f"unknown {name} {value!r}. Allowed: {', '.join(get_args(kind))}.")

    def _check_integers(self) -> None:
        counts = ("tokens", "steps", "batch_size", "accumulation", "keep_checkpoints")
        lowest = dict.fromkeys(counts, 1) | {"length": 2, "shortest_length": 4, "checkpoint_every": 0, "seed": 0}
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is None and name in MAY_BE_LEFT_OUT:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise HealingError(f"{name} is {value!r}; it must be an integer.")
            if value < least:
                raise HealingError(f"{name} is {value}; it must be at least {least}.")
        if self.seed > LARGEST_SEED:
            raise HealingError(f"seed is {self.seed}; it must be at most {LARGEST_SEED}.")

    def _check_ranges(self) -> None:
        for name in ("distill", "ramp", "warmup"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise HealingError(f"{name} is {value}; it must be between 0 and 1.")
        for name in ("learning_rate", "scheme_learning_rate", "clip"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise HealingError(f"{name} is {value}; it must be greater than 0, and finite.")
        if not 0 <= self.weight_decay < float("inf"):
            raise HealingError(f"weight_decay is {self.weight_decay}; it must be at least 0, and finite.")

    @property
    def drops_out(self) -> bool:
        """Whether activations are dropped out."""
        return self.distill == 0 if self.dropout is None else self.dropout

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON-ready values."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """Return the options that change what a run computes, JSON-ready: what a checkpoint must have in common."""
        return {
            key: value for key, value in self.to_dict().items() if key not in ("checkpoint_every", "keep_checkpoints")
        }

    def steps_for(self, length: float, processes: int) -> int:
        """Return the number of optimizer steps for windows of `length` tokens on average."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        return max(1, round(self.tokens / (length * self.batch_size * self.accumulation * processes)))
