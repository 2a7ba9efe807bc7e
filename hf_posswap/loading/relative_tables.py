"""Relative tables of checkpoints that transformers 4 wrote, which transformers 5 leaves out.

BERT and its relatives could have `position_embedding_type` "relative_key" or "relative_key_query": no position table,
but a table of vectors by distance in each layer, which are multiplied with queries, or with queries and keys.
transformers 5 reads such a checkpoint as one with absolute positions. Scheme `shaw` computes what transformers 4 did.
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
"""Name of a layer's table in such files, beside the projections of queries and keys."""
PLACES = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download", "proxies", "variant")
FORMATS = ("use_safetensors", "weights_only", "state_dict")
"""Keyword arguments of `from_pretrained` that say where a file is and how it is read."""


def relative_scheme(config: Any) -> ShawConfig | None:
    """Return the scheme that a stock config's `position_embedding_type` stands for; None if it is another type.

    Distances beyond the longest that the table has a row for, of which transformers 4 had no value, share its last row.
    """
    kind = relative_kind(config)
    if kind is None:
        return None
    longest = config.max_position_embeddings - 1
    return ShawConfig(max_distance=longest, values=False, query_and_key=kind == "relative_key_query")


def read_relative_tables(
    model: Any, core: Any, architecture: Architecture, name: Any, loading: Mapping[str, Any], kind: str
) -> dict[nn.Module, Tensor]:
    """Return the table of each attention module, (2L − 1, d), row j − i + L − 1, as scheme `shaw` has it.

    Args:
        model: the model that transformers loaded without its tables.
        core: the part of it that has the layers.
        architecture: its architecture.
        name: the name by which it was loaded.
        loading: the keyword arguments it was loaded with.
        kind: the `position_embedding_type` of the checkpoint, for messages.

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
        config=copy.deepcopy(model.config),  # which loading writes to
        dtype=model.dtype,
        attn_implementation="eager",  # there is no attention, and any other is refused
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
    # transformers 4 numbers its rows by i − j.
    return {module: holder.get_submodule(f"{places[module]}.{TABLE}").weight.detach().flip(0) for module in modules}


def _holder_class(base: Any, paths: list[str], shape: tuple[int, int]) -> type[PreTrainedModel]:
    """Return a model class that has the relative tables and nothing else, at the places that files name."""

    class RelativeTables(PreTrainedModel):
        """Reads relative tables by transformers' own loading, whatever the files' format and number."""

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
            """Leave tables that the files lack: they are refused."""

    return RelativeTables


@torch.no_grad()
def give_relative_tables(core: Any, retired: Any, tables: Mapping[nn.Module, Tensor]) -> None:
    """Put tables into a core that was swapped to `relative_scheme`, and take its position table out altogether.

    transformers 4 added no position table to the embeddings of such models, so its mean row becomes zero.

    Args:
        core: the swapped core.
        retired: what stands in the place of its position table.
        tables: see `read_relative_tables`.
    """
    for module, table in tables.items():
        own: Any = module
        own.pos_scheme.key_table.copy_(table)
    retired.table.zero_()
    retired.weight.zero_()
    retired.weight.requires_grad_(False)
