"""shaw against its oracle and Wav2Vec2-BERT."""

import pytest
import torch
from transformers import Wav2Vec2BertConfig
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertSelfAttention

from hf_posswap.attention import attend, sdpa
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.common.content_biases import ClippedContentBias, PairedContentBias
from hf_posswap.common.positions import Positions
from hf_posswap.schemes import scheme_class
from hf_posswap.schemes.shaw import ShawConfig
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


@pytest.mark.parametrize("query_and_key", [False, True])
@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize(("causal", "kind"), CALLS)
def test_equals_the_oracle(causal, kind, values, query_and_key, monkeypatch):
    facts = model_facts(causal=causal)
    call = make_call(kind, facts)
    scheme, layer = build(ShawConfig(max_distance=3, values=values, query_and_key=query_and_key), facts)
    tables = {
        "query_and_key": query_and_key,
        "key_table": as_array(layer.key_table),
        "value_table": as_array(layer.value_table) if values else None,
    }
    expected = run_oracle("shaw", call, **tables)
    assert_close_where_real(call, run_scheme(scheme, layer, call).detach(), expected)
    monkeypatch.setattr(sdpa, "QUERY_BLOCK", 4)  # several blocks of queries
    assert_close_where_real(call, run_scheme(scheme, layer, call, "sdpa").detach(), expected)


@pytest.mark.parametrize("length", [5, 40])
def test_keys_equal_wav2vec2_bert(length):
    config = Wav2Vec2BertConfig(
        hidden_size=32,
        num_attention_heads=4,
        position_embeddings_type="relative_key",
        left_max_position_embeddings=6,
        right_max_position_embeddings=6,
        attn_implementation="eager",
    )
    theirs = Wav2Vec2BertSelfAttention(config).eval()
    facts = model_facts(causal=False, hidden_size=32, num_key_value_heads=4)
    scheme, layer = build(ShawConfig(max_distance=6, values=False), facts)
    layer.key_table = theirs.distance_embedding.weight
    hidden = torch.randn(2, length, 32)
    q, k, v = (
        project(hidden).view(2, length, 4, 8).transpose(1, 2)
        for project in (theirs.linear_q, theirs.linear_k, theirs.linear_v)
    )
    positions = Positions(*[torch.arange(length)[None]] * 2, offset=0, causal=False)
    bias = layer_bias(layer, q, positions, scheme.prepare(positions), theirs.scaling, k)
    context, _ = attend(AttentionInputs(q, k, v, None, False, theirs.scaling), bias, None, "sdpa")
    ours = theirs.linear_out(context.transpose(1, 2).reshape(2, length, 32))
    torch.testing.assert_close(ours, theirs(hidden)[0], atol=1e-6, rtol=1e-5)  # the same float32 terms, reordered


@pytest.mark.parametrize("reach", [3, 30])
def test_keys_are_multiplied_the_same_way_whichever_is_smaller(reach):
    length, heads, dim = 24, 4, 8
    table, query = torch.randn(2 * reach + 1, dim), torch.randn(2, heads, length, dim)
    index = (torch.arange(length)[None] - torch.arange(length)[:, None]).clamp(-reach, reach) + reach
    by_query = ClippedContentBias(query, table, lambda start, stop: index[None, start:stop], scaling=0.3)
    k = torch.randn(2, 2, length, dim)
    bias = PairedContentBias(by_query, k)
    vectors = table[index]
    expected = torch.einsum("bhid,ijd->bhij", query, vectors)
    expected = expected + torch.einsum("bhjd,ijd->bhij", k.repeat_interleave(2, dim=1), vectors)
    for step in (1, 7, 24):  # of few queries a vector for each pair is smaller than all products, of many it is not
        rows = torch.cat([bias.rows(start, min(start + step, length)) for start in range(0, length, step)], dim=2)
        torch.testing.assert_close(rows, expected * 0.3, atol=1e-5, rtol=1e-5)
    half = bias.scaled(torch.tensor(0.5)).rows(0, length)
    torch.testing.assert_close(half, expected * 0.15, atol=1e-5, rtol=1e-5)


def test_calibration_refuses_keys_that_look_up_the_distance():
    scheme = scheme_class("shaw")
    assert "by query only" in scheme(ShawConfig(query_and_key=True), model_facts()).calibration_refusal
    assert not scheme(ShawConfig(), model_facts()).calibration_refusal


def test_distance_is_signed():
    facts = model_facts(causal=False)
    call = make_call("whole", facts)
    scheme, layer = build(ShawConfig(max_distance=3), facts)
    forward = run_scheme(scheme, layer, call)
    mirrored = type(call)(**{**vars(call), **{name: getattr(call, name).flip(2) for name in ("q", "k", "v")}})
    assert not torch.allclose(run_scheme(scheme, layer, mirrored).flip(2), forward, atol=1e-2)


def test_starts_as_no_position():
    facts = model_facts()
    layer = scheme_class("shaw")(ShawConfig(), facts).make_layer(0)
    assert layer.mixes_values
    assert not any(parameter.any() for parameter in layer.parameters())
    assert not scheme_class("shaw")(ShawConfig(values=False), facts).make_layer(0).mixes_values


def test_both_tables_learn_at_every_distance_that_occurs():
    facts = model_facts()
    scheme, layer = build(ShawConfig(max_distance=3), facts)
    run_scheme(scheme, layer, make_call("whole", facts), "sdpa").square().sum().backward()
    for table in (layer.key_table, layer.value_table):
        # In a causal model only keys to the left occur: rows 0…K.
        assert table.grad.any(dim=1).tolist() == [True] * 4 + [False] * 3
