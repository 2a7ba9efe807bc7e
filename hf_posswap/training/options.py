"""Options of a healing run, validated on construction."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from hf_posswap.common.options import Switch, check_options, option
from hf_posswap.errors import PosSwapError
from hf_posswap.training.supervision import Supervision, supervision_help

ObjectiveName = Literal["lm", "mlm", "embedding"]
Trained = Literal["all", "scheme"]
Precision = Literal["no", "bf16"]
Counting = Literal["counted", "skipped"]
HEALING, TEXTS, RUN = "How to heal", "What to heal on", "The run"
RECIPE: dict[str, Any] = {"scheme_learning_rate": 2e-2}
"""The options that gave small models the lowest loss after healing. They are the defaults of `compare` and `search`."""
OF_EXPERIMENTS = ("tokens", "length", "precision", "supervise", "learning_rate", "batch_size", *RECIPE)
"""The options of healing that `compare` and `search` take."""


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
    length: tuple[int, ...] | int | None = option(
        None,
        "Tokens of a window; of several, each for an equal share of the tokens, in turn. Default: the train length, at "
        "most 512.",
        minimum=2,
        metavar="N,N,…",
        group=TEXTS,
    )
    positions: Counting = option(
        "counted",
        "skipped: in each window the positions skip ahead once, by a random number, so that far distances occur in "
        "short windows.",
        group=TEXTS,
        card="positions",
    )
    target_length: int | None = option(
        None,
        "The length that skipped positions reach. Default: 8 times the window, or the scheme's longest position.",
        minimum=2,
        group=TEXTS,
    )
    shortest_length: int | None = option(
        None,
        "Encoders: shortest length to train on. Each batch is cut to the length, its half, its quarter, …, chosen at "
        "random. Default: 32 for embeddings, otherwise the length.",
        minimum=4,
        group=TEXTS,
    )
    batch_size: int = option(
        4, "Windows in a batch of one process.", minimum=1, group=HEALING, card="windows in a batch"
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
    supervise: tuple[str, ...] = option(
        (),
        f"What the model learns from, with weights. {supervision_help()}. Default: logits; "
        "for encoders logits and hidden; for a stock model labels.",
        metavar="NAME[=WEIGHT],…",
        group=HEALING,
        card="learns from",
    )
    distill: float = option(
        0.0,
        "The old name of supervise=logits (embeddings: and hidden): its weight; the rest is the weight of labels.",
        minimum=0,
        maximum=1,
        group=HEALING,
        switch=Switch("The old name of --supervise logits.", "--distill", "--distill-weight", 1.0),
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
    learning_rate: float | None = option(
        None,
        "Peak learning rate of the weights. Default: 0.0003 for a causal model that starts near the stock model, and "
        "0.001 for one that starts far from it; 0.001 for adapters; 0.0005 for encoders.",
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
        if self.length == ():
            raise HealingError("length is an empty list. Give the tokens of a window, such as 512, or leave it out.")
        if len(self.lengths) == 1:
            object.__setattr__(self, "length", self.lengths[0])
        if self.distill > 0 and self.supervise:
            raise HealingError(
                f"distill={self.distill:g} is the old name of a supervision, and supervise is "
                f"{','.join(self.supervise)!r}: leave distill out."
            )
        if self.target_length is not None and self.positions == "counted":
            raise HealingError(
                f"target_length={self.target_length} is for positions that skip: give positions='skipped' "
                "(--positions skipped) too, or leave it out."
            )
        if self.positions == "skipped" and self.packing:
            raise HealingError(
                "packing=True counts the positions of each document from 0, and positions='skipped' skips within one "
                "document. Leave packing out."
            )
        supervision = self.supervision()
        if supervision.attention and self.ramp:
            raise HealingError(
                f"ramp={self.ramp:g} begins with the old mechanism, and supervision 'attention' would train the new "
                "one before it. Leave one of the two out."
            )

    @property
    def peak_rate(self) -> float:
        """The peak learning rate of the weights, once it was chosen."""
        assert self.learning_rate is not None
        return self.learning_rate

    @property
    def names_supervision(self) -> bool:
        """Whether the options say what the model learns from; otherwise `choose_options` chooses it."""
        return bool(self.supervise) or self.distill > 0

    def supervision(self, objective: str | None = None, layers: int = 1) -> Supervision:
        """Return what the model learns from; without words, the stock model's outputs and hidden states.

        `choose_options` chooses the words for a model.

        Args:
            objective: name of the objective; `distill` means the hidden states too if it is "embedding".
            layers: number of the model's layers; `distill` weighs each layer's hidden states as much as the outputs.

        Raises:
            HealingError: a word of `supervise` is unknown, or its weight cannot be used.
        """
        if self.distill > 0:
            hidden = self.distill * layers if objective == "embedding" else 0.0
            return Supervision(labels=1 - self.distill, logits=self.distill, hidden=hidden)
        try:
            return Supervision.of(self.supervise or ("logits", "hidden"))
        except ValueError as reason:
            raise HealingError(str(reason)) from None

    @property
    def drops_out(self) -> bool:
        """Whether dropout is on."""
        return not self.supervision().has_teacher if self.dropout is None else self.dropout

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON-ready values, equal to those read from a file."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def identity(self) -> dict[str, Any]:
        """Return the options that change what a run computes, JSON-ready; resuming a checkpoint requires equal ones."""
        return {
            key: value for key, value in self.to_dict().items() if key not in ("checkpoint_every", "keep_checkpoints")
        }

    def steps_for(self, length: float, processes: int, batch_size: int | None = None, share: float = 1.0) -> int:
        """Return the number of optimizer steps; of a budget of tokens, those of a share of it.

        Args:
            length: the mean length of a window.
            processes: number of processes.
            batch_size: windows in a batch. Default: that of the options.
            share: share of the tokens.
        """
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        windows = (batch_size or self.batch_size) * self.accumulation * processes
        return max(1, round(share * self.tokens / (length * windows)))

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of windows, in turn; empty: the default."""
        return () if self.length is None else (self.length,) if isinstance(self.length, int) else self.length


def refuse_idle_adapters(options: HealingOptions) -> None:
    """Refuse options that would train a model's scheme alone, for a model with adapters.

    Raises:
        HealingError: `train` is `"scheme"`.
    """
    if options.train == "scheme":
        raise HealingError(
            "train='scheme' would leave the adapters as they are, and these are what LoRA is for. Leave one of the two "
            "out: adapters train beside the scheme's parameters, with train='all'."
        )
