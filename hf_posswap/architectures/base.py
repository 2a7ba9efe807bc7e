"""The description of a family of models, found from its config and modules, or given in a file of its own.

`Architecture` describes any model type that transformers maps to a causal or a masked language model. A family whose
description needs more than discovery has a file here with a subclass.
"""

import sys
from collections.abc import Iterator
from importlib import import_module
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_posswap.architectures import discovery
from hf_posswap.architectures.model_types import modes_of, package_of
from hf_posswap.architectures.rotary import RotarySeam, find_rotary
from hf_posswap.architectures.stock import StockModel, angles_as_stock, table_as_stock
from hf_posswap.architectures.tables import RetiredTable, table_rows
from hf_posswap.common.registry import Registry
from hf_posswap.errors import UnsupportedError
from hf_posswap.schemes.base import ModelFacts
from hf_posswap.schemes.stock_forms import AddedVectors, NoMechanism, RotaryAngles, StockForm


class Projection(NamedTuple):
    """The weights that compute the queries or the keys of a layer, as writable views.

    Attributes:
        weight: (H·d, D).
        bias: (H·d,).
    """

    weight: Tensor
    bias: Tensor


class Place(NamedTuple):
    """Locations in a core that each forward needs.

    Attributes:
        table: name of the position table, or None.
        first_row: the table's first usable row.
        token_types: whether token types would be gathered from a buffer that ends.
    """

    table: str | None
    first_row: int
    token_types: bool


PLACE = "pos_place"
"""Attribute of a swapped core that holds its `Place`."""


RELATIVE_TABLES_LOST = (
    "transformers 5 reads such a checkpoint as one with absolute positions, which it was not trained with, and leaves "
    "out its relative tables. pos_scheme='native' loads it with its tables, as scheme 'shaw': "
    "hf_posswap.AutoModel.from_pretrained(name, pos_scheme='native'), and other Auto classes likewise; on the "
    "command line --pos-scheme native."
)


def relative_kind(config: Any) -> str | None:
    """Return the `position_embedding_type` of a config with relative tables, which transformers 5 does not read."""
    kind = getattr(config, "position_embedding_type", None)
    return kind if isinstance(kind, str) and kind.startswith("relative_key") else None


class Architecture:
    """One family of models.

    Args:
        name: transformers' `model_type`, such as "gpt2".
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    """The model types that a subclass describes."""
    plain_rotary: ClassVar[bool] = False
    """Whether every layer rotates all dimensions of its heads by halves, so that keys may be cached unrotated."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.modes = modes_of(name)
        """Values that `is_causal` takes."""

    def __repr__(self) -> str:
        return f"Architecture({self.name!r})"

    def model_class(self, class_name: str) -> Any:
        """Return a stock model class of the family by its name, or None."""
        return getattr(import_module(package_of(self.name)), class_name, None)

    def is_causal(self, config: Any) -> bool:
        """Return whether self-attention is causal under this config."""
        if getattr(config, "is_causal", None) is False:
            return False
        if len(self.modes) > 1:
            return bool(getattr(config, "is_decoder", False))
        return self.modes[0]

    def refusal(self, config: Any) -> str | None:
        """Return why no scheme can enter models with this config, or None."""
        if getattr(config, "is_encoder_decoder", False):
            return "it is an encoder–decoder: its decoder attends to an encoder, which has positions of its own."
        if config.get_text_config() is not config:
            return "it is composed of several models: its text model is one of several parts."
        kind = relative_kind(config)
        if kind is None:
            return None
        return (
            f"its config says position_embedding_type {kind!r}. {RELATIVE_TABLES_LOST} hf_posswap.inspect(model) shows "
            "what is read here."
        )

    def attention_modules(self, base: nn.Module) -> Iterator[tuple[int, nn.Module]]:
        """Yield (layer, module) for each self-attention module; cross-attention is left out."""
        for seam in discovery.self_attention(base, self.is_attention):
            yield seam.layer, seam.module

    def is_attention(self, module_class: Any) -> bool:
        """Return whether a stock class is an attention module that a scheme can enter."""
        return discovery.reads_interface(module_class)

    def eager_function(self, module: Any) -> Any:
        """Return the function that a stock attention module runs under eager attention; None if it is not known."""
        return vars(sys.modules[discovery.stock_class_of(module).__module__]).get("eager_attention_forward")

    def blocks(self, base: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
        """Return (transformer block, its self-attention module) in the order of the layers."""
        seams = discovery.self_attention(base, self.is_attention)
        return [(base.get_submodule(discovery.block_of(seam.path)), seam.module) for seam in seams]

    def table_path(self, base: Any) -> str | None:
        """Return the name of a base model's position table, retired or not; None if there is none."""
        if PLACE in vars(base):
            return vars(base)[PLACE].table
        for name, module in base.named_modules():
            if isinstance(module, RetiredTable):
                return name
        found = discovery.position_table(base)
        return None if found is None else found[0]

    def position_table(self, base: Any) -> nn.Module | None:
        """Return the module in the place of the base model's position table; None if the family has no table."""
        path = self.table_path(base)
        return None if path is None else attrgetter(path)(base)

    def first_row(self, base: Any) -> int:
        """Return the first row of the base model's position table that a text reads; 0 without a table."""
        if PLACE in vars(base):
            return vars(base)[PLACE].first_row
        table = self.position_table(base)
        if isinstance(table, RetiredTable):
            return table.first_row
        if not isinstance(table, nn.Embedding):
            return 0
        return discovery.first_row(table, discovery.stock_config(base.config).max_position_embeddings)

    def rotary(self, base: Any) -> RotarySeam | None:
        """Return the base model's rotary angles, or None if it has none."""
        return find_rotary(base)

    def native_bias(self, base: Any) -> str | None:
        """Return the name of the scheme whose bias the stock model adds to its scores, or None."""
        return None

    def native(self, base: Any) -> str:
        """Return the name of the base model's own scheme: "learned", "rope", "learned+t5", …, or "none"."""
        parts = (
            "learned" if self.position_table(base) is not None else None,
            "rope" if self.rotary(base) is not None else None,
            self.native_bias(base),
        )
        return "+".join(part for part in parts if part is not None) or "none"

    @property
    def writes_attention(self) -> bool:
        """Whether the family's attention is written in its file, see `WrittenArchitecture`."""
        return False

    def train_length(self, base: Any) -> int:
        """Return the longest text that the stock model was trained to read."""
        rows = table_rows(self.position_table(base), self.first_row(base))
        if rows is not None:
            return rows.shape[0]
        return discovery.number_of(discovery.stock_config(base.config), discovery.LENGTH_FIELD)

    def facts(self, base: Any) -> ModelFacts:
        """Return the facts about a base model that schemes read. For a swapped model they describe the stock one.

        Raises:
            UnsupportedError: the config does not say how many heads and layers there are.
        """
        config, tokens = base.config, base.get_input_embeddings()
        rows, rotary = table_rows(self.position_table(base), self.first_row(base)), self.rotary(base)
        seams = discovery.self_attention(base, self.is_attention)
        if not seams:
            raise UnsupportedError(
                f"no attention module of this {type(base).__name__} chooses its attention function from transformers' "
                "AttentionInterface, so a scheme has no way into its layers."
            )
        heads = discovery.number_of(config, "num_attention_heads")
        return ModelFacts(
            architecture=self.name,
            hidden_size=tokens.embedding_dim if rows is None else rows.shape[1],
            num_heads=heads,
            num_key_value_heads=discovery.number_of(config, "num_key_value_heads", heads),
            head_dim=discovery.head_dim_of(seams[0].module, config, heads),
            num_layers=max(seam.layer for seam in seams) + 1,
            train_length=self.train_length(base),
            causal=self.is_causal(config),
            native=self.native(base),
            # Computed only where it is needed: it reads the token embeddings, which may be the largest weight.
            embedding_rms=_embedding_rms(tokens) if rows is None else 1.0,
            native_rope=None if rotary is None else rotary.options,
            native_rope_unread=None if rotary is None else rotary.unread,
            native_table=rows,
            turns_whole_heads=rotary is None or self.plain_rotary,
        )

    def query_and_key(self, module: Any) -> tuple[Projection, Projection] | None:
        """Return the weights that compute q and k if these are plain linear layers with biases; otherwise None.

        They are assumed to be the first two of a module's linear layers, or the first two thirds of its only linear
        layer that is three times as wide as its input. A caller that writes to them checks that they compute q and k.
        """
        layers = [child for child in module.children() if type(child) in (nn.Linear, Conv1D)]
        if layers and type(layers[0]) is Conv1D and layers[0].nf == 3 * layers[0].nx:
            weights, biases = (x.split(layers[0].nx) for x in (layers[0].weight.t(), layers[0].bias))
            return Projection(weights[0], biases[0]), Projection(weights[1], biases[1])
        pair = [layer for layer in layers[:2] if type(layer) is nn.Linear and layer.bias is not None]
        if len(pair) < 2:
            return None
        return Projection(pair[0].weight, pair[0].bias), Projection(pair[1].weight, pair[1].bias)

    def gathers_token_types(self, base: Any) -> bool:
        """Return whether the stock model gathers token types, where none are given, from a buffer that ends."""
        return vars(base)[PLACE].token_types if PLACE in vars(base) else _has_buffer(base, "token_type_ids")

    def place(self, base: Any) -> "Place":
        """Return the locations that each forward of a swapped core needs; they are found once."""
        return Place(self.table_path(base), self.first_row(base), self.gathers_token_types(base))

    def stock_forms(self, base: Any) -> tuple[type[StockForm], ...]:
        """Return the forms that stock models of the family can express, besides their own mechanism unchanged."""
        if self.native(base) == "learned":
            return (AddedVectors, NoMechanism)
        rotary = self.rotary(base)
        return (RotaryAngles,) if rotary is not None and rotary.plain else ()

    def write_stock(self, base: Any, form: StockForm, limit: int | None, max_length: int | None) -> StockModel:
        """Return the stock model that computes what a swapped base model computes.

        Args:
            base: the swapped base model.
            form: the stock form of its scheme, one of `stock_forms`.
            limit: number of positions that it can represent; None: no limit.
            max_length: longest text of the stock model; None: the natural one.

        Raises:
            UnsupportedError: the stock model cannot express the form with these values, or this length.
        """
        if isinstance(form, RotaryAngles):
            return angles_as_stock(form, self.train_length(base), max_length)
        path = self.table_path(base)
        assert path is not None
        return table_as_stock(base, path, limit, max_length)


@torch.no_grad()
def _embedding_rms(tokens: nn.Embedding) -> float | None:
    """Return the root mean square of the outputs of a model's token embeddings, including a scale in the module.

    None: the weights are not in memory.
    """
    weight = tokens.weight
    if weight.is_meta:
        return None
    # A norm makes no copy of the weight, which may be the largest one.
    norm = torch.linalg.vector_norm(weight.detach(), dtype=torch.promote_types(weight.dtype, torch.float32))
    scale = 1.0
    if type(tokens) is not nn.Embedding:
        row = weight[-1:].float()
        given = tokens(torch.tensor([len(weight) - 1], device=weight.device)).float()
        scale = float(given.norm() / row.norm().clamp(min=1e-30))
    return float(norm) / weight.numel() ** 0.5 * scale


def _has_buffer(base: nn.Module, name: str) -> bool:
    return any(path.rpartition(".")[2] == name for path, _ in base.named_buffers())


families: Registry[Any] = Registry("architecture")


def register_architecture(architecture: type[Architecture]) -> type[Architecture]:
    """Class decorator that adds a family's description to the registry, under each of its model types."""
    for model_type in architecture.model_types:
        families.register(architecture(model_type))
    return architecture
