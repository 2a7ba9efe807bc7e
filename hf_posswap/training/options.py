"""Options of a healing run, validated on construction."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from hf_posswap.common.options import Switch, check_options, option
from hf_posswap.errors import PosSwapError

ObjectiveName = Literal["lm", "mlm", "embedding"]
Trained = Literal["all", "scheme"]
Precision = Literal["no", "bf16"]
HEALING, TEXTS, RUN = "How to heal", "What to heal on", "The run"
RECIPE = {"distill": 1.0, "batch_size": 16, "learning_rate": 1e-3, "scheme_learning_rate": 2e-2}
"""The options that gave small models the lowest loss after healing. They are the defaults of `compare`."""


class HealingError(PosSwapError):
    """A healing run cannot start or continue, because of its options, texts, checkpoints or losses."""


@dataclass(frozen=True, kw_only=True)
class HealingOptions:
    """Options of healing: everything that changes the losses, so that equal options give equal curves.

    The command line, its help and the reference take the meaning, default and limits of each option from here.

    Raises (on construction):
        HealingError: an option out of range, or options that cannot be combined.
    """

    tokens: int | None = option(
        None, "Number of tokens to heal on, in all processes together; or give the steps.", minimum=1, group=TEXTS
    )
    steps: int | None = option(None, "Number of optimizer steps.", minimum=1, group=TEXTS)
    length: int | None = option(
        None, "Tokens of a window. Default: the train length, at most 512.", minimum=2, group=TEXTS
    )
    shortest_length: int | None = option(
        None,
        "Encoders: shortest length to train on. Each batch is cut to the length, its half, its quarter, …, chosen at "
        "random. Default: 32 for embeddings, otherwise the length.",
        minimum=4,
        group=TEXTS,
    )
    batch_size: int = option(
        8, "Windows in a batch of one process.", minimum=1, group=HEALING, card="windows in a batch"
    )
    accumulation: int = option(
        1,
        "Number of batches whose gradients are added up for one step.",
        minimum=1,
        group=HEALING,
        card="batches in a step",
    )
    objective: ObjectiveName | None = option(
        None, "Training objective. Default: the one of the model's head.", group=HEALING, card="objective"
    )
    distill: float = option(
        0.0,
        "Weight of the stock model's outputs as the target; the rest is the objective's own loss.",
        minimum=0,
        maximum=1,
        group=HEALING,
        switch=Switch("Learn from the stock model's outputs.", "--distill", "--distill-weight", 1.0),
        card="weight of the stock model's outputs in the loss",
    )
    ramp: float = option(
        0.0,
        "Share of the steps in which the old mechanism fades out while the new one fades in.",
        minimum=0,
        maximum=1,
        group=HEALING,
        switch=Switch("Fade the old mechanism out, the new one in.", "--ramp", "--ramp-share", 0.5),
        card="share of the steps that fade the old mechanism out",
    )
    train: Trained = option(
        "all", "What to train: all weights that require a gradient, or the scheme's parameters only.", group=HEALING
    )
    learning_rate: float = option(
        3e-4,
        "Peak learning rate of the weights; 0.001 heals more if calibration cannot fit the scheme.",
        above=0,
        group=HEALING,
        card="peak learning rate",
    )
    scheme_learning_rate: float = option(
        1e-2,
        "Peak learning rate of the scheme's parameters.",
        above=0,
        group=HEALING,
        card="peak learning rate of the scheme",
    )
    weight_decay: float = option(
        0.01, "Weight decay of matrices; the scheme's parameters, biases and norms have none.", minimum=0, group=HEALING
    )
    warmup: float = option(
        0.05,
        "Share of the steps in which the rate rises, 3 steps or more unless it is 0; it then falls as a cosine to 0.",
        minimum=0,
        maximum=1,
        group=HEALING,
    )
    clip: float = option(1.0, "Maximum norm of the gradient.", above=0, group=HEALING)
    precision: Precision = option(
        "no",
        "bf16: compute in bfloat16 by autocast; the weights keep their dtype. There is a warning if the device has no "
        "instructions for it.",
        group=RUN,
    )
    gradient_checkpointing: bool = option(
        False, "Compute activations again in the backward pass: less memory, more time.", group=RUN
    )
    dropout: bool | None = option(
        None,
        "Use the dropout of the model's config. Default: not with distillation, whose target it would disturb.",
        group=HEALING,
    )
    packing: bool | None = option(
        None, "Pack several documents into a window, masked from each other. Default: in causal models.", group=TEXTS
    )
    seed: int = option(
        0, "Seed of the order of windows, of masked tokens and of dropout.", minimum=0, group=RUN, card="seed"
    )
    checkpoint_every: int = option(200, "Steps between checkpoints; 0: none.", minimum=0, group=RUN)
    keep_checkpoints: int = option(2, "Number of the newest checkpoints to keep.", minimum=1, group=RUN)

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.steps is None):
            raise HealingError(
                f"give a budget of tokens or of steps, one of the two: tokens is {self.tokens}, steps is {self.steps}."
            )
        check_options(self, HealingError)

    @property
    def drops_out(self) -> bool:
        """Whether dropout is on."""
        return self.distill == 0 if self.dropout is None else self.dropout

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON-ready values."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """Return the options that change what a run computes, JSON-ready; resuming a checkpoint requires equal ones."""
        return {
            key: value for key, value in self.to_dict().items() if key not in ("checkpoint_every", "keep_checkpoints")
        }

    def steps_for(self, length: float, processes: int) -> int:
        """Return the number of optimizer steps for windows of `length` tokens on average."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        return max(1, round(self.tokens / (length * self.batch_size * self.accumulation * processes)))
