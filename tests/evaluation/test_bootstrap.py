"""Bootstrap intervals."""

import pytest

from hf_posswap.evaluation.bootstrap import interval_of_mean


def test_a_single_window_has_no_interval() -> None:
    assert interval_of_mean([10.0], [5], seed=0) is None


def test_equal_windows_have_an_interval_without_width() -> None:
    assert interval_of_mean([6.0, 12.0, 3.0], [2, 4, 1], seed=0) == pytest.approx((3.0, 3.0))


def test_the_seed_decides_the_interval() -> None:
    sums, counts = [float(n**1.5) for n in range(1, 30)], list(range(1, 30))
    assert interval_of_mean(sums, counts, seed=1) == interval_of_mean(sums, counts, seed=1)
    assert interval_of_mean(sums, counts, seed=1) != interval_of_mean(sums, counts, seed=2)


def test_the_interval_holds_the_token_weighted_mean() -> None:
    sums, counts = [float(n * (1 + n % 3)) for n in range(1, 40)], list(range(1, 40))
    low, high = interval_of_mean(sums, counts, seed=0)
    mean = sum(sums) / sum(counts)
    assert low < mean < high
    assert high - low < 1.0, "39 windows of losses 1, 2 and 3 pin the mean down"
