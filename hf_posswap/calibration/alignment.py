"""Choose each head's coordinates so that a rotary scheme rotates its largest components slowest.

A head's scores q·k do not change when q is multiplied by A and k by B with AᵀB = 1. When the same vector is subtracted
from all keys, they change only by a constant for each query. So the stock model computes the same, to rounding. A
scheme that rotates pairs of dimensions at different rates does not treat dimensions alike: products of fast pairs
average out beyond a few tokens. Pretrained heads without RoPE use all dimensions. Here each head gets coordinates in
which queries and keys have the same diagonal second moments (balanced coordinates), and the coordinates with the
largest moments are assigned to the slowest pairs. A head whose scores do not come closer to the stock model's this way
keeps its old coordinates.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_posswap.architectures import Architecture
from hf_posswap.architectures.base import Projection

RIDGE = 1e-4
"""Added to second moments, as a share of their mean, so that they are invertible if a head does not use a dimension."""


class Coordinates:
    """The coordinates of a layer's heads. Changes them in place, in the weights of the query and key projections.

    Args:
        architecture: the model's family.
        attention: the self-attention module.
    """

    def __init__(self, architecture: Architecture, attention: Any) -> None:
        parts = architecture.query_and_key(attention)
        assert parts is not None
        self.query, self.key = parts
        self.stock = [tensor.detach().clone() for part in parts for tensor in part]

    @torch.no_grad()
    def align(self, samples: Sequence[tuple[Tensor, Tensor]], order: Tensor) -> None:
        """Give all heads new coordinates.

        Args:
            samples: queries (B, H, L, d) and keys (B, Hkv, L, d) of each batch, as projected.
            order: head dimensions (d,), from the one that changes least with the distance to the one that changes most.
        """
        heads = samples[0][1].shape[1]
        queries, keys = (_by_head([pair[side] for pair in samples], heads) for side in (0, 1))
        mean = keys.mean(1)
        to_query, to_key = balanced(_moments(queries), _moments(keys - mean[:, None]))
        place = order.argsort().to(to_query.device)
        _write(self.query, to_query[:, place], torch.zeros_like(mean))
        _write(self.key, to_key[:, place], mean)

    @torch.no_grad()
    def put_back(self, heads: Tensor) -> None:
        """Restore the original coordinates of the heads that are True in `heads`, bool (Hkv,)."""
        for tensor, stock in zip((*self.query, *self.key), self.stock, strict=True):
            _take_back(tensor, stock, heads)

    @torch.no_grad()
    def shift_keys(self, shift: Tensor) -> Tensor:
        """Add one vector to all keys of each head, (Hkv, d); return the bias before, for `put_back_keys`."""
        bias = self.key.bias
        before = bias.clone()
        bias.copy_((bias.double().reshape(shift.shape) + shift).reshape(bias.shape))
        return before

    @torch.no_grad()
    def put_back_keys(self, before: Tensor, heads: Tensor) -> None:
        """Undo the last shift, bit for bit, of the heads that are True in `heads`, bool (Hkv,)."""
        _take_back(self.key.bias, before, heads)


def balanced(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Return A and B, (H, d, d), with AᵀB = 1, that give both second moments the same diagonal, in falling order.

    Args:
        query: second moments of queries, positive definite, (H, d, d).
        key: second moments of keys, positive definite, (H, d, d).
    """
    left, right = torch.linalg.cholesky(query), torch.linalg.cholesky(key)
    u, values, vt = torch.linalg.svd(left.mT @ right)
    root = values.sqrt()[..., None]
    a = root * torch.linalg.solve_triangular(left.mT, u, upper=True).mT
    b = root * torch.linalg.solve_triangular(right.mT, vt.mT, upper=True).mT
    return a, b


def _take_back(tensor: Tensor, before: Tensor, heads: Tensor) -> None:
    """Copy the rows of the heads that are True in `heads`, bool (Hkv,), from `before` to `tensor`."""
    shape = (len(heads), -1)
    tensor.copy_(torch.where(heads[:, None], before.reshape(shape), tensor.reshape(shape)).reshape(tensor.shape))


def _by_head(tensors: Sequence[Tensor], heads: int) -> Tensor:
    """Return vectors (heads, n, d) in float64; with grouped queries, those of all query heads that share a key head."""
    rows = [x.double().transpose(0, 1).reshape(heads, -1, x.shape[-1]) for x in tensors]
    return torch.cat(rows, dim=1)


def _moments(vectors: Tensor) -> Tensor:
    moments = vectors.mT @ vectors / vectors.shape[1]
    mean = moments.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    return moments + RIDGE * mean[:, None, None] * torch.eye(
        moments.shape[-1], dtype=moments.dtype, device=moments.device
    )


def _write(part: Projection, change: Tensor, shift: Tensor) -> None:
    """Change a projection's output from x to change·(x − shift); a group of heads shares its change, (Hkv, d, d)."""
    weight, bias = part
    heads, d = change.shape[:2]
    old = weight.double().reshape(heads, -1, d, weight.shape[-1])
    weight.copy_((change[:, None] @ old).reshape(weight.shape))
    moved = bias.double().reshape(heads, -1, d) - shift[:, None]
    bias.copy_((moved @ change.mT).reshape(bias.shape))
