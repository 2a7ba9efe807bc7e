"""The rules of a search: the order of candidates, the sizes of rounds, the shares of the budget."""

import math

import pytest

from hf_posswap.experiments.halving import TIE, Goal, best, least_tokens, round_sizes, share, staying


def test_before_the_last_round_candidates_are_sorted_by_target_loss_plus_excess() -> None:
    goal = Goal(stock=4.0, lost=0.05)
    losses = {"holds": (4.05, 9.0), "near": (4.15, 4.3), "far": (5.0, 4.2), "nearest": (4.1, 4.3)}
    keys = {name: goal.score(*both) for name, both in losses.items()}
    assert best(keys, 4) == ["nearest", "near", "far", "holds"], "one that reads nothing at the target is no good"
    assert keys["near"] == pytest.approx(4.3 + 0.1)


def test_in_the_last_round_those_that_hold_the_condition_come_first() -> None:
    goal = Goal(stock=4.0, lost=0.05)
    losses = {"breaks": (4.06, 4.1), "breaks more": (4.2, 4.0), "holds": (4.05, 4.4), "better than stock": (3.9, 4.2)}
    keys = {name: goal.final(*both) for name, both in losses.items()}
    assert best(keys, 4) == ["better than stock", "holds", "breaks", "breaks more"]


def test_equal_candidates_stay_in_their_order() -> None:
    assert best({"b": 1.0, "a": 1.0, "c": 0.5}, 2) == ["c", "b"]


def test_candidates_that_tie_with_the_last_that_stays_stay_too_as_far_as_the_tokens_go() -> None:
    scores = {"cable": 4.2 + TIE / 500, "fox": 4.2, "t5": 4.1, "none": 4.2 + 2 * TIE, "alibi": 4.2 + TIE / 300}
    assert staying(scores, 2, most=9) == ["t5", "fox", "cable", "alibi"]
    assert staying(scores, 2, most=3) == ["t5", "fox", "cable"]
    assert staying(scores, 2, most=1) == ["t5", "fox"]
    assert staying(scores, 1, most=9) == ["t5"]
    assert staying({}, 2, most=9) == []


@pytest.mark.parametrize(
    ("candidates", "sizes"),
    [(1, [1]), (2, [1]), (3, [2]), (4, [2]), (5, [3, 2]), (9, [5, 3, 2]), (22, [11, 6, 3, 2])],
)
def test_each_round_keeps_the_half_until_two_or_one_are_left(candidates: int, sizes: list[int]) -> None:
    assert round_sizes(candidates) == sizes


@pytest.mark.parametrize("tokens", [1, 999, 60_000, 1_200_001])
def test_the_shares_of_all_candidates_never_exceed_the_budget(tokens: int) -> None:
    for candidates in range(1, 30):
        sizes = round_sizes(candidates)
        assert sum(size * share(tokens, len(sizes), size) for size in sizes) <= tokens


def test_the_least_budget_is_one_step_for_each_candidate_of_each_round() -> None:
    for candidates in range(1, 30):
        sizes, least = round_sizes(candidates), least_tokens(candidates, 512)
        assert all(share(least, len(sizes), size) >= 512 for size in sizes)
        assert any(share(least - 1, len(sizes), size) < 512 for size in sizes)


def test_the_objective_in_words_has_the_allowed_loss() -> None:
    assert "beyond the allowed 0.02 nats" in Goal(stock=math.pi, lost=0.02).words
