"""The phases of a healing run: each reads windows of one length, in the attention stage or with the whole model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from hf_posswap.training.options import HealingOptions
from hf_posswap.training.supervision import Supervision

Stage = Literal["attention", "outputs"]


@dataclass(frozen=True)
class Phase:
    """A part of a run.

    Attributes:
        stage: "attention": the attention stage; "outputs": the whole model runs.
        length: tokens of a window.
        batch_size: windows in a batch.
        first: the number of optimizer steps before the phase.
        steps: its optimizer steps.
    """

    stage: Stage
    length: int
    batch_size: int
    first: int
    steps: int

    @property
    def end(self) -> int:
        """The number of optimizer steps after the phase."""
        return self.first + self.steps


def plan_phases(
    options: HealingOptions,
    supervision: Supervision,
    lengths: Sequence[int],
    typical: Callable[[int], float],
    processes: int,
) -> list[Phase]:
    """Return the phases of a run, in order.

    The attention stage comes first, on windows of the first length. The rest of the tokens is divided equally among the
    lengths, in their order. A batch of another length than the first has about as many tokens as one of the first.

    Args:
        options: the budget, the batch size and the accumulation.
        supervision: the share of the attention stage.
        lengths: tokens of a window, in turn.
        typical: returns the mean length of the windows of a length.
        processes: number of processes.
    """
    share = supervision.attention
    parts: list[tuple[Stage, int, float]] = [("attention", lengths[0], share)] if share else []
    if supervision.trains_outputs:
        parts += [("outputs", length, (1 - share) / len(lengths)) for length in lengths]
    phases: list[Phase] = []
    read, first = 0.0, 0
    for stage, length, part in parts:
        size = max(1, round(options.batch_size * lengths[0] / length))
        read += part
        if options.steps is not None:
            steps = round(options.steps * read) - first
        else:
            steps = options.steps_for(typical(length), processes, size, part)
        if steps:  # a share of very few steps may be none
            phases.append(Phase(stage, length, size, first, steps))
            first += steps
    return phases
