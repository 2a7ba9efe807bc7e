"""Where positions enter a model, found from its module tree.

Modules are found by their type and by their code, not by their names: an attention module is one whose forward reads an
`AttentionInterface`; a position table is an embedding with as many rows as the config has positions. The proof
(`hf_posswap.swapped.proof`) checks the result by running the model, and refuses a swap if a mechanism was missed.
"""

import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from types import CodeType
from typing import Any

from torch import nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from hf_posswap.errors import UnsupportedError

MOST_UNUSABLE_ROWS = 4
"""Rows that a position table may have beyond the config's number of positions; OPT and BART have 2."""


LENGTH_FIELD = "max_position_embeddings"
"""The name in transformers' configs of the number of positions; some families store it under another name."""
STOCK_LENGTH = "stock_max_position_embeddings"
"""Key of a `pos_scheme` entry with the stock model's number of positions; the config states the swapped model's."""


@dataclass(frozen=True)
class AttentionSeam:
    """A self-attention module.

    Attributes:
        path: its name below the base model.
        layer: number of its layer, counted from 0.
        module: the module.
    """

    path: str
    layer: int
    module: Any


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def reads_interface(module_class: Any) -> bool:
    """Return whether a module's forward chooses its attention function from an `AttentionInterface`."""
    return _reads_interface(inspect.unwrap(module_class.forward))  # another tool may have replaced it


@cache
def _reads_interface(function: Any) -> bool:
    code, scope = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    if code is None:
        return False
    return any(isinstance(scope.get(name), AttentionInterface) for name in _names_in(code))


def stock_class_of(module: nn.Module) -> type:
    """Return the stock class of a module, swapped or not."""
    return vars(type(module)).get("stock_class", type(module))


def self_attention(base: nn.Module, is_attention: Any = reads_interface) -> list[AttentionSeam]:
    """Return the self-attention modules below a base model, in the order of the layers.

    A layer's number is the place of its block in a list of blocks. Cross-attention is left out: it is the second
    attention of a block, and says so.

    Args:
        base: the base model.
        is_attention: returns whether a class is one of attention modules.
    """
    found: list[AttentionSeam] = []
    blocks: set[str] = set()
    for path, module in base.named_modules():
        if not is_attention(stock_class_of(module)) or getattr(module, "is_cross_attention", False):
            continue
        if not _is_of(module, base.config):
            continue
        block = block_of(path)
        if block in blocks:
            continue
        blocks.add(block)
        found.append(AttentionSeam(path, len(found), module))
    numbers = [int(number) for seam in found if (number := block_of(seam.path).rpartition(".")[2]).isdigit()]
    if len(set(numbers)) == len(found):  # in hybrids only some blocks have attention
        return [replace(seam, layer=number) for seam, number in zip(found, numbers, strict=True)]
    return found


def _is_of(module: nn.Module, config: Any) -> bool:
    """Return whether a module belongs to the model with this config, and not to another model inside it."""
    configs = [value for value in vars(module).values() if isinstance(value, PreTrainedConfig)]
    return not configs or any(isinstance(known, stock_config_type(config)) for known in configs)


def stock_config_type(config: Any) -> type:
    """Return the stock class of a config, swapped or not."""
    return vars(type(config)).get("stock_class", type(config))


def stock_config(config: Any) -> Any:
    """Return a config with the stock model's number of positions, from which its modules are made."""
    entry = getattr(config, "pos_scheme", None) or {}
    if STOCK_LENGTH not in entry:
        return config
    config = copy.copy(config)
    state_length(config, entry[STOCK_LENGTH])
    return config


def state_length(config: Any, length: int | None) -> None:
    """Write a number of positions into a config; None: the config has no such field."""
    if length is not None:
        setattr(config, LENGTH_FIELD, length)
    else:
        vars(config).pop(length_field(config), None)


def length_field(config: Any) -> str:
    """Return the name under which a config and its file store the number of positions."""
    return str(type(config).attribute_map.get(LENGTH_FIELD, LENGTH_FIELD))


def block_of(path: str) -> str:
    """Return the name of the transformer block that contains a module: its path up to the last number."""
    parts = path.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1]) if numbers else path


def position_table(base: Any) -> tuple[str, nn.Embedding] | None:
    """Return the name and module of a base model's position table, or None.

    It is an embedding as wide as the tokens' or the model, with a row for each of the config's positions and at most a
    few more.
    """
    longest = getattr(stock_config(base.config), LENGTH_FIELD, None)
    tokens, width = base.get_input_embeddings(), getattr(base.config, "hidden_size", None)
    if not isinstance(longest, int) or not isinstance(tokens, nn.Embedding):
        return None
    found = [
        (name, module)
        for name, module in base.named_modules()
        if isinstance(module, nn.Embedding) and module is not tokens and _is_table(module, tokens, longest, width)
    ]
    if len(found) > 1:  # of several as long, the one whose name says it; LayoutLM has others for places on a page
        found = [pair for pair in found if pair[0].rpartition(".")[2].startswith(("pos", "embed_pos", "wpe"))]
    return found[0] if len(found) == 1 else None


def _is_table(module: nn.Embedding, tokens: nn.Embedding, longest: int, width: Any) -> bool:
    unusable = module.num_embeddings - longest
    return 0 <= unusable <= MOST_UNUSABLE_ROWS and module.embedding_dim in (tokens.embedding_dim, width)


def first_row(table: nn.Embedding, longest: int) -> int:
    """Return the first row of a position table that a text reads.

    Tables that count from the padding token on (RoBERTa) have it as their padding row; others (OPT) have more rows than
    positions.
    """
    if table.num_embeddings > longest:
        return table.num_embeddings - longest
    return 0 if table.padding_idx is None else table.padding_idx + 1


def rotary_modules(base: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules of a base model that compute rotary angles: they have frequencies, and no parameters."""
    return [(name, module) for name, module in base.named_modules() if _is_rotary(module)]


def _is_rotary(module: nn.Module) -> bool:
    if next(module.parameters(), None) is not None:
        return False
    return any("inv_freq" in name for name, _ in module.named_buffers(recurse=False))


def token_table(base: Any) -> nn.Module:
    """Return the token embeddings of a base model; of a wrapper without any, the first embedding inside."""
    try:
        table: nn.Module = base.get_input_embeddings()
    except (NotImplementedError, AttributeError):  # transformers raises this for a wrapper without a table of its own
        table = next(module for module in base.modules() if isinstance(module, nn.Embedding))
    return table


def core_path(base: Any) -> str:
    """Return the name, below a base model, of the innermost model that holds all its attention and its token table.

    In most families that is the base model itself ("").
    """
    parts = [seam.module for seam in self_attention(base)] + [token_table(base)]
    best = ""
    for path, module in base.named_modules():
        if isinstance(module, PreTrainedModel) and len(path) >= len(best):
            inside = set(map(id, module.modules()))
            if all(id(part) in inside for part in parts):
                best = path
    return best


def number_of(config: Any, name: str, default: int | None = None) -> int:
    """Return a number of a config.

    Raises:
        UnsupportedError: it has none, or one for each layer.
    """
    try:
        value = getattr(config, name, None)
    except Exception as error:  # transformers refuses to name one number for layers that differ
        raise UnsupportedError(f"the config has no one {name} for all layers: {error}") from error
    value = default if value is None else value
    if not isinstance(value, int):
        raise UnsupportedError(f"the config's {name} is {value!r}; a scheme needs one number for all layers.")
    return value


def head_dim_of(module: Any, config: Any, heads: int) -> int:
    """Return the width of a head: the module's own value if it has one, otherwise the config's."""
    for owner, name in ((module, "qk_head_dim"), (module, "head_dim"), (module, "attention_head_size")):
        value = getattr(owner, name, None)
        if isinstance(value, int):
            return value
    try:
        known = getattr(config, "head_dim", None)
    except Exception as error:  # as above
        raise UnsupportedError(f"the config has no one head_dim for all layers: {error}") from error
    return known if isinstance(known, int) else number_of(config, "hidden_size") // heads
