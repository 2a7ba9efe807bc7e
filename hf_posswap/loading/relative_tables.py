"""Reads the relative tables of checkpoints that transformers 4 wrote; transformers 5 does not load them.

In transformers 4, BERT and related models support the `position_embedding_type` "relative_key" and
"relative_key_query". Such a model has no position table. Each layer has a table of vectors by distance, which are
multiplied with queries, or with queries and keys. transformers 5 loads such a checkpoint as a model with absolute
positions. Scheme `shaw` computes the same as transformers 4.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_posswap.architectures import Architecture
from hf_posswap.architectures.base import relative_kind
from hf_posswap.errors import CheckpointError
from hf_posswap.schemes.shaw import ShawConfig

TABLE = "distance_embedding"
"""Name of a layer's table in these checkpoints; it is in the same module as the query and key projections."""
PLACES = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download", "proxies", "variant")
FORMATS = ("use_safetensors", "weights_only", "state_dict")
"""Keyword arguments of `from_pretrained`: `PLACES` determine where files are, `FORMATS` how they are read."""


def relative_scheme(config: Any) -> ShawConfig | None:
    """Return the scheme that equals a stock config's relative `position_embedding_type`; None for any other type.

    The table has one row per distance. Longer distances, which transformers 4 does not support, share the last row.
    """
    kind = relative_kind(config)
    if kind is None:
        return None
    longest = config.max_position_embeddings - 1
    return ShawConfig(max_distance=longest, values=False, query_and_key=kind == "relative_key_query")


def read_relative_tables(
    model: Any, core: Any, architecture: Architecture, name: Any, loading: Mapping[str, Any], kind: str
) -> dict[nn.Module, Tensor]:
    """Return the table of each attention module, (2L − 1, D), with row j − i + L − 1, the order of scheme `shaw`.

    Args:
        model: the model that transformers loaded without its tables.
        core: the module of the model that has the layers.
        architecture: the model's architecture.
        name: name or path of the checkpoint.
        loading: the keyword arguments that the model was loaded with.
        kind: the `position_embedding_type` of the checkpoint, for error messages.

    Raises:
        CheckpointError: the checkpoint has no tables.
    """
    base = getattr(model, "base_model", model)
    places = {module: path for path, module in base.named_modules()}
    modules = [module for _, module in architecture.attention_modules(core)]
    shape = (2 * model.config.max_position_embeddings - 1, architecture.facts(core).head_dim)
    holder_class = _holder_class(base, [places[module] for module in modules], shape)
    kept = {key: loading[key] for key in (*PLACES, *FORMATS) if key in loading}
    holder, found = holder_class.from_pretrained(
        name,
        config=copy.deepcopy(model.config),  # a copy, because `from_pretrained` changes the config
        dtype=model.dtype,
        attn_implementation="eager",  # the class has no attention; transformers refuses any other value
        output_loading_info=True,
        **kept,
    )
    missing = sorted(found["missing_keys"])
    if missing:
        raise CheckpointError(
            f"the config says position_embedding_type {kind!r}, and the checkpoint has no "
            f"relative tables, such as {missing[0]!r}. They are lost if transformers 5 saved it: take the original "
            "files, which transformers 4 wrote."
        )
    # In transformers 4, rows are ordered by i − j; flip(0) orders them by j − i.
    return {module: holder.get_submodule(f"{places[module]}.{TABLE}").weight.detach().flip(0) for module in modules}


def _holder_class(base: Any, paths: list[str], shape: tuple[int, int]) -> type[PreTrainedModel]:
    """Return a model class that contains only the relative tables, at their paths in the checkpoint.

    Args:
        base: the base model.
        paths: paths of the attention modules in it.
        shape: shape of each table.
    """

    class RelativeTables(PreTrainedModel):
        """Loads relative tables with transformers' own loading, which supports all formats and several files."""

        config_class = type(base.config)
        base_model_prefix = base.base_model_prefix
        _keys_to_ignore_on_load_unexpected = (r".",)

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for path in paths:
                parent: nn.Module = self
                for part in path.split("."):
                    if part not in parent._modules:
                        parent.add_module(part, nn.Module())
                    parent = parent.get_submodule(part)
                parent.add_module(TABLE, nn.Embedding(*shape))
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            """Do nothing: `read_relative_tables` refuses a checkpoint without tables."""

    return RelativeTables


@torch.no_grad()
def give_relative_tables(core: Any, retired: Any, tables: Mapping[nn.Module, Tensor]) -> None:
    """Copy tables into a core that was swapped to `relative_scheme`, and set its retired position table to zero.

    A swap leaves the mean row of a retired position table in the embeddings. transformers 4 adds no position table to
    the embeddings of these models, so the mean row becomes zero too.

    Args:
        core: the swapped core.
        retired: the module that replaces its position table.
        tables: see `read_relative_tables`.
    """
    for module, table in tables.items():
        own: Any = module
        own.pos_scheme.key_table.copy_(table)
    retired.table.zero_()
    retired.weight.zero_()
    retired.weight.requires_grad_(False)
