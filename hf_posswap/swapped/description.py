"""Describes the changes of a swap to a model, and measures with a probe that the swap takes effect."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from hf_posswap.architectures import architecture_of
from hf_posswap.architectures.tables import RetiredTable
from hf_posswap.loading.entry import is_healed
from hf_posswap.schemes import SchemeLayer, as_config, scheme_class
from hf_posswap.swapped.direction import check_direction
from hf_posswap.swapped.offloading import device_of
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.questions import (
    config_of,
    is_swapped,
    longest_position,
    native_scheme,
    path_of,
    plain_model,
    proof_of,
    stock_longest_position,
    train_length,
    unfitted_reason,
    without_scheme,
)

PROBE_LENGTH = 64
PROBE_SEED = 0


@dataclass(frozen=True)
class Probe:
    """The difference that the swap makes to the model's output, on a seeded text of random tokens.

    Attributes:
        output: the compared output, "logits" or "hidden states".
        tokens: length of the text.
        largest: largest absolute difference.
        typical: root mean square of the difference, divided by that of the stock output.
    """

    output: str
    tokens: int
    largest: float
    typical: float


@dataclass(frozen=True)
class LayerGroup:
    """The layers in which one scheme of several acts.

    Attributes:
        layers: numbers of the layers, counted from 0.
        scheme: the scheme's name.
        options: the scheme's resolved options; empty for layers that keep the model's own mechanism.
        attention: the attention path of these layers.
    """

    layers: tuple[int, ...]
    scheme: str
    options: dict[str, Any]
    attention: str

    def __str__(self) -> str:
        what = _titled(self.scheme, self.options, ("layers",)) if self.options else f"{self.scheme}, the model's own"
        return f"{_ranges(self.layers)}: {what}"


@dataclass(frozen=True)
class Description:
    """The result of `describe`.

    Attributes:
        model: name of the model's class.
        architecture: name of the family.
        mode: "causal" or "encoder".
        native: the stock model's scheme.
        scheme: the scheme that was swapped in, or None if the model is stock.
        options: the scheme's resolved options.
        removed: the removed part of the stock model, in words.
        added: the added parameters and their place, in words.
        parameters_before: number of parameters of the stock model.
        parameters_after: number of parameters now, without the adapters of peft and the copies that they hold.
        train_length: length of the longest texts, in tokens, that the stock model was trained on.
        longest_before: number of positions of the stock model; None: no limit.
        longest_after: number of positions now; None: no limit.
        attention: the attention path of the model.
        healed: whether the weights were trained with the scheme, so that they differ from the stock model's.
        probe: the difference that the swap makes to the output; None for a stock model, on the meta device, and before
            a calibration without which the model cannot run.
        proof: the result of the proof, in words; None for a stock model.
        groups: the layers of each scheme, if several act in the model.
        unfitted: whether the model cannot run before it is calibrated.
    """

    model: str
    architecture: str
    mode: str
    native: str
    scheme: str | None
    options: dict[str, Any]
    removed: str
    added: str
    parameters_before: int
    parameters_after: int
    train_length: int
    longest_before: int | None
    longest_after: int | None
    attention: str
    healed: bool
    probe: Probe | None
    proof: str | None = None
    groups: tuple[LayerGroup, ...] = ()
    unfitted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the description as a JSON-ready dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        if self.scheme is None:
            return "\n".join(_lines(
                model=f"{self.model} ({self.architecture}, {self.mode})",
                scheme=f"{self.native}, the stock model's own: nothing was swapped",
                reads=f"{_limit(self.longest_after)}; trained on texts of {self.train_length}",
                parameters=f"{self.parameters_after:,}",
                attention=self.attention,
            ))  # fmt: skip
        config = as_config({"name": self.scheme} | self.options)
        title = self.scheme if self.groups else _titled(self.scheme, self.options)
        return "\n".join(_lines(
            model=f"{self.model} ({self.architecture}, {self.mode})",
            scheme=f"{title} {'added to' if config.keep_native else 'in the place of'} {self.native}",
            **({"layers": "\n".join(map(str, self.groups))} if self.groups else {}),
            removed=self.removed,
            added=self.added,
            reads=f"{_limit(self.longest_after)} (before: {_limit(self.longest_before)}; "
            f"trained on texts of {self.train_length})",
            parameters=f"{self.parameters_after:,} (before: {self.parameters_before:,})",
            **({"weights": "healed: they have learned with the scheme"} if self.healed else {}),
            attention=self.attention,
            probe=self._verdict(),
            proof=self.proof or "",
        ))  # fmt: skip

    def _verdict(self) -> str:
        probe = self.probe
        if probe is None:
            return f"not run, the model {'has to be calibrated first' if self.unfitted else 'has no weights yet'}"
        # A healed model without its scheme is not the stock model: the difference only shows that the scheme acts.
        reference = "these healed weights' under the stock mechanism" if self.healed else "the stock model's"
        if probe.largest == 0:
            same = "the scheme computes the same as the mechanism that it replaced"
            return f"{probe.output} equal {reference} on {probe.tokens} tokens: {same}"
        return (
            f"{probe.output} moved by up to {probe.largest:.3g} ({probe.typical:.1%} of their size) on {probe.tokens} "
            f"random tokens{f', from {reference}' if self.healed else ''}"
        )


def _titled(scheme: str, options: dict[str, Any], hidden: tuple[str, ...] = ()) -> str:
    """Return the name of a scheme with the options that differ from its defaults."""
    config_class = scheme_class(scheme).config_class
    told = [
        f"{field.name}={options[field.name]}"
        for field in fields(config_class)
        if field.name not in ("keep_native", *hidden) and options.get(field.name, field.default) != field.default
    ]
    return f"{scheme_class(scheme).pretty_name} ({', '.join([scheme, *told])})"


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text; three or more consecutive numbers become a range with "–"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _lines(**entries: str) -> list[str]:
    return [f"{label + ':':<12}{text}".replace("\n", "\n" + " " * 12) for label, text in entries.items()]


def _limit(longest: int | None) -> str:
    return "any number of positions" if longest is None else f"{longest} positions"


def describe(model: Any) -> Description:
    """Return the changes of a swap, the number of positions, and a probe that shows that the swap takes effect.

    This runs the model twice on a text of at most 64 random tokens, with and without the scheme. The model does not
    change.

    Args:
        model: a swapped or a stock model of a supported architecture. It may be wrapped in adapters of peft, which then
            act in both runs.

    Raises:
        UnsupportedError: the architecture is not supported, or the model is now causal but was bidirectional at the
            swap, or the reverse.
    """
    model = plain_model(model)
    architecture = architecture_of(config_of(model))
    causal = architecture.is_causal(model.config)
    parameters = sum(parameter.numel() for parameter in _acting_parameters(model))
    shared: dict[str, Any] = {
        "model": type(model).__name__,
        "architecture": architecture.name,
        "mode": "causal" if causal else "encoder",
        "native": native_scheme(model),
        "train_length": train_length(model),
    }
    if not is_swapped(model):
        longest = longest_position(model)
        backend = model.config._attn_implementation
        return Description(
            **shared, scheme=None, options={}, removed="nothing", added="nothing", parameters_before=parameters,
            parameters_after=parameters, longest_before=longest, longest_after=longest, attention=backend, healed=False,
            probe=None,
        )  # fmt: skip
    base = core_of(model)
    check_direction(base)
    layers = [_in_force(module.pos_scheme) for module in base.pos_layers]
    table, proof, groups = architecture.position_table(base), proof_of(model), _groups(model, base)
    return Description(
        **shared,
        scheme=base.pos_scheme.name,
        options=model.config.pos_scheme["options"],
        removed=_removed(shared["native"], table, layers, base),
        added=_added(base, layers),
        parameters_before=_parameters_before(parameters, base, layers, table),
        parameters_after=parameters,
        longest_before=stock_longest_position(model),
        longest_after=longest_position(model),
        attention="; ".join(dict.fromkeys(group.attention for group in groups[: len(base.pos_scheme.parts)])),
        healed=is_healed(model.config),
        probe=probe(model),
        proof="not verified" if proof is None else str(proof),
        groups=groups if len(base.pos_scheme.parts) > 1 else (),
        unfitted=unfitted_reason(model) is not None,
    )


def _groups(model: Any, base: Any) -> tuple[LayerGroup, ...]:
    """Return the layers of each scheme that acts in a model, and the layers that keep the model's own mechanism."""
    scheme, found = _in_force(base.pos_scheme), []
    for number, part in enumerate(scheme.parts):
        layers = [_in_force(module.pos_scheme) for module in base.pos_layers if module.pos_part == number]
        options = part.config.to_dict()
        name = options.pop("name")
        path = path_of(part, layers[0] if layers else SchemeLayer(), model)
        every = part.config.layers or range(base.config.num_hidden_layers)
        found.append(LayerGroup(tuple(sorted(every)), name, options, path))
    kept = set(range(base.config.num_hidden_layers)) - {layer for group in found for layer in group.layers}
    if kept:
        found.append(LayerGroup(tuple(sorted(kept)), native_scheme(model), {}, model.config._attn_implementation))
    return tuple(found)


def _removed(native: str, table: Any, layers: list[SchemeLayer], base: Any) -> str:
    if base.pos_scheme.config.keep_native:
        return "nothing: the scheme is added to the model's own"
    if base.pos_scheme.is_native():
        return "nothing: the scheme is the model's own"
    if isinstance(table, RetiredTable):
        row = table.weight.detach()
        nothing = base.pos_scheme.brings_whole_table() or not (row.is_meta or bool(row.any()))
        mean = "nothing stays in its place" if nothing else "its mean row stays"
        return f"{native} position table of {table.table.shape[0]} rows ({mean})"
    swapped = [module for module in base.pos_layers if not base.pos_scheme.part(module.pos_part).is_native()]
    return f"{native} in {len(swapped)} of {base.config.num_hidden_layers} layers"


def _added(base: Any, layers: list[SchemeLayer]) -> str:
    shared = _in_force(base.pos_scheme)
    count = sum(p.numel() for p in shared.parameters())
    inside = sum(p.numel() for layer in layers for p in layer.parameters())
    modules = (shared, *layers)
    weights = [weight.detach() for module in modules for weight in module.parameters()]
    alone = len(shared.parts) == 1 and not shared.turns_keys()
    silent = alone and bool(weights) and not any(weight.is_meta or bool(weight.any()) for weight in weights)
    note = ", all zero: no position until trained or calibrated" if silent else ""
    note += "".join(f"; {words}" for words in dict.fromkeys(layer.state_in_words() for layer in layers) if words)
    if not base.pos_scheme.acts_in_layers:
        return f"at the embeddings, {count:,} parameters{note}"
    return f"in {len(layers)} layers, {count:,} shared parameters and {inside:,} in the layers{note}"


def _parameters_before(now: int, base: Any, layers: list[SchemeLayer], table: Any) -> int:
    added = sum(p.numel() for module in (_in_force(base.pos_scheme), *layers) for p in module.parameters())
    retired = table.table.numel() - table.weight.numel() if isinstance(table, RetiredTable) else 0
    return now - added + retired


def _in_force(module: Any) -> Any:
    """Return the module that acts: peft holds the original module and one copy for each adapter that trains it."""
    if not hasattr(module, "modules_to_save"):
        return module
    active = [name for name in module.active_adapters if name in module.modules_to_save]
    return module.modules_to_save[active[0]] if active and not module.disable_adapters else module.original_module


def _acting(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and all modules in it, without the layers of adapters and without copies that do not act."""
    module = _in_force(module)
    yield module
    added = getattr(module, "adapter_layer_names", ())
    for name, child in module.named_children():
        if name not in added:
            yield from _acting(child)


def _acting_parameters(model: nn.Module) -> dict[nn.Parameter, None]:
    """Return the parameters of the model itself, without those of adapters; tied parameters occur once."""
    return {weight: None for module in _acting(model) for weight in module.parameters(recurse=False)}


@torch.no_grad()
def probe(model: Any) -> Probe | None:
    """Run a swapped model with and without its scheme on the same random tokens and compare the outputs.

    A healed model without its scheme is not the stock model. Its probe only shows that the scheme acts.

    Returns:
        The differences; None for a model on the meta device, and for one that cannot run before calibration.

    Raises:
        NotSwappedError: the model is not swapped.
    """
    model = plain_model(model)
    device = device_of(model.get_input_embeddings())
    if device.type == "meta" or unfitted_reason(model) is not None:
        return None
    limit = longest_position(model)
    length = min(PROBE_LENGTH, train_length(model), PROBE_LENGTH if limit is None else limit)
    generator = torch.Generator().manual_seed(PROBE_SEED)
    tokens = torch.randint(model.config.vocab_size, (1, length), generator=generator).to(device)
    training = model.training
    model.eval()
    try:
        name, now = _output(model, tokens)
        with without_scheme(model):
            _, before = _output(model, tokens)
    finally:
        model.train(training)
    difference = (now - before).double()
    typical = difference.square().mean().sqrt() / before.double().square().mean().sqrt().clamp(min=1e-30)
    return Probe(name, length, float(difference.abs().max()), float(typical))


def _output(model: Any, tokens: Tensor) -> tuple[str, Tensor]:
    """Return the model's logits and "logits"; if it has none for a plain text, its hidden states and their name."""
    if model.get_output_embeddings() is not None:
        logits = getattr(model(tokens), "logits", None)
        if logits is not None:
            return "logits", logits
    return "hidden states", model.base_model(tokens)[0]
