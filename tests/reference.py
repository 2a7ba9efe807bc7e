"""Shared helpers of the tests: small random attention calls, schemes run without a model, and float64 attention."""

import dataclasses
import importlib
import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_posswap.attention import attend
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.common.positions import Positions
from hf_posswap.schemes import ModelFacts, Scheme, SchemeConfig, SchemeLayer, ScoreInputs, check_supported, scheme_class

FLOAT32 = {"atol": 1e-5, "rtol": 1e-5}
"""Float32 against float64 with values of order 1: about 100 units in the last place, for sums of tens of terms."""

CAUSAL_CALLS = ("whole", "chunk", "decode", "padded", "skipping", "packed")
ENCODER_CALLS = ("whole", "padded", "skipping", "packed")
CALLS = [(True, kind) for kind in CAUSAL_CALLS] + [(False, kind) for kind in ENCODER_CALLS]
"""(causal, kind) of every call."""


def model_facts(**changes: Any) -> ModelFacts:
    """Facts of a small grouped-query model: D = 16, H = 4, Hkv = 2, d = 8, train length 16."""
    facts = ModelFacts(
        architecture="llama",
        hidden_size=16,
        num_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_layers=2,
        train_length=16,
        causal=True,
        native="rope",
    )
    return dataclasses.replace(facts, **changes)


def randomise(module: nn.Module, scale: float = 0.5) -> None:
    """Fill every parameter with normal noise, so that no term of a scheme is zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=scale)


def build(config: SchemeConfig, facts: ModelFacts) -> tuple[Scheme, SchemeLayer]:
    """Make a scheme and one layer of it the way a swap does, with random parameters."""
    config = config.resolve(facts)
    check_supported(config, facts)
    scheme = scheme_class(config.name)(config, facts)
    layer = scheme.make_layer(0)
    randomise(scheme)
    randomise(layer)
    return scheme, layer


@dataclass(frozen=True)
class Call:
    """Text of L tokens of which the queries from `offset` on are asked, the others being cached keys.

    Attributes:
        q: (B, H, L, d).
        k: (B, Hkv, L, d).
        v: (B, Hkv, L, d).
        hidden: input of the attention module, (B, L, D).
        at: positions of the tokens, int64, (B, L).
        visible: which keys a query may see, (B, L, L).
        offset: number of cached tokens.
        causal: whether attention is causal.
        by_index: see `Positions`.
        mask: whether `visible` has to be passed, or follows from `causal`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    hidden: Tensor
    at: Tensor
    visible: Tensor
    offset: int
    causal: bool
    by_index: bool
    mask: bool

    @property
    def real(self) -> Tensor:
        """Queries that are no padding, (B, Lq); the output of the others means nothing."""
        return self.visible.diagonal(dim1=1, dim2=2)[:, self.offset :]

    def positions(self, start: int, stop: int) -> Positions:
        """Positions of the forward pass over the tokens start…stop−1."""
        return Positions(self.at[:, start:stop], self.at[:, :stop], start, self.causal, self.by_index)


def make_call(kind: str, facts: ModelFacts, length: int = 11) -> Call:
    """Make a random call.

    - whole: one text at once; chunk: its last 4 tokens after the others were cached; decode: its last token.
    - padded: two rows, the first padded by 3 on the left.
    - skipping: positions with gaps, so that distances differ from index differences.
    - packed: two documents in a row, positions restarting, masked from each other.
    """
    batch = 2
    shape = (batch, facts.num_heads, length, facts.head_dim)
    key_shape = (batch, facts.num_key_value_heads, length, facts.head_dim)
    q, k, v = torch.randn(shape), torch.randn(key_shape), torch.randn(key_shape)
    hidden = torch.randn(batch, length, facts.hidden_size)
    at = torch.arange(length).repeat(batch, 1)
    visible = torch.ones(batch, length, length, dtype=torch.bool)
    offset = {"chunk": length - 4, "decode": length - 1}.get(kind, 0)
    if kind == "padded":
        at[0] = (at[0] - 3).clamp(min=0)
        visible[0, :, :3] = False
    if kind == "skipping":
        at = (torch.randint(1, 5, at.shape)).cumsum(-1)
    if kind == "packed":
        at[:, 5:] -= 5
        visible[:, 5:, :5] = False
        visible[:, :5, 5:] = False
    if facts.causal:
        visible = visible.tril()
    mask = kind in ("chunk", "padded", "packed")
    return Call(q, k, v, hidden, at, visible, offset, facts.causal, kind != "skipping", mask)


def run_scheme(scheme: Scheme, layer: SchemeLayer, call: Call, backend: str = "eager") -> Tensor:
    """Return the context (B, H, Lq, d): transformation, cache, bias and values as in a swapped attention module."""
    cached, states = call.k[:, :, :0], []
    length = call.q.shape[2]
    if call.offset:
        past = call.positions(0, call.offset)
        _, cached = layer.transform(
            call.q[:, :, : call.offset], call.k[:, :, : call.offset], past, scheme.prepare(past)
        )
        if layer.state_size:
            states.append(layer.state(call.hidden[:, : call.offset], past, scheme.prepare(past)))
    positions = call.positions(call.offset, length)
    prepared = scheme.prepare(positions)
    scaling = call.q.shape[-1] ** -0.5
    q, k = layer.transform(call.q[:, :, call.offset :], call.k[:, :, call.offset :], positions, prepared)
    if layer.state_size:
        states.append(layer.state(call.hidden[:, call.offset :], positions, prepared))
    state = torch.cat(states, dim=-1) if states else None
    projected = q, torch.cat([cached, k], dim=2)
    q, k = layer.transform_cached(*projected, positions, prepared)
    asking = call.hidden[:, call.offset :]
    bias = layer.bias(ScoreInputs(q, k, positions, prepared, scaling, projected, state, asking))
    mix = (lambda weights, start: layer.mix(weights, start, positions, prepared)) if layer.mixes_values else None
    mask = call.visible[:, None, call.offset :] if call.mask else None
    inputs = AttentionInputs(q, k, call.v, mask, call.causal, scaling)
    return attend(inputs, bias, mix, backend)[0]


def layer_bias(
    layer: SchemeLayer, q: Tensor, positions: Positions, prepared: Any, scaling: float = 1.0, k: Tensor | None = None
) -> Any:
    """Return a layer's bias for queries that the scheme has transformed; without keys the queries stand for them."""
    k = q if k is None else k
    return layer.bias(ScoreInputs(q, k, positions, prepared, scaling, (q, k)))


def oracle(name: str) -> ModuleType:
    """Return the oracle module of a scheme."""
    return importlib.import_module(f"tests.oracles.{name}")


def run_oracle(name: str, call: Call, **parameters: Any) -> Tensor:
    """Return the context (B, H, Lq, d) that a scheme's oracle computes in float64.

    An oracle with a parameter `hidden_states` also gets a row's hidden states, (L, D).
    """
    attention = oracle(name).attention_oracle
    reads_hidden = "hidden_states" in inspect.signature(attention).parameters
    arrays = [x.double().numpy() for x in (call.q[:, :, call.offset :], call.k, call.v)]
    rows = [
        attention(
            *(x[b] for x in arrays),
            query_at=call.at[b, call.offset :].tolist(),
            key_at=call.at[b].tolist(),
            visible=call.visible[b, call.offset :].tolist(),
            scaling=call.q.shape[-1] ** -0.5,
            **({"hidden_states": call.hidden[b].double().numpy()} if reads_hidden else {}),
            **parameters,
        )
        for b in range(call.q.shape[0])
    ]
    return torch.from_numpy(np.stack(rows))


def assert_close_where_real(call: Call, actual: Tensor, expected: Tensor) -> None:
    """Assert that contexts (B, H, Lq, d) agree to float32 precision at every query that is no padding."""
    actual, expected = (x.double().transpose(1, 2)[call.real] for x in (actual, expected))
    torch.testing.assert_close(actual, expected, **FLOAT32)


def as_array(parameter: Tensor) -> np.ndarray:
    """Return a parameter as a float64 array."""
    return parameter.detach().double().numpy()


def dense_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, visible: Tensor, scaling: float) -> Tensor:
    """Return attention in float64 with everything written out, for lengths at which a Python loop is too slow.

    Args:
        q: (B, H, Lq, d).
        k: (B, Hkv, Lk, d).
        v: (B, Hkv, Lk, d).
        bias: broadcastable to (B, H, Lq, Lk), any dtype.
        visible: boolean, broadcastable to (B, H, Lq, Lk).
        scaling: factor on q·k.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(groups, dim=1) for x in (k, v))
    scores = q.double() @ k.transpose(-1, -2) * scaling + bias.double()
    return torch.softmax(scores.masked_fill(~visible, float("-inf")), dim=-1) @ v
