"""Checks of a swapped checkpoint on disk, without loading its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from hf_posswap import modeling
from hf_posswap.architectures import architecture_of
from hf_posswap.common.names import CLASS_PREFIX, MODEL_TYPE_PREFIX
from hf_posswap.errors import PosSwapError
from hf_posswap.hub.errors import HubError
from hf_posswap.hub.folder import CONFIG_FILE, INDEX_FILE, WEIGHTS, Contents, check_index, model_contents, read_shapes
from hf_posswap.hub.results import read_json
from hf_posswap.loading.configuration import code_map
from hf_posswap.loading.entry import shown
from hf_posswap.swapped.plan import scheme_keys


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has passed all checks.

    Attributes:
        contents: its files.
        config: the model's config.
        model: the model on the meta device, without weights.
    """

    contents: Contents
    config: Any
    model: Any


def read_checkpoint(folder: Path) -> Checkpoint:
    """Check a checkpoint's folder before publishing.

    Raises:
        HubError: the folder holds no swapped checkpoint, an unsafe or broken file, or not all tensors of its scheme.
    """
    contents = model_contents(folder)
    raw = read_json(folder / CONFIG_FILE)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or not model_type.startswith(MODEL_TYPE_PREFIX) or not raw.get("pos_scheme"):
        raise HubError(
            f"{str(folder)!r} holds a model of type {shown(model_type)} that was not swapped by hf_posswap. Swap it "
            "first (hf-posswap swap MODEL --pos-scheme SCHEME --output-dir DIR), or publish it with transformers."
        )
    if "configuration_files" in raw:
        raise HubError(f"{CONFIG_FILE} in {str(folder)!r} points to other config files. Take configuration_files out.")
    config = _load_config(folder)
    check_code_map(raw.get("auto_map"), config)
    model = empty_model(config)
    _check_weights(contents, model)
    return Checkpoint(contents, config, model)


def check_code_map(found: Any, config: Any) -> None:
    """Refuse a config whose `auto_map` refers to other code than the remote-code file of hf_posswap.

    Raises:
        HubError: it does; the message gives the present and the right value.
    """
    allowed = code_map(architecture_of(config))
    wrong = found if not isinstance(found, dict) else {k: v for k, v in found.items() if allowed.get(k) != v}
    if wrong:
        raise HubError(
            f"auto_map in {CONFIG_FILE} names code that is not hf_posswap's: {shown(wrong)}. Whoever trusts the "
            "repository would run it. Save the model again with model.save_pretrained."
        )


def empty_model(config: Any) -> Any:
    """Return a swapped config's model without weights.

    Raises:
        HubError: the config names no swapped class, or its model cannot use the scheme.
    """
    names = config.architectures or []
    name = names[0] if names else None
    if not isinstance(name, str) or not name.isidentifier() or not name.startswith(CLASS_PREFIX):
        raise HubError(
            f"architectures in {CONFIG_FILE} is {shown(names)}; it must name a swapped class, {CLASS_PREFIX}…."
        )
    model_class: Any = getattr(modeling, name, None)
    if getattr(model_class, "config_class", None) is not type(config):
        raise HubError(f"architectures in {CONFIG_FILE} names {shown(name)}, no model of {type(config).__name__}.")
    try:
        with torch.device("meta"):
            return model_class(config)
    except PosSwapError as error:
        raise HubError(f"the scheme in {CONFIG_FILE} does not fit the model: {error}") from error


def _load_config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises errors of many types for invalid fields of the file
        raise HubError(f"{CONFIG_FILE} in {str(folder)!r} is not valid: {error}") from error


def _check_weights(contents: Contents, model: Any) -> None:
    """Check that the files hold the scheme's weights, in the right shapes."""
    weights = [name for name in contents.files if WEIGHTS.fullmatch(name)]
    if INDEX_FILE in contents.files:
        check_index(contents.folder, weights)
    shapes = read_shapes(contents.folder, weights)
    for key, shape in scheme_keys(model).items():
        if shapes.get(key) != tuple(shape):
            found = f"in shape {list(shapes[key])}" if key in shapes else "missing"
            raise HubError(
                f"weight {key!r} of scheme {model.config.pos_scheme['name']!r} is {found}, and has to have shape "
                f"{list(shape)}. The checkpoint is not whole: save the model again."
            )
