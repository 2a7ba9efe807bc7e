"""Every bias kind through every backend, against a float64 loop; pairs that do not work name backends that do."""

import re

import pytest
import torch

from hf_posswap.attention import BACKENDS, attend, explain_path, sdpa
from hf_posswap.attention.cpu import strided
from hf_posswap.attention.flex import FLEX_BIASES
from hf_posswap.common.biases import LinearBias
from hf_posswap.common.content_biases import RelativeContentBias
from hf_posswap.errors import BackendError
from tests.attention.kinds import CALLS, KINDS, fold_for_flash, make_biased_call
from tests.reference import FLOAT32, dense_attention


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_loop(kind, call, backend):
    biased = make_biased_call(kind, call)
    biased.assert_close(attend(biased.inputs, biased.bias, None, backend)[0], **FLOAT32)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_queries_equal_the_loop(kind, call, monkeypatch):
    for module, name in ((sdpa, "QUERY_BLOCK"), (strided, "QUERY_BLOCK"), (strided, "CONTENT_BLOCK")):
        monkeypatch.setattr(module, name, 4)  # 11 queries: two whole blocks and a rest
    biased = make_biased_call(kind, call)
    biased.assert_close(attend(biased.inputs, biased.bias, None, "sdpa")[0], **FLOAT32)


@pytest.mark.parametrize(("heads", "head_dim"), [((9, 3), 64), ((3, 1), 5), ((2, 2), 13)])
@pytest.mark.parametrize("kind", KINDS)
def test_grouped_heads_and_odd_dimensions_equal_the_loop(kind, heads, head_dim):
    for call in ("causal", "boolean mask"):
        biased = make_biased_call(kind, call, heads, head_dim, length=7)
        for backend in ("eager", "sdpa"):
            biased.assert_close(attend(biased.inputs, biased.bias, None, backend)[0], **FLOAT32)


@pytest.mark.parametrize("call", ["causal", "additive mask", "chunk"])
@pytest.mark.parametrize("kind", KINDS)
def test_float64_models_keep_the_bias(kind, call):
    # torch's fused kernel takes a float32 mask with float64 queries and, from such sizes on, misreads it.
    biased = make_biased_call(kind, call, head_dim=32, length=40, dtype=torch.float64)
    inputs, sees = biased.inputs, biased.visible.any(-1)
    rows = biased.bias.rows(0, inputs.query_length)
    truth = dense_attention(inputs.q, inputs.k, inputs.v, rows, biased.visible[:, None], inputs.scaling)
    for backend in ("eager", "sdpa"):
        context = attend(inputs, biased.bias, None, backend)[0]
        assert context.dtype == torch.float64
        torch.testing.assert_close(*(x.transpose(1, 2)[sees] for x in (context, truth)), **FLOAT32)


@pytest.mark.parametrize("call", ["causal", "boolean mask", "encoder mask"])
@pytest.mark.parametrize("kind", KINDS)
def test_eager_returns_weights_that_sum_to_one_over_visible_keys(kind, call):
    biased = make_biased_call(kind, call)
    weights = attend(biased.inputs, biased.bias, None, "eager")[1]
    assert weights.shape == (2, 4, 11, 11)
    sees = biased.visible.any(-1)
    hidden = weights.masked_fill(biased.visible[:, None], 0).transpose(1, 2)[sees]
    assert hidden.abs().max() == 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 11))


def test_a_mask_that_is_the_same_for_all_queries_may_have_one_row(monkeypatch):
    for module, name in ((sdpa, "QUERY_BLOCK"), (strided, "QUERY_BLOCK"), (strided, "CONTENT_BLOCK")):
        monkeypatch.setattr(module, name, 4)
    for kind in KINDS:
        biased = make_biased_call(kind, "encoder mask")
        one_row = type(biased.inputs)(**{**vars(biased.inputs), "mask": biased.inputs.mask[:, :, :1]})
        for backend in ("eager", "sdpa"):
            biased.assert_close(attend(one_row, biased.bias, None, backend)[0], **FLOAT32)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_keeps_or_drops_each_weight(kind, backend):
    biased = make_biased_call(kind, "causal", (4, 4), head_dim=24, length=24, dropout=0.25)
    one_hot = torch.eye(24).expand(2, 4, -1, -1).contiguous()  # values that make the context the weights themselves
    inputs = type(biased.inputs)(**{**vars(biased.inputs), "v": one_hot})
    whole = attend(type(inputs)(**{**vars(inputs), "dropout": 0.0}), biased.bias, None, backend)[0]
    kept = attend(inputs, biased.bias, None, backend)[0]
    dropped = (kept == 0) & (whole != 0)
    torch.testing.assert_close(kept[~dropped], whole[~dropped] / 0.75, **FLOAT32)
    share = dropped.sum() / (whole != 0).sum()
    assert share.item() == pytest.approx(0.25, abs=0.06)  # 2400 weights: six standard deviations


@pytest.mark.parametrize("call", ["causal", "boolean mask", "chunk"])
def test_no_future_leak(call):
    for kind in KINDS:
        biased = make_biased_call(kind, call)
        before = attend(biased.inputs, biased.bias, None, "sdpa")[0]
        biased.inputs.k[:, :, -1] += 5
        biased.inputs.v[:, :, -1] += 5
        after = attend(biased.inputs, biased.bias, None, "sdpa")[0]
        sees = biased.visible.any(-1)[:, :-1]  # a query that sees nothing means nothing
        assert torch.equal(*(x[:, :, :-1].transpose(1, 2)[sees] for x in (after, before)))
        assert not torch.equal(after[:, :, -1], before[:, :, -1])


def no_mix(weights, start):
    return weights.sum(-1, keepdim=True)


def refusal(biased, mix, backend):
    """The message with which a backend refuses a bias, or None; flash attention runs through folding."""
    try:
        if backend == "flash_attention_2":
            fold_for_flash(biased.inputs, biased.bias, mix, backend)
        else:
            attend(biased.inputs, biased.bias, mix, backend)
    except BackendError as error:
        return str(error)
    return None


@pytest.mark.parametrize("mix", [None, no_mix])
@pytest.mark.parametrize("kind", KINDS)
def test_flash_attention_carries_what_folds_and_refuses_the_rest(kind, mix):
    biased = make_biased_call(kind, "causal", dtype=torch.bfloat16)
    message = refusal(biased, mix, "flash_attention_2")
    if kind in ("linear", "separable", "summed", "summed with factors") and mix is None:
        assert message is None
        return
    named = re.search(r"Backends that work: ([a-z_, ]+)\.", message).group(1).split(", ")
    assert {"eager", "sdpa"} <= set(named)
    assert ("flex_attention" in named) is (mix is None and isinstance(biased.bias, FLEX_BIASES))
    for backend in set(named) - {"flex_attention"}:
        assert refusal(biased, mix, backend) is None


@pytest.mark.parametrize(
    ("kind", "mix", "dropout", "gradient", "reason"),
    [
        ("relative content", None, 0.0, False, "cannot carry a bias on the scores .RelativeContentBias"),
        ("linear", no_mix, 0.0, False, "a scheme with a value side"),
        ("linear", None, 0.1, False, r"no attention dropout \(here 0.1\)"),
        ("linear", None, 0.0, True, "no backward pass on CPU"),
    ],
)
def test_flex_attention_refuses_what_it_cannot_do(kind, mix, dropout, gradient, reason):
    biased = make_biased_call(kind, "causal", dropout=dropout)
    biased.inputs.q.requires_grad_(gradient)
    message = refusal(biased, mix, "flex_attention")
    assert re.search(reason, message)
    assert "eager, sdpa" in message
    assert refusal(biased, mix, "eager") is None
    assert refusal(biased, mix, "sdpa") is None


@pytest.mark.parametrize("learned", ["k", "v", "values"])
def test_flex_attention_refuses_any_gradient_on_cpu(learned):
    biased = make_biased_call("relative", "causal")
    leaf = biased.bias.values if learned == "values" else getattr(biased.inputs, learned)
    leaf.requires_grad_(True)
    assert "no backward pass on CPU" in refusal(biased, None, "flex_attention")


def test_an_unknown_backend_is_refused():
    biased = make_biased_call("linear", "causal")
    with pytest.raises(BackendError, match=r"'paged' cannot carry.*eager, sdpa, flex_attention"):
        attend(biased.inputs, biased.bias, None, "paged")


@pytest.mark.parametrize("mix", [None, no_mix])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_explained_path_exists_exactly_where_attention_runs(kind, backend, mix):
    biased = make_biased_call(kind, "causal", dtype=torch.bfloat16)
    if backend == "flex_attention":  # without compiling it: what it refuses follows from the bias kind and the mix
        works = mix is None and not isinstance(biased.bias, RelativeContentBias)
    else:
        works = refusal(biased, mix, backend) is None
    if works:
        assert backend in explain_path(biased.inputs, biased.bias, mix, backend, "cpu") or mix is not None
    else:
        with pytest.raises(BackendError, match="eager, sdpa"):
            explain_path(biased.inputs, biased.bias, mix, backend, "cpu")


def test_mix_adds_to_the_output_in_every_block(monkeypatch):
    for module, name in ((sdpa, "QUERY_BLOCK"), (strided, "QUERY_BLOCK"), (strided, "CONTENT_BLOCK")):
        monkeypatch.setattr(module, name, 4)
    biased = make_biased_call("linear", "causal")
    assert isinstance(biased.bias, LinearBias)
    plain, weights = attend(biased.inputs, biased.bias, None, "eager")
    added = weights @ torch.arange(11.0).expand(2, 4, 1, 11).transpose(-1, -2)

    def mix(block, start):
        return (block * torch.arange(11.0)).sum(-1, keepdim=True) + start * 0

    for backend in ("eager", "sdpa"):
        torch.testing.assert_close(attend(biased.inputs, biased.bias, mix, backend)[0], plain + added, **FLOAT32)
