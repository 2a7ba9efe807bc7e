"""The second stage of calibration: gradient steps on the scheme's own parameters against the stock model's outputs."""

from collections.abc import Callable
from typing import Any

from hf_posswap.auto import CALIBRATION_LENGTH
from hf_posswap.swapped.questions import train_length
from hf_posswap.training.loop import HealingObserver, HealingReport, heal
from hf_posswap.training.options import HealingOptions, Precision
from hf_posswap.training.texts import Documents

LEARNING_RATE = 0.05


class _Progress(HealingObserver):
    def __init__(self, report: Callable[[int, int], None]) -> None:
        self.report, self.steps = report, 0

    def started(self, steps: int, done: int) -> None:
        self.steps = steps

    def step(self, row: dict[str, Any]) -> None:
        self.report(row["step"], self.steps)


def refine(
    model: Any,
    documents: Documents,
    tokenizer: Any,
    tokens: int,
    *,
    batch_size: int = 1,
    learning_rate: float = LEARNING_RATE,
    precision: Precision = "no",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> HealingReport:
    """Train only a swapped model's scheme, with its weights frozen, towards the stock model's outputs.

    Args:
        model: a swapped model, preferably calibrated; changed in place.
        documents: texts; no labels are needed.
        tokenizer: the model's tokenizer.
        tokens: number of tokens to read.
        batch_size: windows of a step. The scheme has few parameters, so small batches and more steps work best.
        learning_rate: peak learning rate. Biases are of the order of 1, so it is larger than for weights.
        precision: "bf16" computes in bfloat16 by autocast; the parameters keep their dtype.
        seed: seed of the order of the windows.
        progress: called with (steps done, steps).

    Returns:
        The divergence from the stock model in nats a token, step by step.

    Raises:
        HealingError: the scheme has no parameters, or the text is too short; see `heal`.
    """
    options = HealingOptions(
        tokens=tokens,
        length=min(CALIBRATION_LENGTH, train_length(model)),
        batch_size=batch_size,
        supervise=("logits",),
        train="scheme",
        learning_rate=learning_rate,
        scheme_learning_rate=learning_rate,
        checkpoint_every=0,
        precision=precision,
        seed=seed,
    )
    observer = None if progress is None else _Progress(progress)
    return heal(model, documents, tokenizer, options, observer=observer)
