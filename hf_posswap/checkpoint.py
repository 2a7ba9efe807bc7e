"""What a swapped checkpoint says about its scheme: the `pos_scheme` entry of its config and the remote-code file."""

from typing import Any

from hf_posswap.errors import CheckpointError, PosSwapError
from hf_posswap.schemes import SchemeConfig, as_config
from hf_posswap.version import __version__

FORMAT_VERSION = 1
REMOTE_CODE_FILE = "modeling_posswap.py"
ENTRY_KEYS = ("format_version", "name", "options", "native", "hf_posswap_version", "base_model")


def make_entry(config: SchemeConfig, native: str, base_model: str | None) -> dict[str, Any]:
    """Return the `pos_scheme` entry of a model's config.

    Args:
        config: the resolved config.
        native: name of the scheme that was swapped out.
        base_model: name or path the stock model came from, if known.
    """
    options = config.to_dict()
    name = options.pop("name")
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "options": options,
        "native": native,
        "base_model": base_model or None,
        "hf_posswap_version": __version__,
    }


def validate_entry(entry: Any) -> None:
    """Check a `pos_scheme` entry.

    Raises:
        CheckpointError: it is malformed, or of a newer format than this hf_posswap reads.
    """
    config_from_entry(entry)


def config_from_entry(entry: Any) -> SchemeConfig:
    """Return the scheme config that a `pos_scheme` entry describes.

    Raises:
        CheckpointError: it is malformed, or of a newer format than this hf_posswap reads.
    """
    if not isinstance(entry, dict):
        raise CheckpointError(f"pos_scheme in the config is {entry!r}; it must be an object with {_KEYS}.")
    version = entry.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(
            f"pos_scheme.format_version is {version!r}; it must be a positive integer. Keys: {_KEYS}."
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"this checkpoint has pos_scheme format {version} (written by hf_posswap "
            f"{entry.get('hf_posswap_version', 'unknown')}); hf_posswap {__version__} reads up to {FORMAT_VERSION}. "
            "Upgrade: pip install -U hf_posswap."
        )
    unknown = sorted(set(entry) - set(ENTRY_KEYS))
    if unknown:
        raise CheckpointError(f"pos_scheme has unknown keys {unknown}. Allowed: {_KEYS}.")
    options = entry.get("options", {})
    if not isinstance(options, dict):
        raise CheckpointError(f"pos_scheme.options is {options!r}; it must be an object of scheme options.")
    try:
        return as_config({"name": entry.get("name")} | options)
    except PosSwapError as error:
        raise CheckpointError(f"pos_scheme in the config is malformed: {error}") from error


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
