"""Sinusoid vectors of positions or distances, for the schemes that use them."""

import torch
from torch import Tensor


def sinusoids(positions: Tensor, dim: int, base: float, interleaved: bool) -> Tensor:
    """Return sin and cos of pos/base^(2i/dim) for i = 0…dim/2−1 (Vaswani et al., 1706.03762, section 3.5).

    Args:
        positions: positions or distances, int64, any shape (…).
        dim: length of the vector, even.
        base: 10000 in the paper.
        interleaved: sin and cos alternate (the paper); otherwise all sines, then all cosines (most code).

    Returns:
        float32, (…, dim).
    """
    exponent = torch.arange(0, dim, 2, dtype=torch.int64, device=positions.device).float() / dim
    angles = positions[..., None].float() / base**exponent
    pair = (angles.sin(), angles.cos())
    return torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
