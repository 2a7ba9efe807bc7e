"""The rules of a search: how candidates are ranked, how many stay in each round, and how the tokens are shared out.

A search spends its tokens by successive halving (Jamieson and Talwalkar 2016, 1502.07943): after each round the better
half of the candidates stays, and each round costs the same, so that those that stay are healed on ever more tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OBJECTIVE = (
    "A candidate's score is its loss at the target length plus its excess, that is what it loses at the old length "
    "beyond the allowed {lost:g} nats a token against the stock model; each round keeps the half with the lower "
    "scores and those that differ from the last of them by less than {tie:g}, and of the last round those without "
    "excess come first, each group in the order of its scores."
)
"""The objective in words, in which `lost` is filled in."""
TIE = 1e-5
"""Nats a token. Scores that differ by less differ by rounding: `cable` and `fox`, which calibration fits to the same
function, are 2e-7 apart before they are healed."""
LAST_ROUND = 2
"""Largest number of candidates in the last round."""


@dataclass(frozen=True)
class Goal:
    """The objective of a search, see `OBJECTIVE`.

    The order in the rounds has no strict condition: few candidates hold it before they are healed, and one that holds
    it can be useless at the target length.

    Attributes:
        stock: loss of the stock model at the old length, in nats a token.
        lost: allowed loss at the old length above that of the stock model, in nats a token.
    """

    stock: float
    lost: float

    @property
    def words(self) -> str:
        """The objective in words."""
        return OBJECTIVE.format(lost=self.lost, tie=TIE)

    def excess(self, old: float) -> float:
        """Return by how much a loss at the old length exceeds the allowed one; 0 if it does not."""
        return max(0.0, old - self.stock - self.lost)

    def score(self, old: float, target: float) -> float:
        """Return the score of a candidate from its losses at the old and the target length; lower is better."""
        return target + self.excess(old)

    def final(self, old: float, target: float) -> tuple[bool, float]:
        """Return the key that sorts the candidates of the last round: those without excess first, then by score."""
        return self.excess(old) > 0, self.score(old, target)


def half(candidates: int) -> int:
    """Return how many of some candidates stay: the half, rounded up."""
    return -(-candidates // 2)


def round_sizes(candidates: int) -> list[int]:
    """Return the number of candidates in each round of healing; round 0, without healing, has all candidates."""
    sizes = [half(candidates)]
    while sizes[-1] > LAST_ROUND:
        sizes.append(half(sizes[-1]))
    return sizes


def share(tokens: int, rounds: int, survivors: int) -> int:
    """Return the tokens for one candidate in one round, rounded down: the shares never exceed `tokens` together.

    Args:
        tokens: tokens of the whole search.
        rounds: number of rounds of healing.
        survivors: number of candidates in the round.
    """
    return tokens // (rounds * survivors)


def least_tokens(candidates: int, step_tokens: int) -> int:
    """Return the least tokens with which every candidate of every round takes one step of `step_tokens` tokens."""
    sizes = round_sizes(candidates)
    return len(sizes) * max(sizes) * step_tokens


def best(keys: Mapping[str, Any], count: int) -> list[str]:
    """Return the names of the `count` smallest keys, the best first; of equal keys the earlier one comes first."""
    return sorted(keys, key=lambda name: keys[name])[:count]


def staying(scores: Mapping[str, float], count: int, most: int) -> list[str]:
    """Return the names that stay after a round: the best `count`, and those that tie with the last of them.

    Args:
        scores: the scores, lower is better.
        count: how many stay if there are no ties.
        most: how many can stay, for lack of tokens; fewer than `count` are not taken for it.
    """
    order = best(scores, len(scores))
    kept = order[:count]
    return kept + [name for name in order[count : max(count, most)] if scores[name] - scores[kept[-1]] < TIE]
