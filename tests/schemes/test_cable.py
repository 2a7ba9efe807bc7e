"""cable against its oracle in both directions, its start, and what calibration fits of it."""

import pytest
import torch

from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes.cable import CableConfig, CableLayer
from hf_posswap.schemes.curves import Curve
from tests.reference import (
    CALLS,
    as_array,
    assert_close_where_real,
    build,
    make_call,
    model_facts,
    run_oracle,
    run_scheme,
)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(("causal", "kind"), CALLS)
def test_equals_the_oracle(causal, kind, backend, weighted):
    facts = model_facts(causal=causal)
    call = make_call(kind, facts)
    scheme, layer = build(CableConfig(weighted=weighted), facts)
    parameters = {"weight": as_array(layer.function.weight), "shift": as_array(layer.function.shift)}
    if weighted:
        parameters |= {"factor_weight": as_array(layer.weighting.weight)}
        parameters |= {"factor_shift": as_array(layer.weighting.shift)}
    actual = run_scheme(scheme, layer, call, backend)
    assert_close_where_real(call, actual, run_oracle("cable", call, **parameters))


@pytest.mark.parametrize("causal", [True, False])
def test_starts_as_a_line_and_calibration_fits_its_slope(causal):
    layer = CableLayer(model_facts(causal=causal), CableConfig(step=0.25))
    state = layer.state(torch.randn(2, 7, 16), None, None)
    torch.testing.assert_close(state, torch.full((2, 4, 7), 0.25))
    factors = layer.weighting.of(torch.randn(2, 7, 16))
    torch.testing.assert_close(torch.nn.functional.softplus(factors), torch.ones(2, 4, 7))
    distances = torch.arange(-15, 16)
    slopes = torch.tensor([0.5, 0.01, 3.0, 1e-4])
    weights = torch.ones(4, 31) if not causal else (distances >= 0).float().expand(4, -1)
    curve = Curve(distances, 2 - slopes[:, None] * distances.abs(), weights)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    assert layer.fit(curve)
    state = layer.state(torch.randn(2, 7, 16), None, None)
    torch.testing.assert_close(state, slopes[None, :, None].expand(2, -1, 7), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(
        torch.nn.functional.softplus(layer.weighting.of(torch.randn(1, 2, 16))), torch.ones(1, 4, 2)
    )


def test_a_step_of_zero_would_never_learn_and_is_refused():
    with pytest.raises(SchemeConfigError, match="'step' is 0.0; it must be greater than 0"):
        CableConfig(step=0)
