"""What the result files of the studies say, as docs/learnt.py writes it down: seeds merged, stock taken off."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from hf_posswap.results.groups import Group, as_group
from hf_posswap.results.kinds import CONTROL, STOCK, SWAPPED_STAGES
from hf_posswap.results.points import Point, curves_of, points
from hf_posswap.results.reading import read_result

SAME, WINDOWS = "same-targets", "windows"
SHORT, LONG = 256, 4096
"""The train length of demo:gpt2, and 16 times that."""
TOKENS = 224_000
"""1% of those that demo:gpt2 was pretrained on."""
ALIBI, T5, FREE = "alibi:trainable=true:per_layer=true", "t5:per_layer=true", "relative_bias"
CALIBRATED_SCHEMES = (FREE, T5, ALIBI)
"""Those of the small study: every layer has parameters of its own that calibration fits."""
CONTROLS = {1e-3: "control", 3e-4: "control at a third of the rate"}
"""The small study's controls, by the peak learning rate of the weights."""
SMALL_RATES = {"calibrated": 1e-3, "gentle": 3e-4}
"""Its starts from calibration, and the rate at which each was healed."""


def above(loss: Point | None, stock: Point | None) -> Point | None:
    """Return a loss over seeds with the stock model's mean taken off, or None where either is missing."""
    if loss is None or stock is None or stock.y is None:
        return None
    y, low, high = (None if value is None else value - stock.y for value in (loss.y, loss.low, loss.high))
    return replace(loss, y=y, low=low, high=high)


class Comparison:
    """A comparison, as nats above the stock model at the longest length it was trained to read.

    Args:
        path: of its compare.json.
        base: that length, if the comparison did not go so far.
    """

    name = "compare"

    def __init__(self, path: Path, base: int | None = None) -> None:
        self.result = read_result(path)
        self.base = base or int(self.result.train_length or 0)
        self.losses = {
            (curve.scheme, curve.stage, protocol, int(point.x)): point
            for protocol in (SAME, WINDOWS)
            for curve in curves_of(self.result.rows, protocol)
            for point in curve.points
            if point.y is not None
        }

    @property
    def group(self) -> Group:
        """The comparison as figures take it."""
        return as_group(self.result)

    @property
    def rate(self) -> float:
        """The peak learning rate of the weights."""
        return float(self.result.settings["healing"]["learning_rate"])

    @property
    def schemes(self) -> list[str]:
        """The schemes with any number, in the order of measuring."""
        measured = dict.fromkeys(scheme for scheme, *_ in self.losses)
        return [scheme for scheme in self.result.settings["schemes"] if scheme in measured]

    def loss(self, scheme: str, stage: str, length: int, protocol: str = SAME) -> Point | None:
        """Return a loss in nats a token, or None where nothing was measured."""
        return self.losses.get((scheme, stage, protocol, length))

    def above(self, scheme: str, stage: str, length: int, protocol: str = SAME) -> Point | None:
        """Return how far a loss is above the stock model's, by the same protocol."""
        return above(self.loss(scheme, stage, length, protocol), self.loss(STOCK, STOCK, self.base, protocol))

    def over_stock(self, scheme: str, stage: str, length: int) -> Point | None:
        """Return how far a loss is above the stock model's at the same length, for models that read so far."""
        return above(self.loss(scheme, stage, length), self.loss(STOCK, STOCK, length))

    def last_stage(self, scheme: str) -> str:
        """Return the last stage of a scheme that was measured."""
        stages = {stage for name, stage, *_ in self.losses if name == scheme}
        return next(stage for stage in reversed(SWAPPED_STAGES) if stage in stages)

    def control(self) -> Point | None:
        """Return the stock model trained again on the same tokens, above stock."""
        return self.above(STOCK, CONTROL, self.base)


class SmallStudy:
    """The study of tokens and starts, docs/results/study-small/gpt2.csv, as nats above the stock model."""

    def __init__(self, path: Path) -> None:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.rows = [row | {"length": int(row["length"]), "above_stock": float(row["above_stock"])} for row in rows]

    def above(self, scheme: str, start: str, tokens: int, length: int) -> Point | None:
        """Return a cell over its seeds, or None where nothing was measured."""
        wanted = {"scheme": scheme, "start": start, "tokens": str(tokens), "length": length}
        found = points([row for row in self.rows if wanted.items() <= row.items()], "above_stock")
        return found[0] if found else None

    def tokens(self) -> list[int]:
        """Return the budgets of healing that were measured, ascending, without none."""
        return sorted({int(row["tokens"]) for row in self.rows} - {0})


class Source(Protocol):
    """Who speaks of healed schemes."""

    name: str
    rate: float
    """Peak learning rate of the weights when it healed."""

    def above(self, scheme: str, stage: str, length: int) -> Point | None:
        """Return nats above stock, or None where nothing was measured."""


class HealedInSmall:
    """The schemes that the small study calibrated and healed on one budget at one rate.

    Args:
        small: the study.
        start: what it calls them.
        rate: the rate.
        tokens: the budget.
    """

    name = "study-small"

    def __init__(self, small: SmallStudy, start: str, rate: float, tokens: int) -> None:
        self.small, self.start, self.rate, self.tokens = small, start, rate, tokens

    def above(self, scheme: str, stage: str, length: int) -> Point | None:
        """See `Source`."""
        start, tokens = {
            "swapped": ("uncalibrated", 0),
            "calibrated": ("calibrated", 0),
            "healed": (self.start, self.tokens),
        }[stage]
        return self.small.above(scheme, start, tokens, length)


class Evidence:
    """What is known of demo:gpt2 healed on one budget, from comparisons of all schemes and from the small study.

    Of each scheme one source speaks, so that a row is of one: at the rate that healed it better, the one with more
    seeds behind the healed model.
    """

    def __init__(self, studies: Sequence[Comparison], small: SmallStudy, tokens: int) -> None:
        self.studies, self.small, self.tokens, self.base = studies, small, tokens, studies[0].base
        healed = [HealedInSmall(small, start, rate, tokens) for start, rate in SMALL_RATES.items()]
        self.sources: list[Source] = [*studies, *healed]

    @property
    def schemes(self) -> list[str]:
        """The schemes of which anything is known."""
        asked = dict.fromkeys(scheme for study in self.studies for scheme in study.result.settings["schemes"])
        return [scheme for scheme in asked if self.above(scheme, "swapped", self.base) is not None]

    @property
    def rates(self) -> list[float]:
        """The rates at which anything was healed, ascending."""
        return sorted({source.rate for source in self.sources})

    def at(self, scheme: str, rate: float) -> Source | None:
        """Return who speaks of a scheme healed at a rate, or None if it was not."""
        healed = self._that_healed(scheme, [source for source in self.sources if source.rate == rate])
        return max(healed, key=lambda source: self._healed(source, scheme).seeds, default=None)

    def at_every_rate(self, scheme: str) -> list[Source]:
        """Return who speaks of a scheme at each rate, of one study alone: the studies measured other tokens.

        Empty if no study healed it at every rate; of two that did, the one with more seeds.
        """
        healed = self._that_healed(scheme, self.sources)
        by_study: dict[str, dict[float, Source]] = {}
        for source in healed:
            by_study.setdefault(source.name, {})[source.rate] = source
        whole = [[found[rate] for rate in self.rates] for found in by_study.values() if set(found) == set(self.rates)]
        return max(whole, key=lambda of: sum(self._healed(source, scheme).seeds for source in of), default=[])

    def source(self, scheme: str) -> Source:
        """Return who speaks of a scheme."""
        return self._best(scheme, [source for rate in self.rates if (source := self.at(scheme, rate)) is not None])

    def comparison(self, scheme: str) -> Comparison:
        """Return the comparison that healed a scheme better, or the first one if none did."""
        return self._best(scheme, self.studies)

    def above(self, scheme: str, stage: str, length: int) -> Point | None:
        """Return nats above stock, the same target tokens at every length, or None where nothing was measured."""
        return self.source(scheme).above(scheme, stage, length)

    def control(self, rate: float) -> Point | None:
        """Return the small study's control at a rate."""
        return self.small.above(CONTROLS[rate], STOCK, self.tokens, self.base)

    def _best(self, scheme: str, sources: Sequence[Any]) -> Any:
        healed = self._that_healed(scheme, sources)
        return min(healed, key=lambda source: self._healed(source, scheme).y, default=self.studies[0])

    def _that_healed(self, scheme: str, sources: Sequence[Any]) -> list[Any]:
        return [source for source in sources if self._healed(source, scheme) is not None]

    def _healed(self, source: Source, scheme: str) -> Any:
        return source.above(scheme, "healed", self.base)


def text(point: Point | None) -> str:
    """Return a value in nats, with the lowest and the highest of its seeds if there are several."""
    if point is None or point.y is None:
        return "—"
    spread = "" if point.low is None or point.high is None else f" ({point.low:.3f}–{point.high:.3f})"
    return f"{point.y:.3f}{spread}"


def rate_text(rate: float) -> str:
    """Return a learning rate as options write it: 3e-4."""
    return f"{rate:.0e}".replace("e-0", "e-")


def mean_by_position(rows: Iterable[Mapping[str, Any]], length: int, first: int, last: int) -> float | None:
    """Return the mean loss of the tokens at positions `first` to `last` (exclusive) of windows of a length.

    The bins of a loss-by-position file are taken whole: those that lie within.
    """
    found = [
        (row["loss"], row["tokens"])
        for row in rows
        if row["length"] == length
        and row["loss"] is not None
        and row["position_from"] >= first
        and row["position_to"] <= last
    ]
    weight = sum(tokens for _, tokens in found)
    return sum(loss * tokens for loss, tokens in found) / weight if weight else None
