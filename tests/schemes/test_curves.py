"""What schemes read off a curve: exact where the curve is exact, weighted where it is not."""

import dataclasses

import pytest
import torch

from hf_posswap.common.positions import Positions
from hf_posswap.schemes.alibi import ENCODER_FORMS, AlibiConfig
from hf_posswap.schemes.curves import Curve, fitted_slopes, pooled
from hf_posswap.schemes.t5 import T5Config, t5_bucket
from tests.reference import build, layer_bias, model_facts


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
    error = (layer.table if per_layer else scheme.table).detach() - table
    # Up to a constant for each head, which softmax does not see: layers that share are centred first.
    torch.testing.assert_close(error, error[:1].expand_as(error), atol=1e-5, rtol=0)


@pytest.mark.parametrize("per_layer", [True, False])
def test_alibi_takes_back_its_slopes(per_layer):
    facts = model_facts(num_layers=2)
    scheme, layer = build(AlibiConfig(trainable=True, per_layer=per_layer), facts)
    slopes = torch.tensor([0.3, 0.1, 0.05, 0.01])
    curve = causal_curve(-slopes[:, None] * torch.arange(100))
    assert (layer.fit(curve), scheme.fit([curve, curve])) == (per_layer, not per_layer)
    fitted = layer.log_slopes if per_layer else scheme.log_slopes
    torch.testing.assert_close(fitted.detach().exp(), slopes, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("per_layer", [True, False])
@pytest.mark.parametrize("form", ENCODER_FORMS)
def test_alibi_takes_back_its_slopes_in_every_form(form, per_layer):
    facts = model_facts(num_layers=2, causal=False)
    scheme, layer = build(AlibiConfig(form=form, trainable=True, per_layer=per_layer), facts)
    slopes = (layer if per_layer else scheme).log_slopes.detach().exp()
    positions = Positions(torch.tensor([[40]]), torch.arange(81)[None], offset=40, causal=False)
    values = (
        layer_bias(layer, torch.zeros(1), positions, scheme.prepare(positions)).rows(0, 1)[0, :, 0].flip(-1).detach()
    )
    hidden = values.isinf()
    curve = Curve(torch.arange(-40, 41), values.masked_fill(hidden, 7.0) + 2, torch.rand(4, 81) + 0.1)
    with torch.no_grad():
        (layer if per_layer else scheme).log_slopes.zero_()
    assert (layer.fit(curve), scheme.fit([curve, curve])) == (per_layer, not per_layer)
    torch.testing.assert_close((layer if per_layer else scheme).log_slopes.exp().detach(), slopes, atol=0, rtol=1e-4)


def explicit_slope(curves, head):
    """The slope −m of one line per curve with a common slope, by float64 least squares with a column per constant."""
    rows, wanted = [], []
    for place, curve in enumerate(curves):
        for distance, value, weight in zip(curve.distances, curve.values[head], curve.weights[head], strict=True):
            constants = [float(place == other) for other in range(len(curves))]
            root = float(weight) ** 0.5
            rows.append([root * abs(float(distance)), *(root * c for c in constants)])
            wanted.append([root * float(value)])
    return torch.linalg.lstsq(torch.tensor(rows).double(), torch.tensor(wanted).double()).solution[0, 0].item()


def test_shared_slopes_are_least_squares_over_all_layers_at_once():
    curves = [causal_curve(torch.randn(2, 30) - m * torch.arange(30.0)) for m in (0.5, 0.1, -0.2)]
    slopes = fitted_slopes(curves)
    assert slopes.tolist() == pytest.approx([-explicit_slope(curves, head) for head in range(2)], rel=1e-4)


def test_one_rising_layer_does_not_flatten_the_slopes_of_all():
    falling, rising = (causal_curve(m * torch.arange(50.0)[None]) for m in (-0.3, 0.01))
    assert fitted_slopes([falling, falling, rising]).item() == pytest.approx((0.6 - 0.01) / 3, rel=1e-4)


def test_a_constant_of_each_layer_does_not_change_what_they_share():
    curves = [causal_curve(torch.randn(3, 60)) for _ in range(2)]
    near = torch.arange(-59, 60) < 20
    curves[1] = dataclasses.replace(curves[1], weights=curves[1].weights * (1 + 3 * near))
    moved = [dataclasses.replace(curve, values=curve.values + 50 * n) for n, curve in enumerate(curves)]
    scheme, _ = build(T5Config(), model_facts(num_heads=3))
    tables = []
    for chosen in (curves, moved):
        scheme.fit(chosen)
        tables.append(scheme.table.detach().clone())
    torch.testing.assert_close(*tables, atol=1e-4, rtol=0)
    seen = curves[0].weights > 0
    torch.testing.assert_close(pooled(curves[:1]).values[seen], curves[0].centred().values[seen])


def test_fixed_slopes_have_nothing_to_fit():
    scheme, layer = build(AlibiConfig(), model_facts())
    curve = causal_curve(torch.zeros(4, 10))
    assert not layer.fit(curve)
    assert not scheme.fit([curve])
