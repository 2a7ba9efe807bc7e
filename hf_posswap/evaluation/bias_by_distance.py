"""A scheme's effect on scores by distance: the bias of each head, or the cosine-sum of a rotation.

All values come from the hooks that every scheme has, so that a new scheme needs no code here:

- `SchemeLayer.bias` gives the bias. If it depends on the query, it is computed for the mean query of a text, which for
  a bias linear in the query (Shaw, Transformer-XL) is the mean bias.
- `SchemeLayer.transform` and `transform_cached` give the cosine-sum: the mean over all unit vectors e of
  ⟨e at the query's position, e at the key's⟩, as a share of that at distance 0. For RoPE it is Σ_n cos(Δ·θ_n) over the
  number of pairs (section 3.4.3 of the paper bounds attention's decay by a sum like it).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_posswap.architectures import Architecture, architecture_of
from hf_posswap.common.biases import Bias
from hf_posswap.common.chosen_scores import ChosenScores
from hf_posswap.common.positions import Positions
from hf_posswap.errors import NotSwappedError
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.schemes import SchemeLayer, ScoreInputs
from hf_posswap.schemes.content import log_groups
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.questions import is_swapped, longest_position

BIAS, COSINE_SUM = "bias", "cosine-sum"
DIGITS = 6
"""Significant digits of values in rows; float32 has about seven."""
BLOCK = 2**22
"""Maximum elements of a tensor for the cosine-sum, which limits its memory."""
TINY = 1e-6
"""Differences below this are taken as rounding."""
Row = dict[str, Any]


def shown_distances(longest: int, exact: int = 16, per_octave: int = 4) -> Tensor:
    """Return distances from 0 to `longest`, int64, ascending: all up to `exact`, then `per_octave` for each doubling.

    Raises:
        EvaluationError: `longest` is below 1.
    """
    if longest < 1:
        raise EvaluationError(f"the longest distance is {longest}. Give at least 1.")
    every = torch.arange(longest + 1)
    groups = log_groups(every, exact, per_octave)
    firsts = torch.cat((torch.ones(1, dtype=torch.bool), groups[1:] != groups[:-1]))
    firsts[-1] = True
    powers = every.bitwise_and(every - 1) == 0  # always include powers of two
    return every[firsts | powers]


@torch.no_grad()
def bias_by_distance(model: Any, longest: int = 1024, text: Tensor | None = None) -> list[Row]:
    """Return what each head of a swapped model adds to a score, by distance, as tidy rows.

    Args:
        model: a swapped model; unchanged.
        longest: largest distance; a scheme with a limited number of positions stops at its limit.
        text: token ids, int64, (1, L), whose mean queries are used if a bias depends on the query. None: queries of 0.

    Returns:
        Rows with layer, head, distance (below 0: the key comes after its query), value, quantity ("bias", in nats
        before softmax, or "cosine-sum") and note. `layer` is None if all layers that a scheme alone acts in agree, and
        `head` if all heads agree. A value of None is a masked key. A scheme without a bias and without transforms gives
        one row without a distance, whose note says so.

    Raises:
        NotSwappedError: the model is not swapped.
        EvaluationError: `longest` is below 1.
    """
    if not is_swapped(model):
        raise NotSwappedError("a bias by distance is read from a swapped model: call hf_posswap.swap(model, scheme).")
    base = core_of(model)
    limit = longest_position(model)
    distances = shown_distances(longest if limit is None else min(longest, limit - 1)).to(model.device)
    layers = list(_swapped_layers(architecture_of(model.config), base))
    queries = {} if text is None else _mean_queries(model, layers, text.to(model.device))
    causal = base.pos_scheme.facts.causal
    places = _Places(causal, distances)
    # A rotation's values oscillate from one distance to the next, so compute them at every distance.
    fine = _Places(causal, shown_distances(int(distances[-1]), exact=1024, per_octave=32).to(model.device))
    biases: dict[int | None, Tensor] = {}
    cosines: dict[int | None, Tensor] = {}
    read = False
    for index, attention in layers:
        scheme = base.pos_scheme.part(attention.pos_part)
        bias, reads_query = _bias(scheme, attention, places, queries.get(index))
        # The scheme's angles act in the model's own rotation, which computes the same as the scheme's layer.
        turning = scheme.make_layer(index) if scheme.enters_as_angles() else attention.pos_scheme
        cosine = _cosine_sum(scheme, turning, fine)
        read = read or reads_query
        if bias is not None:
            biases[index] = bias
        if bool((cosine - 1).abs().gt(TINY).any()):
            cosines[index] = cosine
    note = "" if not read else "at the mean query of a text" if queries else "at a query of zero: give a text"
    if any(attention.pos_scheme.state_size for _, attention in layers):
        note = "at hidden states of zero"
    alone = len(base.pos_scheme.parts) == 1
    rows = _rows(biases, places, BIAS, note, alone) + _rows(cosines, fine, COSINE_SUM, "", alone)
    return rows or [_nothing(base.pos_scheme.acts_in_layers)]


def _nothing(acts_in_layers: bool) -> Row:
    reason = "adds nothing that depends on the distance" if acts_in_layers else "enters at the embeddings only"
    return {"layer": None, "head": None, "distance": None, "value": None, "quantity": BIAS, "note": reason}


def _swapped_layers(architecture: Architecture, base: Any) -> Iterator[tuple[int, Any]]:
    for index, (_, attention) in enumerate(architecture.blocks(base)):
        if isinstance(getattr(attention, "pos_scheme", None), SchemeLayer):
            yield index, attention


class _Places:
    """One query and keys at given distances from it: before it and, in an encoder, after it.

    Attributes:
        positions: positions of the keys; the query is at one of them.
        query: index of the query's position.
        distances: distances of the keys from the query, ascending, int64, (keys,).
    """

    def __init__(self, causal: bool, distances: Tensor) -> None:
        last = int(distances[-1])
        before = last - distances.flip(0)
        after = distances[:0] if causal else last + distances[1:]
        places = torch.cat((before, after)).unsqueeze(0)
        self.positions = Positions(places, places, 0, causal, by_index=False)
        self.query = len(before) - 1
        self.distances = (last - places[0]).flip(0)

    def __len__(self) -> int:
        return len(self.distances)


def _bias(scheme: Any, attention: Any, places: _Places, query: Tensor | None) -> tuple[Tensor | None, bool]:
    """Return a layer's bias for the keys, float32, (H, keys), or None; and whether it depends on the query."""
    facts, device = scheme.facts, places.distances.device
    zeros = torch.zeros(1, facts.num_heads, 1, facts.head_dim, device=device)

    def made(places: _Places, vector: Tensor) -> Bias | None:
        queries = vector.float().expand(-1, -1, len(places), -1)
        keys, scaling = torch.zeros_like(queries[:, : facts.num_key_value_heads]), _scaling(attention, facts.head_dim)
        prepared = scheme.prepare(places.positions)
        bias: Bias | None = attention.pos_scheme.bias(
            ScoreInputs(queries, keys, places.positions, prepared, scaling, (queries, keys))
        )
        return bias

    def at(vector: Tensor) -> Tensor | None:
        read, bias = places, made(places, vector)
        if bias is not None and bias.reads_scores:  # such a bias may depend on the keys in between
            read = _Places(facts.causal, torch.arange(int(places.distances[-1]) + 1, device=device))
            bias = made(read, vector)
        if bias is None or isinstance(bias, ChosenScores):  # which is part of the cosine-sum
            return None
        rows = bias.rows(read.query, read.query + 1)[0].expand(facts.num_heads, 1, len(read))
        values = rows[:, 0].flip(-1).float()[:, torch.searchsorted(read.distances, places.distances)]
        window = attention.pos_scheme.window
        return values if window is None else values.masked_fill(places.distances.abs() >= window, -math.inf)

    bare, other = at(zeros), at(torch.ones_like(zeros))
    if bare is None or other is None:
        return None, False
    reads_query = not torch.equal(bare, other)
    return (at(query) if reads_query and query is not None else bare), reads_query


def _scaling(attention: Any, head_dim: int) -> float:
    """Return the factor on a layer's q·k: the module's `scaling`, or 1/√d if it has none."""
    scaling = getattr(attention, "scaling", None)
    return scaling if isinstance(scaling, float) else head_dim**-0.5


def _cosine_sum(scheme: Any, layer: SchemeLayer, places: _Places) -> Tensor:
    """Return the cosine-sum of one layer's transforms, see the module: float32, (H, keys)."""
    facts, positions = scheme.facts, places.positions
    prepared = scheme.prepare(positions)
    query = places.query
    units = torch.eye(facts.head_dim, device=positions.query.device)[:, None, None]
    products = units.new_zeros(facts.num_heads, len(places))
    for unit in units.split(max(1, BLOCK // (facts.num_heads * len(places) * facts.head_dim))):
        q = unit.expand(-1, facts.num_heads, len(places), -1)
        k = unit.expand(-1, facts.num_key_value_heads, len(places), -1)
        inputs = layer.score_inputs(q, k, positions, prepared, 1.0)
        k = inputs.k.repeat_interleave(facts.num_heads // facts.num_key_value_heads, dim=1)
        scores = (inputs.q[:, :, query : query + 1].float() * k.float()).sum(3)
        bias = layer.bias(inputs) if layer.adds_bias else None
        if isinstance(bias, ChosenScores):
            scores = bias.replaced(scores[:, :, None], query, query + 1)[:, :, 0]
        products += scores.sum(0)
    return (products / products[:, query : query + 1]).flip(-1)


def _mean_queries(model: Any, layers: Sequence[tuple[int, Any]], text: Tensor) -> dict[int, Tensor]:
    """Return the mean query of each head over a text, as the scheme's bias gets it, for each layer: (1, H, 1, d)."""
    found: dict[int, Tensor] = {}
    index_of = {id(attention): index for index, attention in layers}
    core, training = core_of(model), model.training

    def look(call: Any, pair: tuple[Tensor, Tensor], scaling: float, projected: Any) -> None:
        found[index_of[id(call.module)]] = pair[0].float().mean((0, 2), keepdim=True)

    core.pos_record = look
    try:
        model.eval()
        core(text)
    finally:
        del core.pos_record
        model.train(training)
    return found


def _rows(found: dict[int | None, Tensor], places: _Places, quantity: str, note: str, alone: bool) -> list[Row]:
    """Return tidy rows of the layers' values (H, keys); heads that agree are merged, and layers of a scheme alone."""
    if not found:
        return []
    first = next(iter(found.values()))
    layers = {None: first} if alone and all(_agree(values, first) for values in found.values()) else found
    heads_agree = all(_agree(values, values[:1].expand_as(values)) for values in found.values())
    return [
        {
            "layer": layer,
            "head": None if heads_agree else head,
            "distance": distance,
            "value": float(f"{value:.{DIGITS}g}") + 0.0 if math.isfinite(value) else None,  # + 0: no −0
            "quantity": quantity,
            "note": note if math.isfinite(value) else "hidden",
        }
        for layer, values in layers.items()
        for head, row in enumerate((values[:1] if heads_agree else values).tolist())
        for distance, value in zip(places.distances.tolist(), row, strict=True)
    ]


def _agree(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=TINY)
