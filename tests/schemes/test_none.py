"""none against its oracle: plain attention, and DroPE's factor beyond the train length."""

import pytest
import torch

from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError, UnsupportedError
from hf_posswap.schemes import check_supported
from hf_posswap.schemes.none import NoneConfig
from tests.reference import (
    CAUSAL_CALLS,
    assert_close_where_real,
    build,
    make_call,
    model_facts,
    run_oracle,
    run_scheme,
)


@pytest.mark.parametrize("recalibration", [0.0, 0.4])
@pytest.mark.parametrize("kind", CAUSAL_CALLS)
def test_equals_the_oracle(kind, recalibration):
    facts = model_facts(train_length=4)
    call = make_call(kind, facts)
    scheme, layer = build(NoneConfig(recalibration=recalibration), facts)
    expected = run_oracle("none", call, recalibration=recalibration, original_length=4)
    backend = "eager" if recalibration == 0 else "sdpa"
    assert_close_where_real(call, run_scheme(scheme, layer, call, backend), expected)


def test_order_of_the_keys_does_not_matter_to_the_last_query():
    facts = model_facts()
    call = make_call("decode", facts)
    scheme, layer = build(NoneConfig(), facts)
    order = torch.randperm(call.k.shape[2])
    shuffled = type(call)(**{**vars(call), "k": call.k[:, :, order], "v": call.v[:, :, order]})
    torch.testing.assert_close(run_scheme(scheme, layer, shuffled), run_scheme(scheme, layer, call))


def test_factor_is_one_up_to_the_train_length_and_grows_beyond():
    scheme, _ = build(NoneConfig(recalibration=0.5), model_facts(train_length=4))
    positions = Positions(*[torch.arange(8)[None]] * 2, offset=0, causal=True)
    factor = scheme.prepare(positions).flatten()
    assert factor[:4].tolist() == [1.0] * 4
    assert (factor[3:].diff() > 0).all()


def test_an_encoder_is_refused_as_a_bag_of_words():
    with pytest.raises(UnsupportedError, match="bag of words"):
        check_supported(NoneConfig(), model_facts(causal=False))


def test_an_encoder_that_keeps_its_positions_is_no_bag_of_words():
    check_supported(NoneConfig(keep_native=True, log_n=True), model_facts(causal=False))
    with pytest.raises(UnsupportedError, match="recalibration=0.5 counts the tokens before a query"):
        check_supported(NoneConfig(keep_native=True, recalibration=0.5), model_facts(causal=False))


def test_what_would_change_nothing_is_refused():
    with pytest.raises(SchemeConfigError, match="changes nothing"):
        NoneConfig(keep_native=True)
