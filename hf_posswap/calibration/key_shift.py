"""Key shift: one vector added to all keys of a head, which gives a rotary scheme a bias by distance.

Without positions, adding a vector c to all keys adds the same constant q·c to all scores of a query, and softmax
removes it: the stock model's output does not change. A rotary scheme rotates c by the distance, so it adds q·R(Δ)c,
which depends on Δ. Pretrained queries have a large mean, so this term is mostly a function of the distance alone, a sum
of as many cosines as there are rotated pairs; the rest depends on the query. The scores are linear in c, so least
squares finds the c whose scores are closest to the stock model's.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_posswap.calibration.fitting import FitSettings, pairs_of
from hf_posswap.calibration.streams import Projections

EVERY = 4
"""Every `EVERY`-th compared query is used: there are d unknowns, and thousands of queries with hundreds of keys."""
RIDGE = 1e-3
"""Ridge on the products of features, as a share of their mean: keeps c small where the queries hardly vary."""


def key_shift(
    samples: Sequence[Projections], units: Mapping[int, Tensor], causal: bool, settings: FitSettings
) -> Tensor:
    """Return the vectors that, added to the keys, bring the scores closest to the stock ones, (Hkv, d), float64.

    Args:
        samples: a layer's queries and keys of each batch.
        units: by length L of the texts, the scheme's transform of every unit vector as a key, (1|Hkv, L, d, d), see
            `turned_units`.
        causal: whether keys after the query are masked.
        settings: weights of the pairs.
    """
    heads, dimension = samples[0].stock_key.shape[1], samples[0].stock_key.shape[3]
    device = samples[0].stock_key.device
    products = torch.zeros(heads, dimension, dimension, dtype=torch.float64, device=device)
    targets = products.new_zeros(heads, dimension)
    for sample in samples:
        turned = units[sample.length].expand(heads, -1, -1, -1)
        for text in range(len(sample)):
            pairs = pairs_of(sample, text, causal, settings)
            group = len(pairs.weight) // heads
            of_text = (x[:, ::EVERY] for x in (sample.scaled_queries(text), pairs.weight, pairs.difference))
            for head, (query, weight, difference) in enumerate(zip(*of_text, strict=True)):
                product, target = _normal_equations(query, weight, difference, turned[head // group])
                products[head // group] += product
                targets[head // group] += target
    scale = products.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(torch.float32).tiny)
    ridge = RIDGE * scale[:, None, None] * torch.eye(dimension, dtype=torch.float64, device=device)
    return torch.linalg.solve(products + ridge, targets)


def _normal_equations(query: Tensor, weight: Tensor, difference: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """Return one head's normal equations: the products of features, (d, d), and of features with targets, (d,).

    Args:
        query: scaled and rotated queries, (n, d).
        weight: the weight of each pair, (n, L).
        difference: the targets, stock − swapped scores, (n, L).
        turned: the rotated unit vectors, (L, d, d), see `key_shift`.
    """
    features = torch.einsum("nd,led->nle", query, turned)
    # Each row has a free constant, so its weighted mean is subtracted.
    mean = (weight[..., None] * features).sum(1, keepdim=True) / weight.sum(1)[:, None, None]
    features = (features - mean).flatten(0, 1)
    weighted = weight.flatten()[:, None] * features
    return (weighted.T @ features).double(), (weighted.T @ difference.flatten()).double()
