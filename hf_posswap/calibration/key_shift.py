"""One vector added to all keys of a head, by which a scheme that turns keys says what the old one said of distances.

Without position, a query's product with a vector that all keys share is a constant of its row, which softmax does not
see: the stock model stays what it is. Turned by the distance it is none, q·R(Δ)c. Pretrained queries have a large mean,
so that this is mostly a function of the distance, a sum of as many cosines as there are pairs, and the rest reads the
query. The scores are linear in c, so the best one is a matter of least squares.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_posswap.calibration.fitting import FitSettings, pairs_of
from hf_posswap.calibration.streams import Projections

EVERY = 4
"""One in so many compared queries counts: there are d unknowns, and thousands of queries with hundreds of keys each."""
RIDGE = 1e-3
"""Added to the products of features, as a share of their mean: what queries hardly read is left alone."""


def key_shift(
    samples: Sequence[Projections], units: Mapping[int, Tensor], causal: bool, settings: FitSettings
) -> Tensor:
    """Return the vectors that, added to the keys, bring the scores nearest to the stock ones, (Hkv, d), float64.

    Args:
        samples: a layer's queries and keys of each batch.
        units: by length L of the texts, what the scheme makes of every unit vector as a key, (L, d, d), see
            `turned_units`.
        causal: whether keys after the query are hidden.
        settings: weights of the pairs.
    """
    heads, dimension = samples[0].stock_key.shape[1], samples[0].stock_key.shape[3]
    device = samples[0].stock_key.device
    products = torch.zeros(heads, dimension, dimension, dtype=torch.float64, device=device)
    targets = products.new_zeros(heads, dimension)
    for sample in samples:
        turned = units[sample.length]
        for text in range(len(sample)):
            pairs = pairs_of(sample, text, causal, settings)
            group = len(pairs.weight) // heads
            of_text = (x[:, ::EVERY] for x in (sample.scaled_queries(text), pairs.weight, pairs.difference))
            for head, (query, weight, difference) in enumerate(zip(*of_text, strict=True)):
                product, target = _normal_equations(query, weight, difference, turned)
                products[head // group] += product
                targets[head // group] += target
    scale = products.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(torch.float32).tiny)
    ridge = RIDGE * scale[:, None, None] * torch.eye(dimension, dtype=torch.float64, device=device)
    return torch.linalg.solve(products + ridge, targets)


def _normal_equations(query: Tensor, weight: Tensor, difference: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """Return one head's products of features, (d, d), and of features with what they are to explain, (d,).

    Args:
        query: scaled and turned queries, (n, d).
        weight: of each pair, (n, L).
        difference: stock − swapped scores, (n, L).
        turned: see `key_shift`.
    """
    features = torch.einsum("nd,led->nle", query, turned)
    # Row constants are free: within a row only what differs from its weighted mean counts.
    mean = (weight[..., None] * features).sum(1, keepdim=True) / weight.sum(1)[:, None, None]
    features = (features - mean).flatten(0, 1)
    weighted = weight.flatten()[:, None] * features
    return (weighted.T @ features).double(), (weighted.T @ difference.flatten()).double()
