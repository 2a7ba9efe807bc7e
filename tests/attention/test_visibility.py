"""Segments say exactly what a mask says, for every mask that they can say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_posswap.attention import attend, paths
from hf_posswap.attention.cpu import strided
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.attention.visibility import interval_bounds, mask_segments, visible_segments
from hf_posswap.common.biases import RelativeBias
from tests.reference import FLOAT32, dense_attention


def inputs_with(mask, heads=(4, 2), dim=8, dtype=torch.float32):
    batch, _, queries, keys = mask.shape
    q = torch.randn(batch, heads[0], queries, dim, dtype=dtype)
    k, v = (torch.randn(batch, heads[1], keys, dim, dtype=dtype) for _ in range(2))
    return AttentionInputs(q, k, v, mask, True, dim**-0.5)


def drawn(segments, mask):
    """The mask that segments mean."""
    result = torch.zeros(mask.shape[0], *mask.shape[2:], dtype=torch.bool)
    i, j = torch.arange(mask.shape[2])[:, None], torch.arange(mask.shape[3])
    for s in segments:
        part = (j >= s.first) & (j < s.last) & (i >= s.start) & (i < s.stop)
        if s.least is not None:
            part = part & (i - j >= s.least)
        if s.most is not None:
            part = part & (i - j <= s.most)
        assert not (result[s.batch] & part).any(), "a query is in two segments"
        result[s.batch] |= part
    return result


def masks(length=40, window=9):
    i, j = torch.arange(length)[:, None], torch.arange(length)
    causal = i >= j
    documents = (j >= length // 3).long() + (j >= 3 * length // 4)
    left = torch.stack([causal & (j >= pad) for pad in (0, 7, 7)])
    return {
        "causal": causal[None],
        "left padding": left,
        "right padding": torch.stack([causal & (j < length - pad) for pad in (0, 5, 0)]),
        "packed": (causal & (documents[:, None] == documents))[None],
        "sliding window": (causal & (i - j < window))[None],
        "sliding window, left padding": left & (i - j < window),
        "chunk": left[:, 30:],
        "one query": left[:, -1:],
        "static cache": torch.nn.functional.pad(left, (0, 9)),
        "encoder": torch.stack([(j < length - pad).expand(length, -1) for pad in (0, 5, 12)]),
        "prefix": (causal | (j < 6))[None],
    }


FORMS = list(masks())


@pytest.mark.parametrize("kind", ["boolean", "additive"])
@pytest.mark.parametrize("form", FORMS)
def test_segments_mean_the_mask(form, kind):
    mask = masks()[form][:, None]
    given_mask = mask if kind == "boolean" else torch.zeros(mask.shape).masked_fill(~mask, torch.finfo().min)
    segments = mask_segments(given_mask, inputs_with(mask))
    assert torch.equal(drawn(segments, mask), mask[:, 0])
    assert len(segments) <= 3 * mask.shape[0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 24), st.integers(0, 24)), min_size=1, max_size=24))
def test_any_intervals_are_read_or_refused(bounds):
    j = torch.arange(24)
    mask = torch.stack([(j >= first) & (j < last) for first, last in bounds])[None, None]
    segments = mask_segments(mask, inputs_with(mask))
    assert segments is None or torch.equal(drawn(segments, mask), mask[:, 0])


def test_other_masks_are_refused():
    causal = torch.ones(1, 1, 40, 40, dtype=torch.bool).tril()
    holes = causal.clone()
    holes[..., 3] = False
    assert interval_bounds(holes[:, 0]) is None
    weighted = torch.zeros(causal.shape).masked_fill(~causal, torch.finfo().min)
    weighted[..., 7, 2] = -1.0
    assert interval_bounds(weighted[:, 0]) is None
    by_head = causal.expand(1, 4, -1, -1)
    assert visible_segments(inputs_with(by_head)) is None
    scattered = torch.eye(40, dtype=torch.bool)[torch.randperm(40)][None, None]
    assert mask_segments(scattered, inputs_with(scattered)) is None, "a segment for each query is no gain"


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_attention_with_segments_equals_the_written_out_one(form, learns, monkeypatch):
    monkeypatch.setattr(strided, "QUERY_BLOCK", 8)
    mask = masks()[form][:, None]
    inputs = inputs_with(mask)
    queries, keys = mask.shape[2:]
    bias = RelativeBias(torch.randn(4, queries + keys - 1).requires_grad_(learns), queries, keys)
    leaves = [x.requires_grad_() for x in (inputs.q, inputs.k, inputs.v)] + [bias.values] * learns
    monkeypatch.setattr(paths, "blockwise_attention", None)  # the slow path is not taken
    context = attend(inputs, bias, None, "sdpa")[0]
    sees = mask.any(-1)
    visible = mask | ~sees[..., None]
    truth = dense_attention(inputs.q, inputs.k, inputs.v, bias.rows(0, queries), visible, inputs.scaling)
    sees = sees[..., None].expand(-1, context.shape[1], -1, -1)
    torch.testing.assert_close(context.double() * sees, truth * sees, **FLOAT32)
    weights = torch.randn(context.shape) * sees
    expected = torch.autograd.grad(truth, leaves, weights.double())
    for a, b in zip(torch.autograd.grad(context, leaves, weights), expected, strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-4)


def test_a_mask_is_read_once_for_all_layers(monkeypatch):
    mask = masks()["left padding"][:, None]
    read = []
    monkeypatch.setattr("hf_posswap.attention.visibility.mask_segments", lambda *a: read.append(a))
    first = inputs_with(mask)
    for _ in range(3):
        visible_segments(AttentionInputs(first.q, first.k, first.v, mask, True, 1.0, shared=first.shared))
    assert len(read) == 1
