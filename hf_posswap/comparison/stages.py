"""Takes one model through its stages (loaded, swapped, calibrated, healed) and measures the wanted ones."""

import copy
import dataclasses
import hashlib
import time
from collections.abc import Collection, Iterator
from typing import Any

import torch

from hf_posswap.auto import auto_class
from hf_posswap.calibration import calibration_refusal
from hf_posswap.comparison.cells import Cell, Lane, Outcome
from hf_posswap.comparison.measuring import AUTO_CLASSES
from hf_posswap.comparison.observer import Observer
from hf_posswap.comparison.preparation import CALIBRATION_WORK, HEALING_WORK, Prepared
from hf_posswap.errors import PosSwapError, SourceError, UnsupportedError
from hf_posswap.evaluation.perplexity import LengthRow
from hf_posswap.schemes import parse_scheme
from hf_posswap.sources import load_model
from hf_posswap.swapping import swap
from hf_posswap.training.distribution import make_accelerator
from hf_posswap.training.loop import HealingObserver, heal
from hf_posswap.training.optimization import scheme_parameters
from hf_posswap.training.options import HealingOptions
from hf_posswap.training.stages import calibrate_on, control_options


class _AbsentError(Exception):
    """This scheme has no such stage; the next stages follow without it."""


def walk(
    prepared: Prepared, lane: Lane, wanted: Collection[str], first_start: str | None, observer: Observer
) -> Iterator[Outcome]:
    """Take one model through its stages, and yield the result of each wanted stage as soon as it is known.

    Args:
        prepared: the result of `prepare`.
        lane: the scheme, its seed and its stages.
        wanted: the stages to measure; other stages run only if a wanted stage comes after them.
        first_start: the `start` of the swapped model with the first seed, if this is another seed.
        observer: callbacks for progress.
    """
    last = max(lane.stages.index(stage) for stage in wanted)
    way = _Way(prepared, lane, observer)
    refusal = ""
    for cell in lane.cells[: last + 1]:
        began, measured = time.perf_counter(), cell.stage in wanted
        outcome = Outcome(cell, "absent", refusal) if refusal else _outcome(way, cell, measured, first_start)
        if outcome.status == "refused":
            refusal = outcome.reason
        if measured:
            seconds = {"seconds": round(time.perf_counter() - began, 3)}
            yield dataclasses.replace(outcome, facts=outcome.facts | seconds)


def _outcome(way: "_Way", cell: Cell, measured: bool, first_start: str | None) -> Outcome:
    try:
        facts = way.reach(cell)
    except _AbsentError as error:
        return Outcome(cell, "absent", str(error))
    except SourceError:  # not a gap of this cell: the model cannot be loaded at all
        raise
    except PosSwapError as error:
        return Outcome(cell, "refused", str(error), way.gaps(cell, str(error)))
    if cell.stage in ("swapped", "calibrated") and way.start == first_start:
        return Outcome(cell, "same", "nothing in it is random", facts=facts)
    return Outcome(cell, "measured", rows=way.measure(cell) if measured else [], facts=facts)


class _Way:
    """A model and the transitions from one stage to the next.

    Attributes:
        start: digest of the scheme's parameters right after the swap; equal digests lead to equal numbers.
    """

    def __init__(self, prepared: Prepared, lane: Lane, observer: Observer) -> None:
        self.prepared, self.settings, self.lane, self.observer = prepared, prepared.settings, lane, observer
        self.model: Any = None
        self.start = ""

    def reach(self, cell: Cell) -> dict[str, Any]:
        """Take the model from the previous stage to the cell's, and return facts about the transition, JSON-ready.

        Raises:
            PosSwapError: the model or the scheme does not allow it.
        """
        steps = {
            "stock": self._load,
            "control": self._control,
            "swapped": self._swap,
            "calibrated": self._calibrate,
            "healed": self._heal,
        }
        return steps[cell.stage](cell)

    def measure(self, cell: Cell) -> list[dict[str, Any]]:
        """Return the rows of the model in its present state."""
        self.observer.activity(cell, "measuring")
        return self._labelled(cell, self.prepared.measure.rows(self.model, self.observer.worked))

    def gaps(self, cell: Cell, reason: str) -> list[dict[str, Any]]:
        """Return rows without a loss, with the reason in each."""
        return self._labelled(cell, self.prepared.measure.gaps(reason))

    def _labelled(self, cell: Cell, rows: list[LengthRow]) -> list[dict[str, Any]]:
        label = {"model": self.settings.model, "scheme": cell.scheme, "stage": cell.stage, "seed": cell.seed}
        return [label | dataclasses.asdict(row) for row in rows]

    def _load(self, cell: Cell) -> dict[str, Any]:
        self.observer.activity(cell, "loading")
        # Copy the configuration, because a swap changes it.
        config = copy.deepcopy(self.prepared.config)
        head = auto_class(AUTO_CLASSES[self.prepared.measure.objective])
        loaded = load_model(self.settings.model, head, config=config, dtype=self.settings.dtype)
        self.model = loaded.to(self.settings.device)
        self.prepared.measure.remember(self.model)
        return {}

    def _swap(self, cell: Cell) -> dict[str, Any]:
        reasons = {refusal.scheme: refusal.reason for refusal in self.prepared.refusals}
        if cell.scheme in reasons:
            raise UnsupportedError(reasons[cell.scheme])
        self._load(cell)
        torch.manual_seed(cell.seed)  # a scheme may start from random numbers
        swap(self.model, parse_scheme(cell.scheme))
        self.start = _digest(self.model)
        return {"start": self.start}

    def _calibrate(self, cell: Cell) -> dict[str, Any]:
        refusal = calibration_refusal(self.model)
        if refusal is not None:
            raise _AbsentError(refusal)
        self.observer.activity(cell, "calibrating")
        tokens = self.settings.calibration_tokens

        def layer_done(_: int, layers: int) -> None:
            self.observer.worked(CALIBRATION_WORK * tokens / layers)

        report = calibrate_on(
            self.model,
            self.prepared.documents,
            self.prepared.tokenizer,
            tokens=tokens,
            progress=layer_done,
        )
        return {"calibration": dataclasses.asdict(report)}

    def _heal(self, cell: Cell) -> dict[str, Any]:
        assert self.settings.healing is not None
        return self._heal_with(cell, dataclasses.replace(self.settings.healing, seed=cell.seed))

    def _control(self, cell: Cell) -> dict[str, Any]:
        assert self.settings.healing is not None
        self._load(cell)
        return self._heal_with(cell, control_options(dataclasses.replace(self.settings.healing, seed=cell.seed)))

    def _heal_with(self, cell: Cell, options: HealingOptions) -> dict[str, Any]:
        self.observer.activity(cell, "healing")
        accelerator = make_accelerator(options, cpu=self.settings.device == "cpu")
        report = heal(
            self.model,
            self.prepared.documents,
            self.prepared.tokenizer,
            options,
            accelerator=accelerator,
            observer=_HealingSteps(self.observer),
        )
        accelerator.free_memory()
        facts = report.to_dict()
        losses = [row["loss"] for row in facts.pop("history")]
        return {"healing": facts | {"losses": losses}}


class _HealingSteps(HealingObserver):
    """Reports the steps of healing to the comparison's observer."""

    def __init__(self, observer: Observer) -> None:
        self.observer, self.steps, self.tokens = observer, 0, 0

    def started(self, steps: int, done: int) -> None:
        self.steps = steps

    def step(self, row: dict[str, Any]) -> None:
        self.observer.worked(HEALING_WORK * (row["tokens"] - self.tokens))
        self.tokens = row["tokens"]
        self.observer.healing_step(row, self.steps)


def _digest(model: Any) -> str:
    digest = hashlib.sha256()
    for name, weight in scheme_parameters(model).items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()
