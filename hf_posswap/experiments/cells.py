"""The cells of a comparison: each is one model at one stage, measured at every length."""

from dataclasses import dataclass, field
from typing import Any

from hf_posswap.experiments.settings import ComparisonSettings
from hf_posswap.results.kinds import CONTROL, STOCK, SWAPPED_STAGES


@dataclass(frozen=True, order=True)
class Cell:
    """One point of a comparison.

    Attributes:
        scheme: the scheme as the user wrote it, or "stock".
        stage: "stock", "control", "swapped", "calibrated" or "healed".
        seed: seed of the random numbers of the scheme and of healing.
    """

    scheme: str
    stage: str
    seed: int

    def __str__(self) -> str:
        return f"{self.scheme} {self.stage}" if self.scheme != self.stage else self.scheme


@dataclass(frozen=True)
class Outcome:
    """The result of a cell.

    Attributes:
        cell: the cell.
        status: "measured"; "refused" if its rows are gaps; "absent" if the scheme does not have the stage; or "same" if
            all its numbers equal those of the cell with the first seed, because nothing in it is random.
        reason: the reason why the cell has no numbers.
        rows: tidy rows, one for each protocol and length.
        facts: further facts: digest of the scheme's initial parameters, calibration, losses of healing, seconds.
    """

    cell: Cell
    status: str
    reason: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)
    facts: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Lane:
    """The stages that one loaded model goes through in order.

    Attributes:
        scheme: the scheme as the user wrote it, or "stock".
        seed: seed of the random numbers of the scheme and of healing.
        stages: names of the stages.
    """

    scheme: str
    seed: int
    stages: tuple[str, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The lane's cells."""
        return tuple(Cell(self.scheme, stage, self.seed) for stage in self.stages)


def plan_lanes(settings: ComparisonSettings) -> list[Lane]:
    """Return the lanes in the order of measuring: first stock, then all other lanes seed by seed."""
    stages = ["swapped"]
    if settings.calibrate:
        stages.append("calibrated")
    if settings.healing is not None:
        stages.append("healed")
    lanes = [Lane(STOCK, settings.seed, (STOCK,))]
    for seed in settings.all_seeds():
        if settings.control:
            lanes.append(Lane(STOCK, seed, (CONTROL,)))
        lanes += [Lane(scheme, seed, tuple(stages)) for scheme in settings.schemes]
    return lanes


def in_order(settings: ComparisonSettings) -> list[Cell]:
    """Return the cells in the order of the result: stock, control, then scheme by scheme and stage by stage."""
    cells = [cell for lane in plan_lanes(settings) for cell in lane.cells]
    schemes = [STOCK, *settings.schemes]
    stages = [STOCK, CONTROL, *SWAPPED_STAGES]
    return sorted(cells, key=lambda cell: (schemes.index(cell.scheme), stages.index(cell.stage), cell.seed))
