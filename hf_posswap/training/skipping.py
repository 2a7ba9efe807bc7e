"""Positions that skip ahead within a window, so that far distances occur in short texts (PoSE, Zhu et al., 2309.10400).

A window is divided into two chunks of random lengths. The positions of the second one skip ahead by a random number, so
that distances up to the target length are trained at the cost of a window (section 3.2, with the text of the window
unchanged). The stock model, as the teacher, reads the same tokens without a skip (as in LongReD, 2502.07365).
"""

import torch
from torch import Tensor

CHUNKS = 2
"""Chunks of a window; the paper's choice."""
TIMES_AS_FAR = 8
"""The default target length, in lengths of a window."""


def skipped_positions(shape: torch.Size | tuple[int, int], target: int, generator: torch.Generator) -> Tensor:
    """Return positions that skip ahead, int64 (B, L): drawn anew for each text, rising, from 0 to less than `target`.

    Args:
        shape: (B, L), the number of texts and of their tokens.
        target: the length that positions reach, at least L.
        generator: source of the random numbers.
    """
    texts, length = shape
    positions = torch.arange(length).repeat(texts, 1)
    if length < CHUNKS:
        return positions
    for row in positions:
        at = int(torch.randint(1, length, (), generator=generator))
        row[at:] += int(torch.randint(target - length + 1, (), generator=generator))
    return positions
