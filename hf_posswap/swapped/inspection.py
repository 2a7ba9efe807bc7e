"""The positional scheme that a model uses, found by experiments on any transformers model and compared to its config.

No name is trusted. A table is found by the rows that are looked up. Rotation is found by queries and keys that change
when rotary angles are made neutral. Dependence on positions and on order is found by outputs that change with them.
"""

import inspect as python_inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from hf_posswap.architectures.base import relative_kind
from hf_posswap.architectures.discovery import (
    AttentionSeam,
    reads_interface,
    self_attention,
    stock_class_of,
    stock_config,
)
from hf_posswap.architectures.rotary import find_rotary
from hf_posswap.architectures.tables import RetiredTable
from hf_posswap.attention.interface import CONTEXT
from hf_posswap.errors import UnsupportedError
from hf_posswap.swapped.angles import Turn
from hf_posswap.swapped.attention_probe import queries_and_keys, scores_by_distance
from hf_posswap.swapped.modules import SwappedBaseModel
from hf_posswap.swapped.offloading import device_of
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.proof import quietly

LENGTH = 16
SHIFT, STRETCH = 5, 3
DISTANCES = (1, 4, 12)
"""Distances for which mean scores are shown."""
SEED = 0
NOTHING = 1e-5
"""Largest change of outputs, relative to their size, that counts as rounding."""


@dataclass(frozen=True)
class Layer:
    """One attention layer.

    Attributes:
        layer: index of the layer.
        module: name of the module within the core.
        kind: name in the config's `layer_types` ("sliding_attention", …), or None.
        turns: whether q and k are rotated by positions; None: its attention could not be recorded.
        scheme: name of the layer's scheme in a swapped model, or None.
        scores: mean scaled score at each of `DISTANCES`, over heads and a random text; None if not recorded.
    """

    layer: int
    module: str
    kind: str | None
    turns: bool | None
    scheme: str | None
    scores: list[float] | None


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect`.

    Attributes:
        model: name of the model's class.
        model_type: model type of its config.
        transformers: version of transformers that ran the model.
        core: name of the class that reads the tokens.
        mechanism: description of the positional scheme that was found.
        table: name of the module that looks up positions, or None.
        table_rows: number of its rows.
        first_row: row of position 0.
        rope: options of the rotary angles, as in `RopeConfig`, or None.
        rope_unread: reason why the rotary angles could not be read, or None.
        shift: relative change of the outputs when all positions are shifted; None: could not be measured.
        stretch: relative change of the outputs when distances are stretched.
        order: relative change of the last output when earlier tokens are reordered.
        layers: the attention layers.
        claims: entries of the config that concern positions.
        disagreements: differences between the config and the experiments, one sentence each.
        notes: experiments that failed, and why.
    """

    model: str
    model_type: str
    transformers: str
    core: str
    mechanism: str
    table: str | None
    table_rows: int | None
    first_row: int | None
    rope: dict[str, Any] | None
    rope_unread: str | None
    shift: float | None
    stretch: float | None
    order: float | None
    layers: list[Layer]
    claims: dict[str, Any]
    disagreements: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as a JSON-ready dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"model:      {self.model} ({self.model_type}), transformers {self.transformers}",
            f"reads by:   {self.core}",
            f"positions:  {self.mechanism}",
            f"experiment: {_share('all positions moved', self.shift)}; {_share('distances stretched', self.stretch)}; "
            f"{_share('earlier tokens in another order', self.order)}",
        ]
        for run in _runs(self.layers):
            number = f"{run[0].layer}" if len(run) == 1 else f"{run[0].layer}–{run[-1].layer}"
            lines.append(f"layers:     {number}: {_in_words(run[0])}{_scores_in_words(run)}")
        lines += [f"config:     {name} = {value}" for name, value in self.claims.items()]
        lines += [f"DISAGREES:  {sentence}" for sentence in self.disagreements]
        lines += [f"note:       {sentence}" for sentence in self.notes]
        return "\n".join(lines)


def _share(what: str, value: float | None) -> str:
    if value is None:
        return f"{what}: not measured"
    return f"{what}: outputs {'stay' if value <= NOTHING else f'change by {value:.2g} of their size'}"


def _in_words(layer: Layer) -> str:
    turns = {True: "q and k turn with positions", False: "q and k do not turn", None: "attention could not be seen"}
    parts = [turns[layer.turns], layer.kind, None if layer.scheme is None else f"scheme {layer.scheme}"]
    return ", ".join(part for part in parts if part)


def _scores_in_words(layers: list[Layer]) -> str:
    seen = [layer.scores for layer in layers if layer.scores is not None]
    if not seen:
        return ""
    means = (sum(values) / len(seen) for values in zip(*seen, strict=True))
    told = ", ".join(f"{mean:.2f} at {distance}" for mean, distance in zip(means, DISTANCES, strict=True))
    return f"; mean score by distance: {told}"


def _runs(layers: list[Layer]) -> list[list[Layer]]:
    """Return runs of consecutive layers with the same description."""
    runs: list[list[Layer]] = []
    for layer in layers:
        if runs and _in_words(runs[-1][0]) == _in_words(layer):
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return runs


def inspect(model: Any) -> Inspection:
    """Return which positional scheme a model uses, found by running it on short random texts.

    Args:
        model: any text model of transformers, swapped or stock; it is not changed.

    Raises:
        UnsupportedError: it is not a transformers model, or has no token embeddings.
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise UnsupportedError(f"a {type(model).__name__} is no transformers model, so it cannot be inspected.")
    core = core_of(model)
    experiment = _Experiment(core)
    with quietly(model):
        table = experiment.table()
        shift, stretch, order = experiment.shifted(), experiment.stretched(), experiment.reordered()
        layers = experiment.layers()
    rotary = find_rotary(core)
    turns = [layer.turns for layer in layers if layer.turns is not None]
    scheme = core.pos_scheme.name if isinstance(core, SwappedBaseModel) else None
    mechanism = _mechanism(table, turns, stretch, order)
    if scheme is not None:
        mechanism = f"scheme {scheme}, swapped in" + ("" if mechanism in (OTHER, BY_ORDER) else f"; {mechanism}")
    found = Inspection(
        model=type(model).__name__,
        model_type=str(model.config.model_type),
        transformers=transformers.__version__,
        core=stock_class_of(core).__name__,
        mechanism=mechanism,
        table=None if table is None else table[0],
        table_rows=None if table is None else table[1],
        first_row=None if table is None else table[2],
        rope=None if rotary is None or not any(turns) else rotary.options,
        rope_unread=None if rotary is None else rotary.unread,
        shift=shift,
        stretch=stretch,
        order=order,
        layers=layers,
        claims=_claims(stock_config(core.config)),
        notes=experiment.notes,
    )
    found.disagreements.extend(_disagreements(found, core))
    return found


OTHER = "something that depends on positions and is neither a table nor a rotation"
BY_ORDER = "nothing that reads position_ids; the order of tokens matters by masks, or a bias by index"
NONE = "none was found"


def _mechanism(
    table: tuple[str, int, int] | None, turns: list[bool], stretch: float | None, order: float | None
) -> str:
    parts = []
    if table is not None:
        parts.append(f"a table of {table[1]} rows at {table[0]}, read from row {table[2]} on")
    if any(turns):
        share = "" if all(turns) else f" in {sum(turns)} of {len(turns)} layers"
        parts.append(f"rotation of q and k{share}")
    if not parts and stretch is not None and stretch > NOTHING:
        return OTHER
    if not parts and order is not None and order > NOTHING:
        return BY_ORDER
    return " and ".join(parts) or NONE


class _Experiment:
    """Short random texts for one model, and experiments with its outputs."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.notes: list[str] = []
        self.names = tuple(python_inspect.signature(core.forward).parameters)
        embeddings = core.get_input_embeddings()
        generator = torch.Generator().manual_seed(SEED)
        tokens = torch.randint(
            min(3, embeddings.num_embeddings - 1), embeddings.num_embeddings, (1, LENGTH), generator=generator
        )
        self.tokens = tokens.to(device_of(embeddings))

    def read(self, tokens: Tensor | None = None, **arguments: Any) -> Any:
        """Return the last hidden states for tokens."""
        if "use_cache" in self.names:
            arguments.setdefault("use_cache", False)
        return self.core(input_ids=self.tokens if tokens is None else tokens, **arguments)[0].float()

    def measured(self, what: str, run: Callable[[], float]) -> float | None:
        """Return the result of `run`; add a note and return None if it fails."""
        try:
            return run()
        except Exception as error:  # any error of a model becomes a note and does not stop the inspection
            self.notes.append(f"{what} could not be measured: {type(error).__name__}: {error}")
            return None

    def at(self, positions: Tensor) -> Tensor:
        """Return the hidden states with the tokens at the given positions, as one document."""
        if "position_ids" not in self.names:
            raise UnsupportedError("the forward takes no position_ids")
        return self.read(position_ids=positions.unsqueeze(0), attention_mask=torch.ones_like(self.tokens))

    def shifted(self) -> float | None:
        """Return the relative change of the outputs when all positions are shifted."""
        steps = torch.arange(LENGTH, device=self.tokens.device)
        return self.measured("a shift", lambda: _change(self.at(steps + SHIFT + LENGTH), self.at(steps + LENGTH)))

    def stretched(self) -> float | None:
        """Return the relative change of the outputs when distances are stretched."""
        steps = torch.arange(LENGTH, device=self.tokens.device)
        return self.measured("a stretch", lambda: _change(self.at(steps * STRETCH), self.at(steps)))

    def reordered(self) -> float | None:
        """Return the relative change of the last token's output when the tokens before it are reordered."""
        order = torch.randperm(LENGTH - 1, generator=torch.Generator().manual_seed(SEED)).to(self.tokens.device)
        moved = torch.cat((self.tokens[:, order], self.tokens[:, -1:]), dim=1)
        return self.measured("the order", lambda: _change(self.read(moved)[:, -1], self.read()[:, -1]))

    def table(self) -> tuple[str, int, int] | None:
        """Return name, rows and first row of the embedding that looks up consecutive rows for any tokens, or None."""
        if any(isinstance(module, RetiredTable) for module in self.core.modules()):
            return None
        looked_up: dict[str, tuple[nn.Embedding, Tensor]] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda module, args, output: looked_up.update({name: (module, output)})

        handles = [
            module.register_forward_hook(keep(name))
            for name, module in self.core.named_modules()
            if isinstance(module, nn.Embedding) and module is not self.core.get_input_embeddings()
        ]
        try:
            self.measured("the table", lambda: float(self.read().abs().sum()))
        finally:
            for handle in handles:
                handle.remove()
        for name, (module, output) in looked_up.items():
            rows = _rows_of(module.weight.detach(), output.detach())
            if rows is not None:
                return name, module.num_embeddings, rows
        return None

    def layers(self) -> list[Layer]:
        """Return the attention layers, with the effect of rotary angles in each."""
        if not any(reads_interface(stock_class_of(module)) for module in self.core.modules()):
            self.notes.append(
                "its attention chooses no function from transformers' AttentionInterface, so what happens in its "
                "layers could not be seen"
            )
        kinds = getattr(self.core.config, "layer_types", None)
        seams = self_attention(self.core)
        calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}

        def remember(layer: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                calls.setdefault(layer, (args, dict(kwargs)))

            return hook

        handles = [seam.module.register_forward_pre_hook(remember(seam.layer), with_kwargs=True) for seam in seams]
        try:
            self.measured("the layers", lambda: float(self.read().abs().sum()))
        finally:
            for handle in handles:
                handle.remove()
        return [self._layer(seam, kinds, calls.get(seam.layer)) for seam in seams]

    def _layer(self, seam: AttentionSeam, kinds: Any, call: tuple[tuple[Any, ...], dict[str, Any]] | None) -> Layer:
        kind = kinds[seam.layer] if isinstance(kinds, list | tuple) and seam.layer < len(kinds) else None
        swapped = hasattr(seam.module, "pos_scheme")
        scheme = self.core.pos_scheme.part(seam.module.pos_part).name if swapped else None
        recorded = None if call is None else queries_and_keys(seam.module, *call)
        if call is None or recorded is None:
            return Layer(seam.layer, seam.path, kind, None, scheme, None)
        args, kwargs = call
        neutral = Turn()
        still = queries_and_keys(
            seam.module,
            tuple(neutral(value, _NoContext()) for value in args),
            {name: neutral(value, _NoContext()) for name, value in kwargs.items()},
        )
        turns = still is not None and not (torch.equal(still.q, recorded.q) and torch.equal(still.k, recorded.k))
        scores = scores_by_distance(seam.module, recorded, kwargs.get(CONTEXT) if swapped else None, DISTANCES)
        return Layer(seam.layer, seam.path, kind, turns, scheme, scores)


class _NoContext:
    """The attributes of a forward's context that `Turn` reads, for a model without one."""

    mode, bare, shared, part, ramp = "bare", True, None, 0, None


def _change(actual: Tensor, expected: Tensor) -> float:
    size = expected.double().square().mean().sqrt().clamp(min=1e-30)
    return float((actual - expected).double().square().mean().sqrt() / size)


def _rows_of(weight: Tensor, output: Tensor) -> int | None:
    """Return n if an output consists of consecutive rows of a table from row n on, or None."""
    first = output.reshape(-1, output.shape[-1])[:LENGTH]
    if len(first) < LENGTH or weight.shape[-1] != first.shape[-1]:
        return None
    starts = (weight == first[0]).all(-1).nonzero().flatten().tolist()
    for start in starts:
        if start + LENGTH <= len(weight) and torch.equal(weight[start : start + LENGTH], first):
            return int(start)
    return None


CLAIMS = ("position_embedding_type", "max_position_embeddings", "rope_parameters", "rope_scaling", "alibi", "is_causal")
"""Names of config entries that concern positions, as documented by transformers."""


def _claims(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in CLAIMS if getattr(config, name, None) is not None}


def _disagreements(found: Inspection, core: Any) -> list[str]:
    said = found.claims
    sentences = []
    kind = said.get("position_embedding_type")
    if relative_kind(core.config) is not None and found.table is not None:
        sentences.append(
            f"the config says position_embedding_type {kind!r}, and transformers {found.transformers} reads the model "
            "as one with absolute positions: its relative tables are not used. from_pretrained(name, "
            "pos_scheme='native') of hf_posswap's Auto classes loads it with them."
        )
    turning = [layer for layer in found.layers if layer.turns]
    if isinstance(said.get("rope_parameters"), dict) and said["rope_parameters"] and found.layers and not turning:
        acting = {layer.scheme for layer in found.layers} - {None}
        if not acting:
            sentences.append("the config has rope_parameters, and no layer turns q or k with positions.")
    longest = said.get("max_position_embeddings")
    if found.table_rows is not None and isinstance(longest, int) and found.table_rows < longest:
        sentences.append(f"the config says {longest} positions, and the table has {found.table_rows} rows.")
    if found.rope_unread is not None and turning:
        sentences.append(f"the angles differ from those in the config: {found.rope_unread}.")
    if found.mechanism == NONE and (said.get("rope_parameters") or kind):
        sentences.append("the config names a positional mechanism, and none was found.")
    return sentences
