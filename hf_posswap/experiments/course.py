"""The course of a search: what is measured next, what stays and how the candidates rank, given what is known."""

from collections.abc import Iterator, Mapping
from typing import Any

from hf_posswap.experiments.candidates import in_layers, mixable, mixes
from hf_posswap.experiments.cells import Cell, Outcome
from hf_posswap.experiments.halving import Goal, best, half, round_sizes, staying
from hf_posswap.experiments.search_preparation import ONE_LAYER, PreparedSearch, round_of_stage, stage_of_round
from hf_posswap.results.kinds import STOCK

Losses = tuple[float, float]
"""Loss at the old length and at the target length, in nats a token."""


class Course:
    """The course of one search. It computes nothing itself, so it is the same after an interruption.

    Args:
        search: the checked inputs.
        outcomes: the outcomes so far, by cell; the course follows later changes of it.
    """

    def __init__(self, search: PreparedSearch, outcomes: Mapping[Cell, Outcome]) -> None:
        self.search, self.outcomes = search, outcomes
        self.old, self.target = search.facts.train_length, search.settings.length

    def stages(self) -> Iterator[list[Cell]]:
        """Yield the cells of each part of the search; those of a part depend on the outcomes of the parts before."""
        yield [Cell(STOCK, STOCK, self.search.settings.seed)]
        wholes = list(self.search.candidates)
        yield self._cells(wholes, 0)
        mixed: list[str] = []
        base = self.base()
        if base is not None:
            yield self.layer_cells(base)
            mixed = mixes(base, self.layer_costs(base), self.search.facts)
            yield self._cells(mixed, 0)
        survivors = wholes + mixed
        sizes = round_sizes(len(survivors))
        for number, size in enumerate(sizes, start=1):
            survivors = self._staying(number - 1, survivors, size, len(sizes))
            if not survivors:
                return
            yield self._cells(survivors, number)

    def known(self) -> list[list[Cell]]:
        """Return the parts of the search up to the first that is not complete, this one included."""
        found = []
        for cells in self.stages():
            found.append(cells)
            if any(cell not in self.outcomes for cell in cells):
                break
        return found

    def is_complete(self) -> bool:
        """Return whether everything is measured."""
        return all(cell in self.outcomes for cells in self.known() for cell in cells)

    def goal(self) -> Goal | None:
        """Return the objective; None: the stock model is not measured yet."""
        loss = self._loss(Cell(STOCK, STOCK, self.search.settings.seed), self.old)
        return None if loss is None else Goal(loss, self.search.settings.lost)

    def losses(self, scheme: str, number: int) -> Losses | None:
        """Return the losses of a candidate after a round; None: they are not known."""
        cell = self._cell(scheme, number)
        old, target = self._loss(cell, self.old), self._loss(cell, self.target)
        return None if old is None or target is None else (old, target)

    def scores(self, number: int, candidates: list[str], final: bool = False) -> dict[str, Any]:
        """Return the keys by which candidates are sorted after a round; those without a loss have none.

        Args:
            number: the round.
            candidates: the candidates of the round.
            final: whether it is the last round, see `Goal.final`.
        """
        goal = self.goal()
        found = {name: self.losses(name, number) for name in candidates}
        known = {name: losses for name, losses in found.items() if losses is not None}
        if goal is None:
            return {}
        return {name: goal.final(*both) if final else goal.score(*both) for name, both in known.items()}

    def base(self) -> str | None:
        """Return the scheme of the mixes: the best of round 0 that can act in some of the layers; None: no mixes."""
        if self.search.mixing_refusal is not None:
            return None
        names = [name for name in self.search.candidates if mixable(name, self.search.facts)]
        return next(iter(best(self.scores(0, names), 1)), None)

    def layer_cells(self, base: str) -> list[Cell]:
        """Return the cells that measure what swapping each layer alone costs."""
        facts, seed = self.search.facts, self.search.settings.seed
        return [Cell(in_layers(base, [layer], facts), ONE_LAYER, seed) for layer in range(facts.num_layers)]

    def layer_costs(self, base: str) -> list[float | None]:
        """Return what swapping each layer alone costs at the old length, in nats a token; None: it is not known."""
        goal = self.goal()
        losses = [self._loss(cell, self.old) for cell in self.layer_cells(base)]
        return [None if loss is None or goal is None else loss - goal.stock for loss in losses]

    def rounds(self) -> list[list[str]]:
        """Return the candidates of each round so far; round 0 has the mixes too."""
        found: dict[int, list[str]] = {}
        for cells in self.known():
            for cell in cells:
                number = round_of_stage(cell.stage)
                if number is not None:
                    found.setdefault(number, []).append(cell.scheme)
        return [found[number] for number in sorted(found)]

    def sizes(self) -> list[int]:
        """Return the number of candidates in each round of healing, as far as the candidates are known."""
        rounds = self.rounds()
        return round_sizes(len(rounds[0])) if rounds else []

    def models(self) -> dict[str, int]:
        """Return the candidates that may still win, with the round whose model of theirs is needed."""
        rounds = self.rounds()
        if not rounds:
            return {}
        number, entered = len(rounds) - 1, rounds[-1]
        sizes = self.sizes()
        last = number == len(sizes)
        waiting = [name for name in entered if self._cell(name, number) not in self.outcomes]
        before = {name: number - 1 for name in waiting if number > 0}
        if last:
            return before | dict.fromkeys(best(self.scores(number, entered, final=True), 1), number)
        # In round 0 mixes may follow, so that more candidates stay than the half of those known.
        size = half(len(self.search.candidates) + self.search.mixes) if number == 0 else sizes[number]
        return before | dict.fromkeys(self._staying(number, entered, size, len(sizes)), number)

    def ranking(self) -> list[tuple[str, int | None]]:
        """Return the candidates, the best first, each with the last round in which it was measured.

        Candidates of a later round come first; those without a loss come last.
        """
        rounds, sizes = self.rounds(), self.sizes()
        found: dict[str, int | None] = {}
        for number in reversed(range(len(rounds))):
            names = [name for name in rounds[number] if name not in found]
            for name in best(self.scores(number, names, number == len(sizes)), len(names)):
                found[name] = number
        return [*found.items(), *((name, None) for name in (rounds or [[]])[0] if name not in found)]

    def _staying(self, number: int, candidates: list[str], size: int, rounds: int) -> list[str]:
        """Return the candidates of a round that go on to the next, which is planned for `size`."""
        return staying(self.scores(number, candidates), size, self.search.most_survivors(rounds))

    def _cells(self, schemes: list[str], number: int) -> list[Cell]:
        return [self._cell(scheme, number) for scheme in schemes]

    def _cell(self, scheme: str, number: int) -> Cell:
        return Cell(scheme, stage_of_round(number), self.search.settings.seed)

    def _loss(self, cell: Cell, length: int) -> float | None:
        rows = self.outcomes[cell].rows if cell in self.outcomes else []
        return next((row["loss"] for row in rows if row["length"] == length), None)
