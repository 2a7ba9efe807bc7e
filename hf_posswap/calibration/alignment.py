"""Choose each head's coordinates so that a rotary scheme turns fastest what the head reads least.

A head's scores q·k do not change when q is multiplied by A and k by B with AᵀB = 1, nor, up to a constant for each
query, when the same vector is subtracted from all keys. So the stock model stays what it is, to rounding. A scheme that
turns pairs of dimensions at different rates does not treat them alike: what stands in fast pairs is lost beyond a few
tokens. Pretrained heads spread what they read over all dimensions. Here they get coordinates in which queries and keys
have the same diagonal second moments (balanced coordinates), and those in which they are largest get the slowest pairs.
Heads whose scores come no closer to the stock model's by it keep the coordinates they had.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_posswap.architectures import Architecture
from hf_posswap.architectures.base import Projection

RIDGE = 1e-4
"""Added to second moments, as a share of their mean: a dimension that a head never uses stays invertible."""


class Coordinates:
    """The coordinates of a layer's heads, in the weights that make queries and keys, which are changed in place.

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
            order: head dimensions (d,), from the one that changes least with the distance to the one that does most.
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
        """Give the heads that are marked, bool (Hkv,), the coordinates they had at first."""
        for tensor, stock in zip((*self.query, *self.key), self.stock, strict=True):
            _take_back(tensor, stock, heads)

    @torch.no_grad()
    def shift_keys(self, shift: Tensor) -> Tensor:
        """Add one vector to all keys of each head, (Hkv, d); return what takes it back, see `put_back_keys`."""
        bias = self.key.bias
        before = bias.clone()
        bias.copy_((bias.double().reshape(shift.shape) + shift).reshape(bias.shape))
        return before

    @torch.no_grad()
    def put_back_keys(self, before: Tensor, heads: Tensor) -> None:
        """Take the last shift back from the heads that are marked, bool (Hkv,), bit for bit."""
        _take_back(self.key.bias, before, heads)


def balanced(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Return A and B, (H, d, d), with AᵀB = 1, in whose coordinates both second moments are the same diagonal, falling.

    Args:
        query: second moments of queries, positive definite, (H, d, d).
        key: the same of keys.
    """
    left, right = torch.linalg.cholesky(query), torch.linalg.cholesky(key)
    u, values, vt = torch.linalg.svd(left.mT @ right)
    root = values.sqrt()[..., None]
    a = root * torch.linalg.solve_triangular(left.mT, u, upper=True).mT
    b = root * torch.linalg.solve_triangular(right.mT, vt.mT, upper=True).mT
    return a, b


def _take_back(tensor: Tensor, before: Tensor, heads: Tensor) -> None:
    """Give the rows of the heads that are marked, bool (Hkv,), the values they had before."""
    shape = (len(heads), -1)
    tensor.copy_(torch.where(heads[:, None], before.reshape(shape), tensor.reshape(shape)).reshape(tensor.shape))


def _by_head(tensors: Sequence[Tensor], heads: int) -> Tensor:
    """Return vectors (heads, n, d) in float64; under grouped queries, those of all queries that share a key."""
    rows = [x.double().transpose(0, 1).reshape(heads, -1, x.shape[-1]) for x in tensors]
    return torch.cat(rows, dim=1)


def _moments(vectors: Tensor) -> Tensor:
    moments = vectors.mT @ vectors / vectors.shape[1]
    mean = moments.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    return moments + RIDGE * mean[:, None, None] * torch.eye(
        moments.shape[-1], dtype=moments.dtype, device=moments.device
    )


def _write(part: Projection, change: Tensor, shift: Tensor) -> None:
    """Let a projection give change·(x − shift) where it gave x; change (Hkv, d, d) is shared by a group of heads."""
    weight, bias = part
    heads, d = change.shape[:2]
    old = weight.double().reshape(heads, -1, d, weight.shape[-1])
    weight.copy_((change[:, None] @ old).reshape(weight.shape))
    moved = bias.double().reshape(heads, -1, d) - shift[:, None]
    bias.copy_((moved @ change.mT).reshape(bias.shape))
