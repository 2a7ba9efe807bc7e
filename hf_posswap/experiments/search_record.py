"""The record of a search: search.json, search.csv, and the models of the candidates that may still win."""

import hashlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from hf_posswap.experiments.cells import Cell
from hf_posswap.experiments.course import Course
from hf_posswap.experiments.recipe import recipe_of, way_on
from hf_posswap.experiments.record import Record, remove_record
from hf_posswap.experiments.search_preparation import ONE_LAYER, PreparedSearch, stage_of_round
from hf_posswap.results.files import OutputError
from hf_posswap.results.kinds import SEARCH, STOCK, Kind

MODELS, WINNER = "search-models", "winner"
"""Folders of the models of candidates, and of the winner's model."""
LONGEST_NAME = 60
"""Largest number of characters of a scheme in the name of a folder."""


class SearchRecord(Record):
    """The results of all cells of a search so far.

    Args:
        search: the result of `prepare_search`.
        folder: the results folder; None: nothing is written.

    Attributes:
        course: the course of the search.

    Raises:
        OutputError: see `Record`.
    """

    kind: ClassVar[Kind] = SEARCH
    growing: ClassVar[tuple[str, ...]] = ()

    def __init__(self, search: PreparedSearch, folder: Path | None) -> None:
        self.search = search
        super().__init__(search.prepared, folder)

    @property
    def course(self) -> Course:
        """The course of the search, given the outcomes so far."""
        return Course(self.search, self.outcomes)

    def known(self) -> list[Any]:
        """See `Record.known`."""
        return list(self.outcomes.values())

    def is_complete(self) -> bool:
        """See `Record.is_complete`."""
        return self.course.is_complete()

    def settings(self) -> dict[str, Any]:
        """See `Record.settings`."""
        return self.search.settings.to_dict()

    def cell_of(self, row: Mapping[str, Any]) -> Cell:
        """See `Record.cell_of`."""
        stage = ONE_LAYER if row["round"] is None else stage_of_round(int(row["round"]))
        return Cell(row["scheme"], STOCK if row["scheme"] == STOCK else stage, row["seed"])

    def facts(self) -> dict[str, Any]:
        """See `Record.facts`: objective, budget, rounds, ranking, winner, recipe, mixes, and what was left out."""
        course, settings = self.course, self.search.settings
        goal, rounds = course.goal(), course.rounds()
        ranking = [
            self._ranked(course, place, *entry, len(rounds) - 1)
            for place, entry in enumerate(course.ranking(), start=1)
        ]
        winner = self.winner()
        return {
            "target_length": settings.length,
            "objective": None if goal is None else goal.words,
            "budget": {"tokens": settings.tokens, "used": self.used()},
            "rounds": [
                {"round": number, "candidates": names} | self._healing_facts(course, number, len(names))
                for number, names in enumerate(rounds)
            ],
            "ranking": ranking,
            "winner": winner,
            "recipe": None if winner is None else self._recipe(course, winner),
            "mixes": self._mixes(course),
            "left_out": [{"scheme": left.scheme, "reason": left.reason} for left in self.search.left_out],
        }

    def winner(self) -> str | None:
        """Return the winner; None: the search is not complete, or every candidate of a round failed."""
        course = self.course
        found = course.ranking()[:1] if course.is_complete() else []
        return found[0][0] if found and found[0][1] == len(course.sizes()) else None

    def used(self) -> int:
        """Return the number of tokens that healing has read, over all candidates."""
        return sum(outcome.facts["healing"]["tokens"] for outcome in self.known() if "healing" in outcome.facts)

    def healed_on(self, scheme: str, number: int) -> int:
        """Return the number of tokens that a candidate was healed on, up to a round."""
        cells = (Cell(scheme, stage_of_round(before), self.search.settings.seed) for before in range(1, number + 1))
        known = (self.outcomes[cell].facts for cell in cells if cell in self.outcomes)
        return sum(facts["healing"]["tokens"] for facts in known if "healing" in facts)

    def _healing_facts(self, course: Course, number: int, candidates: int) -> dict[str, int]:
        if number == 0:
            return {"steps": 0, "tokens_each": 0}
        steps = self.search.steps(len(course.sizes()), candidates)
        return {"steps": steps, "tokens_each": steps * self.search.step_tokens}

    def _ranked(self, course: Course, place: int, scheme: str, number: int | None, last: int) -> dict[str, Any]:
        goal, losses = course.goal(), None if number is None else course.losses(scheme, number)
        entry: dict[str, Any] = {"rank": place, "scheme": scheme, "round": number}
        refused = [
            outcome.reason for cell, outcome in self.outcomes.items() if cell.scheme == scheme and outcome.reason
        ]
        if losses is None or goal is None or number is None:
            return entry | {"fate": "refused" if refused else "not measured", "reason": " ".join(refused)}
        row = next(
            row
            for row in self.outcomes[Cell(scheme, stage_of_round(number), self.search.settings.seed)].rows
            if row["length"] == course.target
        )
        fate = f"dropped after round {number}" if number < last or course.is_complete() else "in the search"
        if refused:
            fate = "failed"
        return entry | {
            "fate": "winner" if place == 1 and scheme == self.winner() else fate,
            "reason": " ".join(refused),
            "healing_tokens": self.healed_on(scheme, number),
            "loss": losses[1],
            "loss_low": row["loss_low"],
            "loss_high": row["loss_high"],
            "loss_at_train_length": losses[0],
            "lost_at_train_length": losses[0] - goal.stock,
            "holds": goal.excess(losses[0]) == 0,
            "score": goal.score(*losses),
        }

    def _recipe(self, course: Course, winner: str) -> dict[str, Any]:
        rounds = course.rounds()
        healing = [
            self.search.healing(number, len(rounds) - 1, len(rounds[number])) for number in range(1, len(rounds))
        ]
        first = self.outcomes[Cell(winner, stage_of_round(0), self.search.settings.seed)]
        folder = "OUT" if self.folder is None else str(self.folder)
        calibrated = "calibration" in first.facts
        return {
            "again": recipe_of(self.search.settings, winner, healing, calibrated, folder),
            "further": way_on(self.search.settings, f"{folder}/{WINNER}", len(healing), folder),
        }

    def _mixes(self, course: Course) -> dict[str, Any]:
        refusal = self.search.mixing_refusal
        base = course.base() if len(course.known()) > 2 else None
        costs = [] if base is None else course.layer_costs(base)
        return {
            "asked": self.search.settings.hybrids,
            "refusal": refusal if self.search.settings.hybrids else None,
            "scheme": base,
            "layers": [{"layer": layer, "cost": cost} for layer, cost in enumerate(costs)],
        }


class Models:
    """The models of the candidates that may still win, each in a folder.

    Args:
        folder: the results folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.winner = folder / MODELS, folder / WINNER

    def require_room(self) -> None:
        """Refuse a results folder without a search that has folders of the same names.

        Raises:
            OutputError: there is such a folder.
        """
        for path in (self.folder, self.winner):
            if path.exists():
                raise OutputError(
                    f"{str(path)!r} is there already, and no search that it belongs to. Give another --output-dir, or "
                    "--overwrite to remove it."
                )

    def path(self, scheme: str, number: int) -> Path:
        """Return the folder of a candidate's model after a round."""
        name = re.sub(r"[^a-z0-9_.=+-]+", "-", scheme.lower())[:LONGEST_NAME]
        digest = hashlib.sha256(scheme.encode()).hexdigest()[:8]  # names may be equal after this
        return self.folder / f"{name}-{digest}-round-{number}"

    def anew(self, scheme: str, number: int) -> Path:
        """Return the folder of a model that is to be saved, emptied of what an interrupted run left in it."""
        path = self.path(scheme, number)
        shutil.rmtree(path, ignore_errors=True)
        return path

    def known(self, scheme: str, number: int) -> Path:
        """Return the folder of a model that was saved.

        Raises:
            OutputError: it is not there.
        """
        path = self.path(scheme, number)
        if not path.is_dir():
            raise OutputError(
                f"the model of {scheme!r} after round {number} is not in {str(path)!r} any more, so the search cannot "
                "go on from there. Give another --output-dir, or --overwrite to start anew."
            )
        return path

    def keep(self, needed: Mapping[str, int]) -> None:
        """Remove all models but those of some candidates after a round of each."""
        kept = {self.path(scheme, number) for scheme, number in needed.items()}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path not in kept:
                shutil.rmtree(path)

    def finish(self, scheme: str, number: int) -> None:
        """Move the winner's model to its own folder, and remove the others.

        Raises:
            OutputError: it is in neither folder.
        """
        if self.path(scheme, number).is_dir() or not self.winner.is_dir():
            path = self.known(scheme, number)
            shutil.rmtree(self.winner, ignore_errors=True)
            path.replace(self.winner)
        shutil.rmtree(self.folder, ignore_errors=True)


def remove_search(folder: Path) -> None:
    """Remove the files and models of a search from a folder."""
    remove_record(folder, SEARCH)
    for name in (MODELS, WINNER):
        shutil.rmtree(folder / name, ignore_errors=True)
