"""fox against its oracle, its start, and what calibration fits of it."""

import math

import pytest
import torch

from hf_posswap.common.positions import Positions
from hf_posswap.common.summed_bias import SummedBias
from hf_posswap.errors import UnsupportedError
from hf_posswap.schemes import check_supported
from hf_posswap.schemes.curves import Curve
from hf_posswap.schemes.fox import Fox, FoxConfig, FoxLayer
from tests.reference import (
    CAUSAL_CALLS,
    as_array,
    assert_close_where_real,
    build,
    layer_bias,
    make_call,
    model_facts,
    run_oracle,
    run_scheme,
)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", CAUSAL_CALLS)
def test_equals_the_oracle(kind, backend):
    call = make_call(kind, model_facts())
    scheme, layer = build(FoxConfig(), model_facts())
    parameters = {"weight": as_array(layer.function.weight), "shift": as_array(layer.function.shift)}
    actual = run_scheme(scheme, layer, call, backend)
    assert_close_where_real(call, actual, run_oracle("fox", call, **parameters))


def test_starts_as_a_line_and_calibration_fits_its_slope():
    layer = FoxLayer(model_facts(), 6.0)
    state = layer.state(torch.randn(2, 7, 16), None, None)
    torch.testing.assert_close(state, torch.full((2, 4, 7), math.log(1 + math.exp(-6))))
    distances = torch.arange(-15, 16)
    slopes = torch.tensor([0.5, 0.01, 3.0, 1e-4])
    curve = Curve(distances, 2 - slopes[:, None] * distances, (distances >= 0).float().expand(4, -1))
    torch.nn.init.normal_(layer.function.weight)
    assert layer.fit(curve)
    state = layer.state(torch.randn(2, 7, 16), None, None)
    torch.testing.assert_close(state, slopes[None, :, None].expand(2, -1, 7), atol=1e-6, rtol=1e-4)


def test_a_gate_that_closes_hides_the_text_before_it():
    layer = FoxLayer(model_facts(), 6.0)
    with torch.no_grad():
        layer.function.weight[:, 0] = -100.0
    hidden = torch.zeros(1, 6, 16)
    hidden[0, 3, 0] = 1.0  # the gate of token 3 is e^−94
    steps = layer.state(hidden, None, None)
    rows = SummedBias(steps, 0, 6).rows(0, 6)
    assert (rows[0, :, 3:, :3] < -90).all()
    assert (rows[0, :, 3:, 3:] > -0.02).all()
    assert (rows[0, :, :3, :3] > -0.02).all()


def test_without_hidden_states_the_bias_is_a_line_at_any_distances():
    layer = FoxLayer(model_facts(), 1.0)
    slope = math.log(1 + math.exp(-1))
    for by_index, at in ((True, torch.arange(5)[None]), (False, torch.tensor([[0, 3, 7, 20]]))):
        query = torch.zeros(1, 4, at.shape[1], 8)
        rows = layer_bias(layer, query, Positions(at, at, 0, True, by_index=by_index), None).rows(0, at.shape[1])
        line = -slope * (at[0][:, None] - at[0]).clamp(min=0)
        past = torch.ones_like(line, dtype=torch.bool).tril()
        torch.testing.assert_close(rows[0, 2][past], line[past])


def test_an_encoder_is_refused_with_the_reason():
    with pytest.raises(UnsupportedError, match="cable sums steps on both sides"):
        check_supported(FoxConfig(), model_facts(causal=False))
    assert not Fox.supports_encoder
