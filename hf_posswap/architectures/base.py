"""The contract of an architecture: where positions enter one family of Hugging Face models."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from hf_posswap.architectures.stock import StockModel, table_as_stock
from hf_posswap.architectures.tables import table_rows
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.errors import UnsupportedError
from hf_posswap.registry import Registry
from hf_posswap.schemes.base import ModelFacts
from hf_posswap.schemes.stock_forms import AddedVectors, NoMechanism, StockForm


class Projection(NamedTuple):
    """What makes the queries or the keys of a layer: views that can be written to.

    Attributes:
        weight: (H·d, D).
        bias: (H·d,).
    """

    weight: Tensor
    bias: Tensor


class Architecture(ABC):
    """One model family, described by class attributes and two small functions.

    Class attributes:
        name: transformers' `model_type`, such as "gpt2".
        native: name of the scheme that the stock models have.
        modeling_module: the transformers module with the model classes.
        configuration_class: dotted path of the stock config class.
        attention_path: pattern of the self-attention modules' names below the base model; its group is the layer.
        table_path: name of the position table below the base model, or None.
    """

    name: ClassVar[str]
    native: ClassVar[str]
    modeling_module: ClassVar[str]
    configuration_class: ClassVar[str]
    attention_path: ClassVar[re.Pattern[str]]
    table_path: ClassVar[str | None] = None
    modes: ClassVar[tuple[bool, ...]] = (True,)
    """Values that `is_causal` takes."""

    @abstractmethod
    def project(self, module: nn.Module, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q (B, H, L, d), k and v (B, Hkv, L, d) of hidden states (B, L, D)."""

    @abstractmethod
    def merge(self, module: nn.Module, context: Tensor) -> Tensor:
        """Return what the attention module returns for a context of (B, L, H, d)."""

    def query_and_key(self, module: Any) -> tuple[Projection, Projection] | None:
        """Return what makes q and k, if their scores are q·k as projected and it can be written to; otherwise None."""
        return None

    def rotate_natively(
        self, module: nn.Module, q: Tensor, k: Tensor, arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Apply the family's own per-layer mechanism to q and k; most families have none."""
        return q, k

    def attention_dropout(self, module: nn.Module) -> float:
        """Return the probability of dropping an attention weight in training."""
        return 0.0

    def attend_natively(
        self, module: Any, inputs: AttentionInputs, arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Run the stock attention function: context (B, L, H, d) and weights or None."""
        stock = module.stock_module
        function = stock.ALL_ATTENTION_FUNCTIONS.get_interface(
            module.config._attn_implementation, stock.eager_attention_forward
        )
        return function(
            module,
            inputs.q,
            inputs.k,
            inputs.v,
            inputs.mask,
            dropout=inputs.dropout,
            scaling=inputs.scaling,
            **arguments,
        )

    def complete_inputs(self, arguments: dict[str, Any], batch: int, length: int, device: torch.device) -> None:
        """Fill in arguments of the base model's forward that would otherwise come from length-limited buffers."""
        return

    def is_causal(self, config: Any) -> bool:
        """Return whether self-attention is causal under this config."""
        return True

    def facts(self, base: Any) -> ModelFacts:
        """Return what a scheme may know about a base model, stock or swapped; what it says is about the stock one."""
        config, table = base.config, self.position_table(base)
        # Read where it is needed only: it goes through what may be the largest weight of all.
        scale = _root_mean_square(base.get_input_embeddings().weight) if table is None else 1.0
        return ModelFacts(
            architecture=self.name,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_key_value_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            num_layers=config.num_hidden_layers,
            train_length=config.max_position_embeddings,
            causal=self.is_causal(config),
            native=self.native,
            embedding_rms=scale,
            native_rope=self.native_rope(config),
            native_table=table_rows(table),
        )

    def native_rope(self, config: Any) -> dict[str, Any] | None:
        """Return the stock model's RoPE as options of `RopeConfig`, if it has RoPE."""
        return None

    def stock_forms(self) -> tuple[type[StockForm], ...]:
        """Return what stock models of the family have a word for, beside their own mechanism as it is."""
        return () if self.table_path is None else (AddedVectors, NoMechanism)

    def write_stock(self, base: Any, form: StockForm, limit: int | None, max_length: int | None) -> StockModel:
        """Return the stock model that a swapped base model is; by default one with another position table.

        Args:
            base: the swapped base model.
            form: what its scheme is, one of `stock_forms`.
            limit: how many positions it can represent, or None if there is no limit.
            max_length: longest text that the stock model shall read, or None for the natural one.

        Raises:
            UnsupportedError: the form, as its fields have it, or the length cannot be said.
        """
        assert self.table_path is not None, "a family without a table says how it writes its `stock_forms`"
        return table_as_stock(base, self.table_path, limit, max_length)

    def position_table(self, base: nn.Module) -> nn.Module | None:
        """Return what stands in the place of the base model's position table, if the family has one."""
        return None if self.table_path is None else base.get_submodule(self.table_path)

    def attention_modules(self, base: nn.Module) -> Iterator[tuple[int, nn.Module]]:
        """Yield (layer, module) for each self-attention module; cross-attention is none of our business."""
        for name, module in base.named_modules():
            match = self.attention_path.fullmatch(name)
            if match:
                yield int(match.group(1)), module

    def blocks(self, base: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
        """Return (transformer block, its self-attention module) in the order of the layers."""
        found = {}
        for name, module in base.named_modules():
            match = self.attention_path.fullmatch(name)
            if match:
                found[int(match.group(1))] = (base.get_submodule(name[: match.end(1)]), module)
        return [found[layer] for layer in sorted(found)]


def _root_mean_square(weight: Tensor) -> float:
    if weight.is_meta:
        return 1.0
    # A norm makes no copy of what may be the largest weight of all.
    norm = torch.linalg.vector_norm(weight.detach(), dtype=torch.promote_types(weight.dtype, torch.float32))
    return float(norm) / weight.numel() ** 0.5


architectures: Registry[Architecture] = Registry("architecture")


def register_architecture(architecture: type[Architecture]) -> type[Architecture]:
    """Class decorator that adds an architecture to the registry under its `name`."""
    architectures.register(architecture())
    return architecture


def architecture_of(config: Any) -> Architecture:
    """Return the architecture of a model config, swapped or not.

    Raises:
        UnsupportedError: the family is not supported; the supported ones are listed.
    """
    name = getattr(config, "model_type", type(config).__name__).removeprefix("posswap_")
    if name not in architectures.names():
        raise UnsupportedError(
            f"architecture {name!r} is not supported. Supported: {', '.join(architectures.names())}. "
            "docs/adding-an-architecture.md shows how to add one: it is one file."
        )
    return architectures.get(name)
