"""What schemes read off a curve: exact where the curve is exact, weighted where it is not."""

import pytest
import torch

from hf_posswap.schemes.alibi import AlibiConfig
from hf_posswap.schemes.curves import Curve
from hf_posswap.schemes.t5 import T5Config, t5_bucket
from tests.reference import build, model_facts


def causal_curve(values: torch.Tensor) -> Curve:
    """A curve seen at Δ = 0…N−1 only, with weights that fall with distance."""
    heads, length = values.shape
    distances = torch.arange(1 - length, length)
    padded = torch.nn.functional.pad(values, (length - 1, 0), value=99.0)
    weights = torch.nn.functional.pad(1 / (1 + torch.arange(length).float()), (length - 1, 0)).repeat(heads, 1)
    return Curve(distances, padded, weights)


def test_the_slope_of_a_line_is_found_exactly():
    slopes = torch.tensor([0.5, 0.01, 0.0])
    lines = 3 - slopes[:, None] * torch.arange(200)
    torch.testing.assert_close(causal_curve(lines).slopes(), slopes.clamp(min=1e-6), atol=1e-5, rtol=1e-3)


def test_a_rising_curve_gets_the_smallest_slope():
    assert causal_curve(torch.arange(20.0)[None]).slopes(smallest=1e-3).item() == pytest.approx(1e-3)


def test_smoothing_keeps_what_is_near_and_averages_what_is_far():
    noise = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    smooth = causal_curve(noise).smoothed()
    assert torch.equal(smooth.values[:, 399:407], noise[:, :8])
    assert smooth.values[:, -100:].std() < 0.3 * noise[:, -100:].std()


def test_smoothing_leaves_a_constant_alone():
    smooth = causal_curve(torch.full((1, 300), 2.5)).smoothed()
    torch.testing.assert_close(smooth.values[:, 299:], torch.full((1, 300), 2.5))


def test_bucket_means_are_weighted_and_empty_buckets_take_the_nearest():
    curve = Curve(torch.arange(4), torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([[1.0, 1.0, 3.0, 1.0]]))
    means = curve.mean_by_group(torch.tensor([0, 0, 2, 2]), 5)
    torch.testing.assert_close(means, torch.tensor([[1.5, 1.5, 5.0, 5.0, 5.0]]))


@pytest.mark.parametrize("per_layer", [True, False])
def test_t5_takes_back_the_table_a_curve_was_made_of(per_layer):
    facts = model_facts(num_layers=2)
    scheme, layer = build(T5Config(per_layer=per_layer), facts)
    table = torch.randn(32, facts.num_heads)
    curve = causal_curve(table[t5_bucket(torch.arange(300), 32, 128, causal=True)].t())
    assert (layer.fit(curve), scheme.fit([curve, curve])) == (per_layer, not per_layer)
    fitted = layer.table if per_layer else scheme.table
    torch.testing.assert_close(fitted.detach(), table, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("per_layer", [True, False])
def test_alibi_takes_back_its_slopes(per_layer):
    facts = model_facts(num_layers=2)
    scheme, layer = build(AlibiConfig(trainable=True, per_layer=per_layer), facts)
    slopes = torch.tensor([0.3, 0.1, 0.05, 0.01])
    curve = causal_curve(-slopes[:, None] * torch.arange(100))
    assert (layer.fit(curve), scheme.fit([curve, curve])) == (per_layer, not per_layer)
    fitted = layer.log_slopes if per_layer else scheme.log_slopes
    torch.testing.assert_close(fitted.detach().exp(), slopes, atol=1e-5, rtol=1e-4)


def test_fixed_slopes_have_nothing_to_fit():
    scheme, layer = build(AlibiConfig(), model_facts())
    curve = causal_curve(torch.zeros(4, 10))
    assert not layer.fit(curve)
    assert not scheme.fit([curve])
