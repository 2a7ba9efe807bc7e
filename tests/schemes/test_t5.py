"""t5 against its oracle, T5 and MPNet, and the traps: the edges of the buckets."""

import pytest
import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder
from transformers.models.t5.modeling_t5 import T5Attention

from hf_posswap.common.biases import RelativeBias
from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes.t5 import T5Config, t5_bucket
from tests.oracles.t5 import bucket
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

FAR = torch.arange(-3000, 3001)
UNLISTED = 2**17
"""A `max_distance` above `LONGEST_LISTED`."""


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize(("causal", "kind"), CALLS)
def test_equals_the_oracle(causal, kind, per_layer):
    facts = model_facts(causal=causal)
    call = make_call(kind, facts)
    # 8 buckets up to distance 8: short texts reach the logarithmic ones and the last.
    scheme, layer = build(T5Config(num_buckets=8, max_distance=8, per_layer=per_layer), facts)
    table = as_array((layer if per_layer else scheme).table)
    expected = run_oracle("t5", call, table=table, max_distance=8, causal=causal)
    assert_close_where_real(call, run_scheme(scheme, layer, call, "sdpa"), expected)


@pytest.mark.parametrize(
    ("num_buckets", "max_distance"), [(32, 128), (32, 256), (64, 1000), (8, 20), (16, 2048), (32, UNLISTED)]
)
@pytest.mark.parametrize("causal", [True, False])
def test_buckets_equal_t5(causal, num_buckets, max_distance):
    ours = t5_bucket(FAR, num_buckets, max_distance, causal)
    theirs = T5Attention._relative_position_bucket(
        -FAR, bidirectional=not causal, num_buckets=num_buckets, max_distance=max_distance
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("causal", [True, False])
def test_buckets_equal_exact_arithmetic_at_the_defaults(causal):
    ours = t5_bucket(FAR, 32, 128, causal).tolist()
    assert ours == [bucket(-distance, 32, 128, causal) for distance in FAR.tolist()]


def test_encoder_buckets_equal_mpnet():
    theirs = MPNetEncoder.relative_position_bucket(-FAR, num_buckets=32, max_distance=128)
    assert torch.equal(t5_bucket(FAR, 32, 128, causal=False), theirs)


def test_where_the_last_buckets_begin():
    causal, encoder = t5_bucket(FAR, 32, 128, True), t5_bucket(FAR, 32, 128, False)
    assert FAR[causal == 31].min() == 113
    assert FAR[encoder == 15].min() == 91
    assert FAR[encoder == 31].max() == -91
    assert not (encoder == 16).any(), "the bucket of distance 0 to the right cannot occur"
    assert set(encoder.tolist()) == set(range(32)) - {16}


def test_keys_to_the_right_use_the_upper_half():
    assert t5_bucket(torch.tensor([3, 0, -3]), 32, 128, causal=False).tolist() == [3, 0, 19]


def test_half_precision_keeps_the_buckets_of_far_keys():
    positions = Positions(torch.tensor([[4097]]), torch.arange(4098)[None], offset=4097, causal=True)
    scheme, _ = build(T5Config(max_distance=8192), model_facts())
    expected = scheme.prepare(positions)
    scheme.to(torch.bfloat16)
    bias = scheme.prepare(positions)
    assert isinstance(bias, RelativeBias)
    assert bias.values.dtype == torch.float32
    torch.testing.assert_close(bias.values, expected.values, atol=0, rtol=2**-8)  # the table's own rounding


def test_starts_as_no_position():
    facts = model_facts()
    config = T5Config()
    scheme = type(build(config, facts)[0])(config, facts)
    assert torch.equal(scheme.table, torch.zeros(32, facts.num_heads))


@pytest.mark.parametrize("kind", ["whole", "padded", "skipping"])
def test_table_learns_in_every_bucket_that_occurs(kind):
    facts = model_facts()
    scheme, layer = build(T5Config(num_buckets=8, max_distance=8), facts)
    call = make_call(kind, facts)
    run_scheme(scheme, layer, call, "sdpa").transpose(1, 2)[call.real].square().sum().backward()
    distances = (call.at[:, :, None] - call.at[:, None, :])[call.visible & call.real[:, :, None]]
    occurring = t5_bucket(distances, 8, 8, causal=True).unique()
    changed = (scheme.table.grad != 0).all(dim=1).nonzero()[:, 0]
    assert torch.equal(changed, occurring)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_buckets": 30}, "multiple of 4"),
        ({"num_buckets": 2}, "at least 4"),
        ({"max_distance": 16}, "greater than num_buckets / 2"),
    ],
)
def test_buckets_that_do_not_work_are_refused(options, message):
    with pytest.raises(SchemeConfigError, match=message):
        T5Config(**options)
