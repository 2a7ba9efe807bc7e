"""deberta against its oracle and DeBERTa-v2; its buckets, its cost, and its calibration."""

import pytest
import torch
from transformers import DebertaV2Config
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention, make_log_bucket_position

from hf_posswap.attention import attend, sdpa
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.common.content_biases import ClippedContentBias, PairedContentBias
from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError
from hf_posswap.schemes import scheme_class
from hf_posswap.schemes.deberta import DebertaConfig, log_bucket
from tests.attention.test_memory import LargestStorage
from tests.reference import (
    CALLS,
    as_array,
    assert_close_where_real,
    build,
    layer_bias,
    make_call,
    model_facts,
    run_oracle,
    run_scheme,
)

SMALL = {"buckets": 4, "max_distance": 7}
"""Four buckets a side: distances up to 2 alone, larger ones together, those from 7 on in the last."""


@pytest.mark.parametrize(("causal", "kind"), CALLS)
def test_equals_the_oracle(causal, kind, monkeypatch):
    facts = model_facts(causal=causal)
    call = make_call(kind, facts)
    scheme, layer = build(DebertaConfig(**SMALL), facts)
    tables = {name: as_array(getattr(layer, name)) for name in ("position_keys", "position_queries")}
    expected = run_oracle("deberta", call, **SMALL, **tables)
    assert_close_where_real(call, run_scheme(scheme, layer, call).detach(), expected)
    monkeypatch.setattr(sdpa, "QUERY_BLOCK", 4)  # several blocks of queries
    assert_close_where_real(call, run_scheme(scheme, layer, call, "sdpa").detach(), expected)


@pytest.mark.parametrize(("buckets", "longest"), [(256, 512), (32, 128), (9, 37), (4, 16), (256, 256), (16, 10)])
def test_the_buckets_are_those_of_deberta_v2(buckets, longest):
    distance = torch.arange(-3 * longest, 3 * longest + 1)
    theirs = make_log_bucket_position(distance, buckets, longest).long().clamp(-buckets, buckets - 1)
    assert torch.equal(log_bucket(distance, buckets, longest), theirs)


@pytest.mark.parametrize("length", [6, 40])
def test_equals_deberta_v2(length):
    config = DebertaV2Config(
        hidden_size=32, num_attention_heads=4, relative_attention=True, position_buckets=8, max_relative_positions=24,
        pos_att_type=["c2p", "p2c"], share_att_key=True,
    )  # fmt: skip
    theirs = DisentangledSelfAttention(config).eval()
    vectors, hidden = torch.randn(16, 32), torch.randn(2, length, 32)
    facts = model_facts(causal=False, hidden_size=32, num_key_value_heads=4)
    scheme, layer = build(DebertaConfig(buckets=8, max_distance=24), facts)

    def heads(x):
        return x.unflatten(-1, (4, 8)).transpose(-2, -3)

    q, k, v = (heads(project(hidden)) for project in (theirs.query_proj, theirs.key_proj, theirs.value_proj))
    with torch.no_grad():
        layer.position_keys.copy_(heads(theirs.key_proj(vectors)))
        layer.position_queries.copy_(heads(theirs.query_proj(vectors)))
    positions = Positions(*[torch.arange(length)[None]] * 2, offset=0, causal=False)
    scaling = (3 * 8) ** -0.5
    bias = layer_bias(layer, q, positions, scheme.prepare(positions), scaling, k)
    context, _ = attend(AttentionInputs(q, k, v, None, False, scaling), bias, None, "sdpa")
    expected = theirs(hidden, torch.ones(2, 1, length, length), rel_embeddings=vectors)[0]
    torch.testing.assert_close(context.transpose(1, 2).flatten(2), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("per_head", [False, True])
def test_keys_have_a_table_of_their_own_and_are_multiplied_the_same_way_whichever_is_smaller(per_head):
    length, heads, dim, rows = 24, 4, 8, 7
    shape = (heads, rows, dim) if per_head else (rows, dim)
    table, key_table = torch.randn(shape), torch.randn(shape)
    query, key = torch.randn(1, heads, length, dim), torch.randn(1, 2, length, dim)
    index = (torch.arange(length)[None] - torch.arange(length)[:, None]).clamp(-3, 3) + 3
    by_query = ClippedContentBias(query, table, lambda start, stop: index[None, start:stop], scaling=0.3)
    bias = PairedContentBias(by_query, key, key_table)
    vectors, key_vectors = (t.expand(heads, rows, dim)[:, index] for t in (table, key_table))
    expected = torch.einsum("bhid,hijd->bhij", query, vectors)
    expected = 0.3 * (expected + torch.einsum("bhjd,hijd->bhij", key.repeat_interleave(2, dim=1), key_vectors))
    for step in (1, 7, 24):  # of few queries a vector for each pair is smaller than all products, of many it is not
        rows_of = [bias.rows(start, min(start + step, length)) for start in range(0, length, step)]
        torch.testing.assert_close(torch.cat(rows_of, dim=2), expected, atol=1e-5, rtol=1e-5)
    half = bias.scaled(torch.tensor(0.5)).rows(0, length)
    torch.testing.assert_close(half, expected * 0.5, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_starts_as_no_position_and_both_tables_learn_at_every_distance_that_occurs(causal):
    facts = model_facts(causal=causal)
    fresh = scheme_class("deberta")(DebertaConfig(**SMALL), facts).make_layer(0)
    assert not any(parameter.any() for parameter in fresh.parameters())
    scheme, layer = build(DebertaConfig(**SMALL), facts)
    run_scheme(scheme, layer, make_call("whole", facts), "sdpa").square().sum().backward()
    for table in (layer.position_keys, layer.position_queries):
        assert table.grad.any(dim=2).all(), "11 tokens have a distance in every bucket"


def test_a_long_text_holds_no_tensor_of_heads_times_length_times_length():
    length = 4096
    facts = model_facts()
    scheme, layer = build(DebertaConfig(buckets=32), facts)
    call = make_call("whole", facts, length=length)
    with torch.no_grad(), LargestStorage() as record:
        assert run_scheme(scheme, layer, call, "sdpa").isfinite().all()
    # 256 rows for 2 texts and 4 heads in float32, a sixteenth of the whole bias.
    assert record.bytes <= 4 * 2 * 4 * 256 * length


def test_the_products_of_the_keys_are_computed_once_for_all_blocks_of_queries():
    facts = model_facts(num_key_value_heads=4)
    scheme, layer = build(DebertaConfig(**SMALL), facts)
    positions = make_call("whole", facts, length=600).positions(0, 600)
    x = torch.randn(1, 4, 600, 8)
    bias = layer_bias(layer, x, positions, scheme.prepare(positions), k=x)
    bias.rows(0, 256)
    kept = bias._products[0]
    bias.rows(256, 600)
    assert len(bias._products) == 1
    assert bias._products[0] is kept


def test_the_longest_distance_is_the_train_length():
    assert DebertaConfig(buckets=4).resolve(model_facts()).max_distance == 16
    assert DebertaConfig().resolve(model_facts()).max_distance == 256
    assert DebertaConfig(max_distance=300).resolve(model_facts()).max_distance == 300


@pytest.mark.parametrize("options", [{"buckets": 3}, {"max_distance": 129}, {"buckets": 10, "max_distance": 6}])
def test_bad_options_are_refused(options):
    name = list(options)[-1]
    with pytest.raises(SchemeConfigError, match=f"deberta option '{name}' is {options[name]}; it must be"):
        DebertaConfig(**options)
