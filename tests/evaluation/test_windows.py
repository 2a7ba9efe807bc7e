"""Which stretches are read and which tokens are scored."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_posswap.evaluation import EvaluationError, TextTooShortError
from hf_posswap.evaluation.windows import USUAL_PROTOCOLS, plan

lengths_and_text = st.lists(st.integers(2, 300), min_size=1, max_size=5).flatmap(
    lambda lengths: st.tuples(st.just(lengths), st.integers(max(lengths), 3000), st.integers(1, 5000))
)


@given(lengths_and_text)
def test_windows_do_not_overlap_and_score_all_but_their_first_token(case: tuple[list[int], int, int]) -> None:
    lengths, text_tokens, budget = case
    for length, windows in plan("windows", text_tokens, lengths, budget).items():
        assert windows
        assert all(window.stop - window.start == length for window in windows)
        assert all(window.first_target == window.start + 1 for window in windows)
        assert windows[0].start >= 0
        assert windows[-1].stop <= text_tokens
        assert all(one.stop <= two.start for one, two in pairwise(windows))


@given(lengths_and_text)
def test_the_same_tokens_are_targets_at_every_length(case: tuple[list[int], int, int]) -> None:
    lengths, text_tokens, budget = case
    planned = plan("same-targets", text_tokens, lengths, budget)
    scored = {length: [token for w in planned[length] for token in range(w.first_target, w.stop)] for length in planned}
    targets = scored[min(lengths)]
    assert targets
    assert all(other == targets for other in scored.values())
    assert len(set(targets)) == len(targets), "a token is scored twice"
    for length, windows in planned.items():
        assert all(window.stop - window.start == length for window in windows)
        assert all(window.first_target - window.start >= length / 2 for window in windows), "too little context"
        assert min(window.start for window in windows) >= 0
        assert windows[-1].stop <= text_tokens


@given(lengths_and_text, st.data())
def test_sliding_windows_score_every_token_of_a_region_once_with_enough_context(
    case: tuple[list[int], int, int], data: st.DataObject
) -> None:
    lengths, text_tokens, budget = case
    longest, stride = max(lengths), data.draw(st.none() | st.integers(1, min(lengths) - 1))
    planned = plan("sliding", text_tokens, lengths, budget, stride)
    starts = [window.start for window in plan("windows", text_tokens, [longest], budget)[longest]]
    targets = [token for start in starts for token in range(start + 1, start + longest)]
    for length, windows in planned.items():
        assert [token for w in windows for token in range(w.first_target, w.stop)] == targets
        assert all(window.size == length for window in windows)
        later = [window for window in windows if window.first_target - 1 not in starts]
        context = length - (stride or min(lengths) // 2)
        assert all(window.first_target - window.start >= context for window in later)
        assert len(windows) - len(later) == len(starts)


@pytest.mark.parametrize("stride", [0, 64, 100])
def test_a_stride_that_leaves_no_context_is_refused(stride: int) -> None:
    with pytest.raises(EvaluationError, match=f"the stride is {stride} tokens, and the shortest window has 64"):
        plan("sliding", 1000, [64, 128], 100, stride)


@given(lengths_and_text)
def test_no_more_tokens_are_read_than_the_budget_allows(case: tuple[list[int], int, int]) -> None:
    lengths, text_tokens, budget = case
    for length, windows in plan("windows", text_tokens, lengths, budget).items():
        assert length * len(windows) <= max(budget, max(lengths))


@pytest.mark.parametrize("protocol", USUAL_PROTOCOLS)
def test_both_protocols_read_the_budget_at_every_length(protocol: str) -> None:
    planned = plan(protocol, 100_000, [64, 256, 1024], 8192)
    assert [length * len(windows) for length, windows in planned.items()] == [8192] * 3


def test_the_same_targets_are_half_of_what_the_longest_length_reads() -> None:
    planned = plan("same-targets", 100_000, [64, 1024], 8192)
    assert [sum(window.targets for window in windows) for windows in planned.values()] == [4096, 4096]
    assert [len(windows) for windows in planned.values()] == [128, 8]


def test_every_length_of_windows_sees_the_same_part_of_the_text() -> None:
    planned = plan("windows", 10_000, [64, 128, 256], 1024)
    read = {
        length: {token for window in windows for token in range(window.start, window.stop)}
        for length, windows in planned.items()
    }
    assert read[64] == read[128] == read[256]
    assert len(read[64]) == 1024


def test_windows_are_spread_over_the_whole_text() -> None:
    windows = plan("windows", 10_000, [100], 500)[100]
    assert (windows[0].start, windows[-1].stop) == (0, 10_000)


def test_text_too_short_says_how_many_tokens_it_has_and_needs() -> None:
    with pytest.raises(TextTooShortError, match=r"the text has 99 tokens, and length 512 needs at least 512") as caught:
        plan("windows", 99, [64, 512], 1000)
    assert "lengths up to 99" in str(caught.value)


@pytest.mark.parametrize(
    ("protocol", "lengths", "budget", "message"),
    [
        ("skating", [64], 100, "unknown protocol 'skating'. Allowed: windows, same-targets, sliding"),
        ("windows", [], 100, "no length given"),
        ("windows", [1, 64], 100, "length 1 is too short"),
        ("windows", [-5], 100, "length -5 is too short"),
        ("windows", [64], 0, "the budget is 0 tokens"),
    ],
)
def test_bad_plans_are_refused(protocol: str, lengths: list[int], budget: int, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        plan(protocol, 1000, lengths, budget)
