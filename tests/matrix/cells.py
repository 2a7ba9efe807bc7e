"""The cells of the matrix, generated from the registries, and the small models they are tested on."""

import copy
import dataclasses
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

import hf_posswap
from hf_posswap.architectures import Architecture, architecture_named
from hf_posswap.errors import PosSwapError, SchemeConfigError
from hf_posswap.loading.configuration import stock_config_class
from hf_posswap.schemes import SchemeConfig, SchemeLayer, schemes
from hf_posswap.swapped.cache_view import cache_keyword
from hf_posswap.swapped.capabilities import CORE
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.questions import unfitted_reason

TRAIN_LENGTH = 32
VOCABULARY = 97
HEADS = 4
HEAD_DIM = 8
LAYERS = 3
TRACED_LAYERS = {"gpt2": 2, "gemma3_text": 2}
"""Layers of models that are compiled, where one is not enough; tracing a layer takes most of a test's time.

Two are needed where layers differ, and in one more family, to trace what one layer leaves for the next.
"""

REQUIRED_OPTIONS: dict[str, dict[str, Any]] = {
    "longrope": {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0]},
    **{extend: {"length": 48} for extend in ("hierarchical", "tile", "last-row")},
}
"""Options without which a variant cannot be made."""
IN_SHORT_TEXTS: dict[str, dict[str, Any]] = {"dual_chunk": {"chunk": 8, "local": 4}}
"""Options of schemes that with their defaults read the matrix's texts as the stock model does."""


@dataclass(frozen=True)
class Cell:
    """One scheme with some options, in one architecture and mode."""

    architecture: str
    causal: bool
    config: SchemeConfig
    label: str

    def __str__(self) -> str:
        return f"{self.architecture}-{'causal' if self.causal else 'encoder'}-{self.label}"

    @property
    def is_default(self) -> bool:
        return ":" not in self.label

    def stock(self, layers: int = LAYERS) -> Any:
        """A stock model with random weights, in float32 and in eval mode."""
        return small_model(self.architecture, self.causal, layers=layers)

    def swapped(self, randomised: bool = True, layers: int = LAYERS) -> Any:
        """The same model with the scheme in, its parameters away from zero: a copy, which a test may change."""
        model = copy.deepcopy(_swapped_once(self, layers))
        torch.manual_seed(0)  # so that what a test draws next is the same whether the model was made before or now
        if randomised:
            randomise(model)
        return model


_MADE: dict[tuple[str, int], Any] = {}


def _swapped_once(cell: Cell, layers: int) -> Any:
    """The swapped and proved model of a cell, made once in a process: the proof takes most of a swap's time.

    It is given away in copies only, so that no test changes what another one gets.
    """
    key = (str(cell), layers)
    if key not in _MADE:
        _MADE[key] = fitted(hf_posswap.swap(cell.stock(layers), cell.config))
    return _MADE[key]


def fitted(model: Any) -> Any:
    """The same swapped model, calibrated if it cannot run before."""
    if unfitted_reason(model) is not None:
        hf_posswap.calibrate(model, [random_tokens(2, TRAIN_LENGTH)], measure=False)
    return model


SPECIAL: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "head_dim": HEAD_DIM,
        "query_pre_attn_scalar": HEAD_DIM,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }
}
"""What makes a family the special one that it is, in small."""


SHARED_OPTIONS = SchemeConfig.option_names()
"""Options of every scheme, which have tests of their own."""


def scheme_variants() -> list[tuple[str, SchemeConfig]]:
    """Every scheme with its defaults, with each choice of its variant option, and with each switch flipped."""
    found: list[tuple[str, SchemeConfig]] = []
    for scheme in sorted(schemes, key=lambda item: item.name):
        config_class = scheme.config_class
        found.append((scheme.name, config_class.from_options(IN_SHORT_TEXTS.get(scheme.name, {}))))
        for field in dataclasses.fields(config_class):
            if field.name == config_class.variant_option:
                for choice in field.metadata["choices"]:
                    options = {field.name: choice} | REQUIRED_OPTIONS.get(choice, {})
                    found.append((f"{scheme.name}:{choice}", config_class.from_options(options)))
            elif isinstance(field.default, bool) and field.name not in SHARED_OPTIONS:
                options = {field.name: not field.default}
                try:
                    found.append((f"{scheme.name}:{field.name}", config_class.from_options(options)))
                except SchemeConfigError:
                    continue  # the switch needs another option beside it; EXTRA_VARIANTS has such pairs
    return found + [(label, hf_posswap.parse_scheme(label)) for label in EXTRA_VARIANTS]


EXTRA_VARIANTS = (
    "alibi:trainable=true:per_layer=true",
    "rope:partial_rotary_factor=0.5",
    "rope:frequencies=fope",
    "rope:frequencies=fope:fourier_sums=true:base=10",
    "rope:frequencies=chosen",
    "learned:length=48",
    "none:recalibration=0.5",
)


VARIANTS_IN = {("gpt2", True), ("llama", True), ("bert", False)}
"""Families and modes that take every variant of every scheme: one with a position table, one with rotary angles, and an
encoder. The others take every scheme with its defaults, and the variants of their own mechanism."""


def all_cells() -> list[Cell]:
    """Every cell, supported or not; with MATRIX_CELLS=default in the environment, those with default options."""
    cells = [
        Cell(architecture, causal, config, label)
        for architecture in CORE
        for causal in architecture_named(architecture).modes
        for label, config in scheme_variants()
    ]
    if os.environ.get("MATRIX_CELLS") == "default":
        return [cell for cell in cells if cell.is_default]
    return [cell for cell in cells if cell.is_default or _takes_variants(cell)]


def _takes_variants(cell: Cell) -> bool:
    mode = (cell.architecture, cell.causal)
    return mode in VARIANTS_IN or cell.config.name == _native(*mode)


@cache
def _native(architecture: str, causal: bool) -> str:
    """The name of the scheme that a family has by itself."""
    return architecture_named(architecture).facts(core_of(small_model(architecture, causal))).native


def refusal(cell: Cell) -> PosSwapError | None:
    """The error with which the model refuses the cell, or None."""
    try:
        cell.swapped(randomised=False)
    except PosSwapError as error:
        return error
    return None


@cache
def supported_cells() -> list[Cell]:
    """The cells that no model refuses."""
    return [cell for cell in all_cells() if refusal(cell) is None]


@cache
def default_cells() -> list[Cell]:
    """The supported cells with default options: what slower invariants run over."""
    return [cell for cell in all_cells() if cell.is_default and refusal(cell) is None]


EVERY_SCHEME_IN = {("llama", True), ("bert", False)}
"""Families and modes of which every scheme is among the representative cells: a decoder and an encoder."""


@cache
def representative_cells() -> list[Cell]:
    """Those of the default cells that slow tests run over, such as compilation, which takes seconds for each.

    What can go wrong is in the code of a scheme, which is the same in all families, or where a family calls a scheme,
    which is the same for all schemes that enter it in one way. So every scheme is here in one decoder and one encoder,
    and one scheme of each kind in all other families and modes.
    """
    every = [cell for cell in default_cells() if (cell.architecture, cell.causal) in EVERY_SCHEME_IN]
    return every + [cell for cell in one_of_each_kind() if cell not in every]


@cache
def one_of_each_kind() -> list[Cell]:
    """In each family and mode one default cell of each kind: for what the code of a scheme does not decide."""
    found = {(cell.architecture, cell.causal, *_kind(cell)): cell for cell in reversed(default_cells())}
    return list(reversed(found.values()))


HOOKS = ("transform_query", "transform_key", "transform_cached", "state", "bias", "mix")
"""What attention calls of a scheme."""


def _kind(cell: Cell) -> tuple[object, ...]:
    """How a scheme enters a model: at the embeddings, or in which hooks of its layers; and whether it is the model's.

    The kind of its bias does not count: attention computes it alike in all families.
    """
    model = cell.swapped()
    scheme = core_of(model).pos_scheme
    layer = next((module for module in model.modules() if isinstance(module, SchemeLayer)), SchemeLayer())
    hooks = tuple(getattr(type(layer), hook) is not getattr(SchemeLayer, hook) for hook in HOOKS)
    return scheme.acts_in_layers, scheme.name == scheme.facts.native, hooks


def traced_layers(architecture: str, config: SchemeConfig | None = None) -> int:
    """How many layers a model has that is compiled: those at least that its scheme names."""
    named = [layer for part in (config.parts if config else ()) for layer in part.layers or ()]
    return max([TRACED_LAYERS.get(architecture, 1), *(layer + 1 for layer in named)])


def small_config(architecture: str, causal: bool, layers: int = LAYERS, **extra: Any) -> Any:
    """A stock config of few layers, by the names that all families share."""
    family = architecture_named(architecture)
    shared = {
        "vocab_size": VOCABULARY,
        "hidden_size": HEADS * HEAD_DIM,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": TRAIN_LENGTH,
        "is_decoder": causal,
        "initializer_range": 0.25,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    special = dict(SPECIAL.get(architecture, {}))
    if "layer_types" in special:
        special["layer_types"] = special["layer_types"][:layers]
    return stock_config_class(family)(**(shared | _without_dropout(family) | special | extra))


def _without_dropout(family: Architecture) -> dict[str, float]:
    """Every dropout probability of the family's config, at zero."""
    fields = dataclasses.fields(stock_config_class(family))
    return {f.name: 0.0 for f in fields if f.name.endswith(("_pdrop", "_dropout", "_dropout_prob")) and f.default}


def small_model(architecture: str, causal: bool, seed: int = 0, layers: int = LAYERS, **extra: Any) -> Any:
    torch.manual_seed(seed)
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
    return auto.from_config(small_config(architecture, causal, layers, **extra)).eval()


def scheme_parameters(model: Any) -> list[torch.nn.Parameter]:
    """The parameters that the swap added."""
    modules = [core_of(model).pos_scheme, *(m for m in model.modules() if isinstance(m, SchemeLayer))]
    return [parameter for module in modules for parameter in module.parameters()]


def randomise(model: Any, seed: int = 1) -> None:
    """Move the scheme's parameters away from where they start, which for many is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in scheme_parameters(model):
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator).to(parameter)


def random_tokens(batch: int, length: int, seed: int = 2) -> Tensor:
    """Tokens other than the special ones."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def given(model: Any, cache: Any) -> dict[str, Any]:
    """Return the keyword that gives a model a cache, under the name that this release of transformers has for it."""
    with torch.no_grad():
        name = cache_keyword(model(random_tokens(1, 1), use_cache=True))
    assert name is not None
    return {name: cache}


def class_of(architecture: str, name: str) -> Any:
    return architecture_named(architecture).model_class(name)
