"""Bootstrap intervals of a token-weighted mean (Efron 1979: resample with replacement, read off percentiles)."""

from collections.abc import Sequence

import torch

RESAMPLES = 2000


def interval_of_mean(
    sums: Sequence[float], counts: Sequence[int], seed: int, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Return the percentile interval of the mean over all tokens.

    Whole windows are resampled, because the losses of tokens in one window are correlated.

    Args:
        sums: sum of the losses in each window.
        counts: number of tokens scored in each window.
        seed: seed of the resampling; the same seed gives the same interval.
        confidence: share of resampled means inside the interval.

    Returns:
        Lower and upper bound, or None for a single window, which has no spread.
    """
    if len(sums) < 2:
        return None
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=generator)
    total = torch.tensor(sums, dtype=torch.float64)[draws].sum(dim=1)
    tokens = torch.tensor(counts, dtype=torch.float64)[draws].sum(dim=1)
    tail = (1 - confidence) / 2
    low, high = torch.quantile(total / tokens, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
