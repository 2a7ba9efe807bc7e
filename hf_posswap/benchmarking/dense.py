"""The baseline: a bias stored as a tensor of heads × length × length and added in eager attention.

Composer's ALiBi for GPT-2 and transformers' BLOOM do this. Stock models accept such a tensor as a prepared additive
mask, so their own eager attention adds it. In inference the tensor exists before the measured call, as a buffer; a
trainable bias is computed again in each training step, as in transformers' T5.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from hf_posswap.architectures import architecture_of
from hf_posswap.benchmarking.settings import BenchmarkError
from hf_posswap.benchmarking.shapes import swapped_copy
from hf_posswap.benchmarking.work import MakeMask
from hf_posswap.common.biases import LinearBias, RelativeBias
from hf_posswap.common.positions import Positions
from hf_posswap.schemes import ScoreInputs
from hf_posswap.swapped.plan import core_of


def dense_model(stock: Any) -> Any:
    """Return a copy of a stock model with eager attention, and without its native mechanism if that can be removed."""
    causal = architecture_of(stock.config).is_causal(stock.config)
    model = swapped_copy(stock, "none") if causal else stock
    model.set_attn_implementation("eager")
    return model


def dense_mask(swapped: Any) -> MakeMask:
    """Return a function that computes the mask with a swapped model's bias.

    Raises:
        BenchmarkError: the scheme has no bias, or (when the function is called) one that depends on the queries.
    """
    causal = architecture_of(swapped.config).is_causal(swapped.config)
    module: Any = next(architecture_of(swapped.config).attention_modules(core_of(swapped)))[1]
    if not hasattr(module, "pos_scheme"):
        raise BenchmarkError(f"scheme {swapped.config.pos_scheme['name']!r} acts at the embeddings; it has no bias.")
    core = core_of(swapped)
    scheme = core.pos_scheme.part(module.pos_part)
    facts = scheme.facts

    def make(queries: int, keys: int) -> Tensor:
        steps = torch.arange(keys, device=swapped.device).unsqueeze(0)
        positions = Positions(steps[:, keys - queries :], steps, keys - queries, causal)
        query = torch.zeros(1, facts.num_heads, queries, facts.head_dim, device=swapped.device)
        key = torch.zeros(1, facts.num_key_value_heads, keys, facts.head_dim, device=swapped.device)
        inputs = ScoreInputs(query, key, positions, scheme.prepare(positions), 1.0, (query, key))
        bias = module.pos_scheme.bias(inputs)
        if not isinstance(bias, LinearBias | RelativeBias):
            kind = "none" if bias is None else type(bias).__name__
            raise BenchmarkError(f"a dense bias stands for one that is the same for all queries; here there is {kind}.")
        rows = bias.rows(0, queries)
        if causal:
            rows = rows.masked_fill(steps[0] > steps[0, keys - queries :, None], torch.finfo(swapped.dtype).min)
        return rows.to(swapped.dtype)

    learns = any(True for part in (core, module) for _ in part.pos_scheme.parameters())
    make_once = cache(torch.no_grad()(make))
    return lambda queries, keys: make(queries, keys) if learns and torch.is_grad_enabled() else make_once(queries, keys)


def needed_bytes(stock: Any, length: int, batch: int) -> int:
    """Return the approximate bytes that eager attention with a dense bias needs in one layer."""
    heads = architecture_of(stock.config).facts(core_of(stock)).num_heads
    return heads * length * length * (4 + 3 * 4 * batch)
