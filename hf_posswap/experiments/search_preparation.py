"""Checks all settings of a search before any long computation, and chooses its candidates."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from hf_posswap.errors import UnsupportedError
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.experiments.candidates import (
    default_candidates,
    mixing_refusal,
    model_facts,
    numbers_kept,
    unsuited,
)
from hf_posswap.experiments.cells import Cell
from hf_posswap.experiments.halving import least_tokens, round_sizes, share
from hf_posswap.experiments.measuring import objective_of
from hf_posswap.experiments.preparation import Prepared, Refusal, prepare
from hf_posswap.experiments.settings import SearchSettings
from hf_posswap.experiments.stages import CALIBRATION_WORK, HEALING_WORK
from hf_posswap.results.kinds import STOCK
from hf_posswap.schemes import ModelFacts
from hf_posswap.sources import load_config
from hf_posswap.training.loop import healing_lengths
from hf_posswap.training.options import HealingOptions

ONE_LAYER = "one layer"
"""Stage of the cells that measure what swapping one layer costs."""


def stage_of_round(number: int) -> str:
    """Return the stage of the cells of a round."""
    return f"round {number}"


def round_of_stage(stage: str) -> int | None:
    """Return the round of a cell's stage; None for the stock model and for single layers."""
    return int(stage.removeprefix("round ")) if stage.startswith("round ") else None


@dataclass(frozen=True)
class PreparedSearch:
    """The checked inputs of a search.

    Attributes:
        settings: the settings.
        prepared: the inputs that a search shares with a comparison of its candidates.
        facts: the model's properties.
        candidates: the schemes to try, without mixes.
        left_out: registered schemes that are no candidates, with reasons.
        mixing_refusal: why no mixes are candidates; None: there are mixes.
    """

    settings: SearchSettings
    prepared: Prepared
    facts: ModelFacts
    candidates: tuple[str, ...]
    left_out: tuple[Refusal, ...]
    mixing_refusal: str | None

    @property
    def number_of_seeds(self) -> int:
        """Number of seeds."""
        return 1

    @property
    def mixes(self) -> int:
        """The number of mixes among the candidates."""
        return 0 if self.mixing_refusal is not None else len(numbers_kept(self.facts.num_layers))

    @property
    def step_tokens(self) -> int:
        """Largest number of tokens that one step of healing reads."""
        return step_tokens(self.settings.healing, self.prepared.train_length)

    def steps(self, rounds: int, survivors: int) -> int:
        """Return the number of steps of healing for one candidate in one round."""
        return share(self.settings.tokens, rounds, survivors) // self.step_tokens

    def most_survivors(self, rounds: int) -> int:
        """Return how many candidates a round can have, each with one step of healing at least."""
        return self.settings.tokens // (rounds * self.step_tokens)

    def healing(self, number: int, rounds: int, survivors: int) -> HealingOptions:
        """Return the options of healing one candidate in one round, which reads the text in an order of its own.

        Args:
            number: the round, counted from 1.
            rounds: number of rounds.
            survivors: number of candidates in the round.
        """
        steps, seed = self.steps(rounds, survivors), self.settings.seed + number - 1
        return dataclasses.replace(self.settings.healing, tokens=None, steps=steps, seed=seed)

    def work(self, cell: Cell) -> float:
        """Return the approximate work for a cell; measuring one token is a work of 1."""
        measuring, number = self.prepared.measure.tokens, round_of_stage(cell.stage)
        if number:
            sizes = round_sizes(len(self.candidates) + self.mixes)
            place = min(number, len(sizes)) - 1
            return measuring + HEALING_WORK * self.step_tokens * self.steps(len(sizes), sizes[place])
        return measuring + (0.0 if cell.scheme == STOCK else CALIBRATION_WORK * self.settings.calibration_tokens)


def prepare_search(settings: SearchSettings) -> PreparedSearch:
    """Check the settings against the model and the texts, choose the candidates, and tokenise the texts.

    Raises:
        PosSwapError: see `prepare`; or the target length is not above the train length, a scheme that the settings name
            cannot be a candidate, no scheme can, the model is an encoder without a masked-token head, or the tokens are
            too few for a step of each candidate in each round.
    """
    config = load_config(settings.model)
    facts, rows = model_facts(config)
    if settings.length <= facts.train_length:
        raise EvaluationError(
            f"the target length is {settings.length} tokens, and {settings.model!r} was trained on texts of "
            f"{facts.train_length}: it reads that far already. Give a longer one, such as --length "
            f"{4 * facts.train_length}."
        )
    if objective_of(config) == "embedding":
        raise EvaluationError(
            f"{settings.model!r} embeds texts and has no masked-token head, so it has no loss at a length that the "
            "stock model cannot read. Give a model with such a head, or measure each scheme by retrieval: hf-posswap "
            "evaluate MODEL --pos-scheme SCHEME --measure retrieval."
        )
    names = settings.schemes or tuple(default_candidates(facts))
    refusals = unsuited(names, facts, settings.length)
    refused = {refusal.scheme for refusal in refusals}
    candidates = tuple(name for name in names if name not in refused)
    if not candidates or (settings.schemes and refusals):
        _refuse(settings, refusals)
    prepared = prepare(settings.comparison(candidates, facts.train_length), losses=("same-targets",), keys=False)
    refusal = mixing_refusal(facts, rows, settings.length) if settings.hybrids else "--hybrids is not given"
    search = PreparedSearch(settings, prepared, facts, candidates, tuple(refusals), refusal)
    least = least_tokens(len(candidates) + search.mixes, search.step_tokens)
    if settings.tokens < least:
        raise EvaluationError(
            f"--tokens is {settings.tokens}, and {len(candidates) + search.mixes} candidates need at least {least}: "
            f"one step of {search.step_tokens} tokens for each that is healed, in each round. Give more, name fewer "
            "--schemes, or take a smaller --batch-size."
        )
    return search


def _refuse(settings: SearchSettings, refusals: Sequence[Refusal]) -> None:
    listed = "\n".join(f"  {refusal.scheme}: {refusal.reason}" for refusal in refusals)
    raise UnsupportedError(
        f"these schemes cannot be candidates for {settings.model!r} at {settings.length} tokens:\n{listed}\nLeave them "
        "out of --schemes, or change their options."
    )


def step_tokens(options: HealingOptions, train_length: int) -> int:
    """Return the largest number of tokens that one step of healing reads.

    Args:
        options: options of healing.
        train_length: the model's train length.
    """
    lengths = healing_lengths(options, train_length)
    batches = (max(1, round(options.batch_size * lengths[0] / length)) * length for length in lengths)
    return options.accumulation * max(batches)
