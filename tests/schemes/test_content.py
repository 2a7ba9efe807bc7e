"""Least squares in vectors by query: against explicit least squares in float64, and exact where a scheme can be."""

import pytest
import torch
from torch import Tensor

from hf_posswap.common.positions import Positions
from hf_posswap.schemes import deberta, shaw, transformer_xl
from hf_posswap.schemes.base import Scheme, SchemeConfig, SchemeLayer
from hf_posswap.schemes.content import ContentSums, log_groups
from hf_posswap.schemes.curves import Curve
from hf_posswap.schemes.deberta import DebertaConfig
from hf_posswap.schemes.shaw import ShawConfig
from hf_posswap.schemes.sinusoidal import sinusoids
from hf_posswap.schemes.transformer_xl import TransformerXLConfig, still_vectors
from tests.reference import build, layer_bias, model_facts

HEADS, LENGTH, DIM = 4, 40, 8
SCALING = DIM**-0.5


class Pairs:
    """All pairs of random queries with L keys: weights, and differences that a bias makes up to a query's constant."""

    def __init__(self, causal: bool, mean: float = 0.0) -> None:
        steps = torch.arange(LENGTH)
        self.causal = causal
        self.distance = steps[:, None] - steps[None, :]
        # One direction hardly varies, as in real models: what Transformer-XL gives up for its v costs nothing there.
        self.query = torch.randn(HEADS, LENGTH, DIM) * torch.tensor([1.0] * (DIM - 1) + [0.01])
        self.query += mean * torch.randn(HEADS, 1, DIM)
        self.weight = torch.rand(HEADS, LENGTH, LENGTH) + 0.1
        if causal:
            self.weight = self.weight.tril()

    def sums(self, layer: SchemeLayer, difference: Tensor) -> Curve:
        """A curve that holds what calibration would sum up of these differences (H, L, L)."""
        groups = layer.content_groups(self.distance)
        seen = groups[self.weight[0] > 0].unique()
        members = (groups[..., None] == seen).float()
        by_group = [torch.einsum("hij,ijg->hig", x, members) for x in (self.weight, self.weight * difference)]
        content = ContentSums(seen, self.as_handed_on(layer) * SCALING, *by_group, SCALING)
        distances = torch.arange(1 - LENGTH, LENGTH)
        weights = torch.zeros(HEADS, len(distances)).index_add_(
            1, (self.distance + LENGTH - 1).flatten(), self.weight.flatten(1)
        )
        return Curve(distances, torch.zeros_like(weights), weights, content)

    def bias(self, scheme: Scheme, layer: SchemeLayer) -> Tensor:
        """The layer's bias on these pairs, (H, L, L)."""
        positions = Positions(*[torch.arange(LENGTH)[None]] * 2, offset=0, causal=self.causal)
        query = self.as_handed_on(layer)[None]
        return layer_bias(layer, query, positions, scheme.prepare(positions), SCALING).rows(0, LENGTH)[0].detach()

    def as_handed_on(self, layer: SchemeLayer) -> Tensor:
        """The queries after the layer's transform, to which Transformer-XL's adds u."""
        return layer.transform(self.query, self.query, None, None)[0].detach()

    def unexplained(self, target: Tensor, bias: Tensor) -> float:
        """Share of the target's weighted variance within queries that the bias does not explain."""
        left, whole = (self.variance(x) for x in (target - bias, target))
        return left / whole

    def variance(self, values: Tensor) -> float:
        total = self.weight.sum(-1, keepdim=True)
        centred = values - (self.weight * values).sum(-1, keepdim=True) / total
        return float((self.weight * centred.square()).sum())


def explicit_least_squares(sums: ContentSums, ridge: float, basis: Tensor) -> Tensor:
    """The same problem in float64, written as one tall matrix: a row for each query and group, and the penalty's rows.

    A query's pairs within a group share their bias, so that their weighted mean with their total weight says the same.
    """
    found = []
    for query, weights, differences in zip(sums.query, sums.weights, sums.differences, strict=True):
        query, weights, differences = (x.double() for x in (query, weights, differences))
        count, groups = weights.shape
        width = basis.shape[1] * query.shape[1]
        mean_square = (weights.sum(1)[:, None] * query.square()).sum() / weights.sum() / query.shape[1]
        penalty = ridge * weights.sum() / groups * mean_square
        rows, wanted = [], []
        for i in range(count):
            for g in range(groups):
                if weights[i, g] == 0:
                    continue
                row = torch.zeros(width + count, dtype=torch.float64)
                row[:width] = torch.outer(basis[g], query[i]).flatten()
                row[width + i] = 1
                rows.append(row * weights[i, g].sqrt())
                wanted.append(differences[i, g] / weights[i, g].sqrt())
        rows += list(torch.eye(width + count, dtype=torch.float64)[:width] * penalty.sqrt())
        wanted += [torch.zeros((), dtype=torch.float64)] * width
        solution = torch.linalg.lstsq(torch.stack(rows), torch.stack(wanted)[:, None]).solution
        found.append(solution[:width, 0].view(basis.shape[1], -1))
    return torch.stack(found)


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
@pytest.mark.parametrize("columns", [None, 3, 12])
def test_equals_explicit_least_squares(ridge: float, columns: int | None) -> None:
    groups, count = 6, 50
    weights = torch.rand(2, count, groups) * (torch.rand(2, count, groups) > 0.3)
    weights[..., 0] += 0.01
    sums = ContentSums(
        torch.arange(groups), torch.randn(2, count, 5), weights, weights * torch.randn(2, count, groups), 1.0
    )
    basis = None if columns is None else torch.randn(groups, columns, dtype=torch.float64)
    expected = explicit_least_squares(sums, ridge, torch.eye(groups).double() if basis is None else basis)
    # Conjugate gradients stop at 1e-6 of the preconditioned residual.
    torch.testing.assert_close(sums.coefficients(ridge, basis), expected, atol=1e-5, rtol=1e-5)


def test_heads_of_which_one_has_nothing_to_explain() -> None:
    weights = torch.rand(2, 20, 4) + 0.1
    differences = weights * torch.randn(2, 20, 4)
    differences[1] = weights[1] * 3.0  # a constant
    found = ContentSums(torch.arange(4), torch.randn(2, 20, 5), weights, differences, 1.0).coefficients(0.01)
    assert found[0].abs().max() > 0.1
    assert found[1].abs().max() < 1e-6


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("config", [ShawConfig(max_distance=5), ShawConfig(max_distance=60), TransformerXLConfig()])
def test_a_bias_in_the_schemes_span_is_found_again(
    config: SchemeConfig, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (shaw, transformer_xl):
        monkeypatch.setattr(module, "RIDGE", 1e-7)  # what the penalty takes off is no fault of the fit
    facts = model_facts(causal=causal, hidden_size=64, num_key_value_heads=4)
    pairs = Pairs(causal)
    target = pairs.bias(*build(config, facts)) + torch.randn(HEADS, LENGTH, 1)
    scheme, layer = build(config, facts)
    assert layer.fit(pairs.sums(layer, target))
    # Transformer-XL gives up a direction in which queries vary by 1%, and sees distances beyond 32 in groups.
    assert pairs.unexplained(target, pairs.bias(scheme, layer)) < (1e-6 if config.name == "shaw" else 5e-3)


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_transformer_xl_can_say_what_does_not_depend_on_the_query(mean: float) -> None:
    facts = model_facts(hidden_size=64, num_key_value_heads=4)
    pairs = Pairs(causal=True, mean=mean)
    slopes = torch.tensor([1.0, 0.3, 0.1, 0.03])
    target = -slopes[:, None, None] * pairs.distance + torch.randn(HEADS, LENGTH, 1)
    scheme, layer = build(TransformerXLConfig(), facts)
    assert layer.fit(pairs.sums(layer, target))
    assert pairs.unexplained(target, pairs.bias(scheme, layer)) < 0.01


@pytest.mark.parametrize("causal", [True, False])
def test_shaw_rows_never_seen_take_the_nearest(causal: bool) -> None:
    _, layer = build(ShawConfig(max_distance=LENGTH + 7), model_facts(causal=causal, num_key_value_heads=4))
    values = layer.value_table.detach().clone()
    layer.fit(Pairs(causal).sums(layer, torch.randn(HEADS, LENGTH, LENGTH)))
    table = layer.key_table.detach()
    zero = LENGTH + 7
    assert (table[:9] == table[8]).all()  # row c + K of c = j − i: 1 − L is the farthest to the left
    assert not torch.equal(table[8], table[9])
    if causal:
        assert (table[zero:] == table[zero]).all()
    else:
        assert (table[-9:] == table[-9]).all()
        assert not torch.equal(table[-9], table[-10])
    assert torch.equal(layer.value_table, values)


@pytest.mark.parametrize("causal", [True, False])
def test_deberta_finds_what_each_heads_queries_look_up(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deberta, "RIDGE", 1e-7)
    facts = model_facts(causal=causal, num_key_value_heads=4)
    pairs, config = Pairs(causal), DebertaConfig(buckets=8, max_distance=60)
    (scheme, layer), (_, fitted) = build(config, facts), build(config, facts)
    with torch.no_grad():
        layer.position_queries.zero_()
    target = pairs.bias(scheme, layer) + torch.randn(HEADS, LENGTH, 1)
    kept = fitted.position_queries.detach().clone()
    assert fitted.fit(pairs.sums(fitted, target))
    assert torch.equal(fitted.position_queries, kept)
    with torch.no_grad():
        fitted.position_queries.zero_()
    assert pairs.unexplained(target, pairs.bias(scheme, fitted)) < 1e-6
    table = fitted.position_keys.detach()  # a text of 40 tokens reaches bucket 7, from 33 on; −8 begins at 60
    assert torch.equal(table[:, 0], table[:, 1]) is not causal


def test_transformer_xl_leaves_u_alone() -> None:
    _, layer = build(TransformerXLConfig(), model_facts(hidden_size=64, num_key_value_heads=4))
    before = layer.content_bias.detach().clone()
    layer.fit(Pairs(causal=True).sums(layer, torch.randn(HEADS, LENGTH, LENGTH)))
    assert before.any()
    assert torch.equal(layer.content_bias, before)


def test_transformer_xl_reads_a_group_by_its_weighted_mean_distance_vector() -> None:
    _, layer = build(TransformerXLConfig(), model_facts(hidden_size=64, num_key_value_heads=4))
    distances = torch.arange(-100, 101)
    curve = Curve(distances, torch.zeros(4, 201), torch.rand(4, 201) * (distances >= 0))
    groups = layer.content_groups(distances)
    basis, directions = layer._basis(curve, groups[100:].unique())
    vectors = sinusoids(distances, 64, layer.base, interleaved=False).double()
    for place, group in enumerate(groups[100:].unique()):
        weight = (curve.weights.sum(0) * (groups == group)).double()
        expected = (weight[:, None] * vectors).sum(0) / weight.sum() / 32  # the square of the scale √(2/64)
        torch.testing.assert_close(basis[place] @ directions, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mean", [0.0, 2.0, -2.0])
def test_still_vectors_point_where_queries_vary_least(mean: float) -> None:
    query = torch.randn(3, 500, 6) * torch.tensor([1.0, 2.0, 0.1, 1.0, 1.0, 1.0])
    query[..., 2] += mean
    shift = still_vectors(query)
    assert (shift[:, 2].abs() > 50 * shift[:, [0, 1, 3, 4, 5]].abs().amax(1)).all()
    along = (query + shift[:, None])[..., 2].mean(1).abs()
    torch.testing.assert_close(along, 10 * query.square().mean((1, 2)).sqrt(), rtol=0.02, atol=0)


def test_log_groups() -> None:
    groups = log_groups(torch.arange(-600, 601))
    near = groups[600 - 32 : 600 + 33]
    assert near.diff().tolist() == [1] * 64
    assert (groups.diff() >= 0).all()
    assert torch.equal(groups, -groups.flip(0))
    far = groups[600 + 33 :].unique(return_counts=True)[1]
    assert far[0] == 3  # 33, 34, 35: 2^(1/8) of 33 is 36
    assert len(far) == 34  # 8 for each doubling of 33: 33, 66, 132, 264, 528 … 600
