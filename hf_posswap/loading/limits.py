"""Checks of the config of a swapped checkpoint: files may be untrusted, and transformers does not check these fields.

The scheme's entry is checked in `hf_posswap.loading.entry`; this module checks the other fields.
"""

from collections.abc import Mapping
from typing import Any

from hf_posswap.errors import CheckpointError
from hf_posswap.loading.entry import LONGEST_LENGTH, shown

LARGEST_SIZES = {
    "num_hidden_layers": 10_000,
    "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000,
    "head_dim": 100_000,
    "hidden_size": 1_000_000,
    "intermediate_size": 10_000_000,
    "vocab_size": 100_000_000,
    "max_position_embeddings": LONGEST_LENGTH,
    "type_vocab_size": 100_000_000,
}
"""Upper limits far above any model; larger values would make transformers create modules or lists without end."""


def check_fields(config_class: type, fields: Mapping[str, Any]) -> None:
    """Refuse undeclared fields of a config that would hide parts of the config class, or load code from the Hub.

    Args:
        config_class: the swapped config class.
        fields: the fields that the class does not declare; transformers would set them as attributes.

    Raises:
        CheckpointError: there is such a field, which the message names.
    """
    for name in ("attn_implementation", "_attn_implementation"):
        if "/" in str(fields.get(name, "")):
            raise CheckpointError(
                f"{name} is {shown(fields[name])}, code from the Hub. A config, which may come from there too, does "
                "not start it: leave it out, and call model.set_attn_implementation(…) if you mean it."
            )
    for name in fields:
        hidden = getattr(config_class, name, None) if isinstance(name, str) else None
        if not isinstance(name, str) or name.startswith("__") or name == "stock_class" or callable(hidden):
            raise CheckpointError(
                f"the config has a field {shown(name)}, which would hide a part of {config_class.__name__}. No swapped "
                "model was saved with it: get the checkpoint from where it was made."
            )


def check_dtype(dtype: Any) -> None:
    """Refuse a value that is not a dtype: transformers would use any attribute of torch.

    Raises:
        CheckpointError: it is not a dtype; the message gives the value.
    """
    import torch

    if isinstance(dtype, str) and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise CheckpointError(f"the config's dtype is {shown(dtype)}; it must name one of torch's, such as float32.")


def check_sizes(config: Any) -> None:
    """Refuse sizes outside the allowed range.

    Raises:
        CheckpointError: there is such a size; the message gives the field, its value and the allowed range.
    """
    for name, largest in LARGEST_SIZES.items():
        value = getattr(config, name, None)
        if isinstance(value, list) and value and len(value) <= LARGEST_SIZES["num_hidden_layers"]:  # one for each layer
            value = max(value) if all(type(number) is int for number in value) else value
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
            raise CheckpointError(
                f"the config's {name} is {shown(value)}; it must be a whole number from 0 to {largest:,}."
            )
