"""transformer_xl against its oracle, XLNet and Wav2Vec2-Conformer."""

import pytest
import torch
from transformers import Wav2Vec2ConformerConfig, XLNetConfig, XLNetModel
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
    Wav2Vec2ConformerRelPositionalEmbedding,
    Wav2Vec2ConformerSelfAttention,
)

from hf_posswap.attention import attend, sdpa
from hf_posswap.attention.cpu import strided
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.common.positions import Positions
from hf_posswap.errors import UnsupportedError
from hf_posswap.schemes import check_supported, scheme_class
from hf_posswap.schemes.transformer_xl import TransformerXLConfig
from tests.reference import (
    CALLS,
    as_array,
    assert_close_where_real,
    build,
    layer_bias,
    make_call,
    model_facts,
    randomise,
    run_oracle,
    run_scheme,
)


@pytest.mark.parametrize("base", [10000.0, 50.0])
@pytest.mark.parametrize(("causal", "kind"), CALLS)
def test_equals_the_oracle(causal, kind, base, monkeypatch):
    facts = model_facts(causal=causal)
    call = make_call(kind, facts, length=8)
    scheme, layer = build(TransformerXLConfig(base=base), facts)
    expected = run_oracle(
        "transformer_xl",
        call,
        u=as_array(layer.content_bias),
        v_bias=as_array(layer.position_bias),
        weight=as_array(layer.position_weight),
        base=base,
    )
    assert_close_where_real(call, run_scheme(scheme, layer, call).detach(), expected)
    for module, name in ((sdpa, "QUERY_BLOCK"), (strided, "QUERY_BLOCK"), (strided, "CONTENT_BLOCK")):
        monkeypatch.setattr(module, name, 4)  # several blocks of queries
    assert_close_where_real(call, run_scheme(scheme, layer, call, "sdpa").detach(), expected)


def ours_and_projections(q, k, v, u, v_bias, weight, causal, offset=0):
    """Run our layer with the given parameters on q (B, H, Lq, d) and k, v (B, H, Lk, d)."""
    heads, head_dim = u.shape
    facts = model_facts(
        causal=causal, hidden_size=weight.shape[1], num_heads=heads, num_key_value_heads=heads, head_dim=head_dim
    )
    scheme, layer = build(TransformerXLConfig(), facts)
    with torch.no_grad():
        layer.content_bias.copy_(u)
        layer.position_bias.copy_(v_bias)
        layer.position_weight.copy_(weight)
    at = torch.arange(k.shape[2])[None]
    positions = Positions(at[:, offset:], at, offset, causal)
    prepared = scheme.prepare(positions)
    q, k = layer.transform(q, k, positions, prepared)
    bias = layer_bias(layer, q, positions, prepared, head_dim**-0.5, k)
    mask = torch.ones(1, 1, k.shape[2], k.shape[2], dtype=torch.bool).tril()[:, :, offset:] if causal else None
    return attend(AttentionInputs(q, k, v, mask, causal, head_dim**-0.5), bias, None, "sdpa")[0]


@pytest.mark.parametrize(("attn_type", "memory"), [("bi", 0), ("uni", 0), ("uni", 5)])
def test_equals_xlnet(attn_type, memory):
    config = XLNetConfig(vocab_size=10, d_model=32, n_head=4, n_layer=1, d_inner=8, attn_type=attn_type, dropout=0.0)
    model = XLNetModel(config).eval()
    theirs = model.layer[0].rel_attn
    randomise(theirs)
    length, total = 7, 7 + memory
    q, k, v = torch.randn(length, 2, 4, 8), torch.randn(total, 2, 4, 8), torch.randn(total, 2, 4, 8)
    distances = model.relative_positional_encoding(length, total, bsz=2)
    k_relative = torch.einsum("ibh,hnd->ibnd", distances, theirs.r)
    hidden = torch.ones(length, total).triu(1 + memory)[:, :, None, None] if attn_type == "uni" else None
    expected = theirs.rel_attn_core(q, k, v, k_relative, attn_mask=hidden)
    q, k, v = (x.permute(1, 2, 0, 3) for x in (q, k, v))
    weight = theirs.r.permute(1, 2, 0).reshape(32, 32)
    ours = ours_and_projections(q, k, v, theirs.r_w_bias, theirs.r_r_bias, weight, attn_type == "uni", memory)
    torch.testing.assert_close(ours.permute(2, 0, 1, 3), expected, atol=1e-5, rtol=1e-5)


def test_equals_wav2vec2_conformer():
    config = Wav2Vec2ConformerConfig(
        hidden_size=32, num_attention_heads=4, position_embeddings_type="relative", attn_implementation="eager"
    )
    theirs = Wav2Vec2ConformerSelfAttention(config).eval()
    randomise(theirs, 0.2)
    hidden = torch.randn(2, 9, 32)
    expected = theirs(hidden, relative_position_embeddings=Wav2Vec2ConformerRelPositionalEmbedding(config)(hidden))[0]
    q, k, v = (
        project(hidden).view(2, 9, 4, 8).transpose(1, 2)
        for project in (theirs.linear_q, theirs.linear_k, theirs.linear_v)
    )
    # Its sines and cosines alternate; ours come one after the other, so the columns of W_R are sorted to match.
    weight = torch.cat([theirs.linear_pos.weight[:, 0::2], theirs.linear_pos.weight[:, 1::2]], dim=1)
    context = ours_and_projections(q, k, v, theirs.pos_bias_u, theirs.pos_bias_v, weight, causal=False)
    ours = theirs.linear_out(context.transpose(1, 2).reshape(2, 9, 32))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_starts_as_no_position():
    layer = scheme_class("transformer_xl")(TransformerXLConfig(), model_facts()).make_layer(0)
    assert not any(parameter.any() for parameter in layer.parameters())


def test_every_parameter_learns():
    facts = model_facts()
    scheme, layer = build(TransformerXLConfig(), facts)
    run_scheme(scheme, layer, make_call("whole", facts), "sdpa").square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.any(), name


def test_odd_width_is_refused():
    with pytest.raises(UnsupportedError, match="even model width, and it is 15"):
        check_supported(TransformerXLConfig(), model_facts(hidden_size=15))
