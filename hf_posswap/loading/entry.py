"""The scheme in a swapped checkpoint: the `pos_scheme` entry of its config, and the remote-code file."""

from collections.abc import Mapping
from typing import Any

from hf_posswap.architectures.discovery import STOCK_LENGTH
from hf_posswap.errors import CheckpointError, PosSwapError
from hf_posswap.schemes import SchemeConfig, as_config, list_schemes
from hf_posswap.version import __version__

FORMAT_VERSION = 1
REMOTE_CODE_FILE = "modeling_posswap.py"
ORIGIN_KEYS = ("base_model", "base_source", "base_revision", "base_license")
HEALED_KEY = "healed"
"""True if the weights were trained with the scheme; otherwise the key may be absent."""
MADE_KEYS = ("format_version", "name", "options", "native", "hf_posswap_version")
ENTRY_KEYS = (*MADE_KEYS, STOCK_LENGTH, *ORIGIN_KEYS, HEALED_KEY)
LONGEST_LENGTH = 1_000_000_000
"""Upper limit of the number of positions, far above that of any model."""
LONGEST_TEXT = 256
"""Maximum characters of a text in an entry: names on the Hub have at most 96, folders 255."""
SHOWN = 200
"""Maximum characters of a refused value in an error message."""


def make_entry(config: SchemeConfig, native: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `pos_scheme` entry of a model's config.

    Args:
        config: the resolved config.
        native: name of the scheme that was swapped out.
        origin: origin of the stock model: `ORIGIN_KEYS` and their values, as far as known; or the entry that this one
            replaces.
    """
    options = config.to_dict()
    name = options.pop("name")
    kept = {HEALED_KEY: True} if origin.get(HEALED_KEY) else {}
    kept |= {STOCK_LENGTH: origin[STOCK_LENGTH]} if STOCK_LENGTH in origin else {}
    return (
        {
            "format_version": FORMAT_VERSION,
            "name": name,
            "options": options,
            "native": native,
            "hf_posswap_version": __version__,
        }
        | {key: origin.get(key) for key in ORIGIN_KEYS}
        | kept
    )


def is_healed(config: Any) -> bool:
    """Return whether a swapped model's weights were trained with its scheme, and so are not the stock model's."""
    return bool((getattr(config, "pos_scheme", None) or {}).get(HEALED_KEY))


def mark_healed(config: Any) -> None:
    """Record in a swapped model's config that its weights were trained with its scheme."""
    config.pos_scheme = config.pos_scheme | {HEALED_KEY: True}


def healed_before(config: Any) -> str:
    """Return the beginning of an error message: why a healed model cannot replace its stock model, and what can."""
    origin = config.pos_scheme.get("base_model")
    return (
        "the model was healed before: its weights have learned with its scheme, so taking the scheme out no longer "
        f"gives the stock model{'' if origin is None else f' it was made from, {shown(origin)}'}."
    )


def validate_entry(entry: Any) -> None:
    """Check a `pos_scheme` entry.

    Raises:
        CheckpointError: the entry is malformed, or of a newer format than this version of hf_posswap reads.
    """
    config_from_entry(entry)


def config_from_entry(entry: Any) -> SchemeConfig:
    """Return the scheme config that a `pos_scheme` entry describes.

    Raises:
        CheckpointError: the entry is malformed, or of a newer format than this version of hf_posswap reads.
    """
    if not isinstance(entry, dict):
        raise CheckpointError(f"pos_scheme in the config is {shown(entry)}; it must be an object with {_KEYS}.")
    version = entry.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(
            f"pos_scheme.format_version is {shown(version)}; it must be a positive integer. Keys: {_KEYS}."
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"this checkpoint has pos_scheme format {shown(version)} (written by hf_posswap "
            f"{shown(entry.get('hf_posswap_version'))}); hf_posswap {__version__} reads up to {FORMAT_VERSION}. "
            "Upgrade: pip install -U hf_posswap."
        )
    unknown = sorted(set(map(str, entry)) - set(ENTRY_KEYS))
    if unknown:
        raise CheckpointError(f"pos_scheme has unknown keys {shown(unknown)}. Allowed: {_KEYS}.")
    _check_texts(entry)
    _check_stock_length(entry.get(STOCK_LENGTH))
    if not isinstance(entry.get(HEALED_KEY, False), bool):
        raise CheckpointError(f"pos_scheme.{HEALED_KEY} is {shown(entry[HEALED_KEY])}; it must be true or false.")
    options = entry.get("options", {})
    if not isinstance(options, dict):
        raise CheckpointError(f"pos_scheme.options is {shown(options)}; it must be an object of scheme options.")
    if "name" in options:
        raise CheckpointError("pos_scheme.options has a 'name' of its own; the scheme's name is pos_scheme.name.")
    try:
        return as_config({"name": entry.get("name")} | options)
    except PosSwapError as error:
        raise CheckpointError(f"pos_scheme in the config is malformed: {_shortened(str(error), 4 * SHOWN)}") from error


def _check_stock_length(length: Any) -> None:
    """Refuse an impossible number of positions, because a table of this size is allocated."""
    if length is None or (type(length) is int and 0 < length <= LONGEST_LENGTH):
        return
    raise CheckpointError(
        f"pos_scheme.{STOCK_LENGTH} is {shown(length)}; it must be null or a whole number from 1 to {LONGEST_LENGTH:,}."
    )


def _check_texts(entry: Mapping[str, Any]) -> None:
    """Refuse values that are not text, and texts that could be taken for more than a name where they are shown."""
    for key in ("hf_posswap_version", *ORIGIN_KEYS):
        value = entry.get(key)
        if value is None or (isinstance(value, str) and len(value) <= LONGEST_TEXT and value.isprintable()):
            continue
        raise CheckpointError(
            f"pos_scheme.{key} is {shown(value)}; it must be null or a text of one line and at most {LONGEST_TEXT} "
            "characters."
        )
    native = entry.get("native", "learned")
    known = list_schemes()
    if not isinstance(native, str) or not set(native.split("+")) <= set(known):
        raise CheckpointError(
            f"pos_scheme.native is {shown(native)}; it must be one of {', '.join(known)}, or several joined by '+'."
        )


def shown(value: Any) -> str:
    """Return a value from a file for an error message: on one line and not too long."""
    if isinstance(value, int) and abs(value) > 10**SHOWN:
        return f"an integer of more than {SHOWN} digits"
    return _shortened(repr(value), SHOWN)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


_KEYS = ", ".join(ENTRY_KEYS)


def remote_code(architecture: str, names: list[str]) -> str:
    """Return the file that lets plain transformers load the checkpoint with `trust_remote_code=True`."""
    imports = "\n".join(f"    {name}," for name in names)
    return f'''"""A {architecture} model whose positional mechanism was swapped by hf_posswap.

It runs with hf_posswap only: `pip install hf_posswap`. Then `import hf_posswap` lets the Auto classes load this
checkpoint, or pass `trust_remote_code=True`, which runs this file.
"""

import hf_posswap

from hf_posswap.modeling import (
{imports}
)
'''
