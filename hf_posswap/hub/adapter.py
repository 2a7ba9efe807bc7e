"""Publishing of an adapter that was trained on a swapped model: its weights, its config with the scheme, and a card."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from hf_posswap.common.names import ADAPTER_TYPE_PREFIX
from hf_posswap.errors import CheckpointError
from hf_posswap.hub.card import adapter_card
from hf_posswap.hub.errors import HubError
from hf_posswap.hub.facts import CardFacts, FindLicense, about, base_of
from hf_posswap.hub.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Contents, adapter_contents, read_shapes
from hf_posswap.hub.results import read_json, read_results
from hf_posswap.hub.upload import Target, Upload, fetched_license, require_login, require_repo_name, upload
from hf_posswap.loading.auto_classes import AUTO_CLASS_OF_TASK
from hf_posswap.loading.configuration import HOME
from hf_posswap.loading.entry import config_from_entry, shown
from hf_posswap.loading.origin import cached_license, is_repo_id

BASE_KEY = "base_model_name_or_path"


def adapter_card_of(
    folder: Path, repo: str | None = None, base_model: str | None = None, license: str | None = None
) -> ModelCard:
    """Return the card of an adapter's folder, without requests to the Hub; see `hf_posswap.hub.card_of`.

    Raises:
        HubError: the folder cannot be published, or `repo` is not a valid name on the Hub.
    """
    if repo is not None:
        require_repo_name(repo)
    contents, config = read_adapter(folder)
    return adapter_card(_facts(contents, config, repo or folder.resolve().name, base_model, license, cached_license))


def push_adapter(folder: Path, target: Target, base_model: str | None = None, license: str | None = None) -> Upload:
    """Upload an adapter that was trained on a swapped model, with its card.

    Args:
        folder: a folder written by `hf-posswap finetune --lora-rank` or peft's `save_pretrained`.
        target: repository and options of the upload.
        base_model: name of the base model on the Hub, if the adapter was trained on a model from a folder.
        license: the licence; None: the base model's, if known.

    Raises:
        HubError: the folder cannot be published, or nobody is logged in. Nothing was sent.
        UploadError: the Hub or the connection to it failed.
    """
    contents, config = read_adapter(folder)
    require_login(target)

    def write_card(repo_id: str) -> ModelCard:
        return adapter_card(_facts(contents, config, repo_id, base_model, license, fetched_license))

    name, on_hub = _base_name(config, base_model)
    written = config | {BASE_KEY: name if on_hub or name is None else Path(name).name}
    return upload(target, contents, {ADAPTER_CONFIG: json.dumps(written, indent=2, sort_keys=True)}, write_card)


def read_adapter(folder: Path) -> tuple[Contents, dict[str, Any]]:
    """Check an adapter's folder before publishing; return its files and its config.

    Raises:
        HubError: the folder holds no adapter of a swapped model, or an unsafe or broken file.
    """
    contents = adapter_contents(folder)
    config = read_json(folder / ADAPTER_CONFIG)
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str) or not peft_type.startswith(ADAPTER_TYPE_PREFIX):
        raise HubError(
            f"the adapter in {str(folder)!r} is of type {shown(peft_type)}: it was trained on a model that is not "
            "swapped, so there is no scheme to publish. Publish it with peft."
        )
    try:
        config_from_entry(config.get("pos_scheme"))
    except CheckpointError as error:
        raise HubError(f"{ADAPTER_CONFIG} in {str(folder)!r} is not valid: {error}") from error
    mapping = config.get("auto_mapping")
    if mapping is not None and (not isinstance(mapping, dict) or mapping.get("parent_library") != HOME):
        raise HubError(
            f"auto_mapping in {ADAPTER_CONFIG} names code that is not hf_posswap's: {shown(mapping)}. Save the adapter "
            "again with save_pretrained."
        )
    read_shapes(folder, [ADAPTER_WEIGHTS])
    return contents, config


def _base_name(config: dict[str, Any], base_model: str | None) -> tuple[str | None, bool]:
    """Return the base model's name, and whether it is a name on the Hub (True) or a folder (False)."""
    if base_model is not None:
        return base_model, True
    name = config.get(BASE_KEY)
    if not isinstance(name, str) or not name:
        return None, False
    entry = config["pos_scheme"]
    return name, is_repo_id(name) and not Path(name).exists() and entry.get("base_source") != "folder"


def _facts(
    contents: Contents,
    config: dict[str, Any],
    repo: str,
    base_model: str | None,
    license: str | None,
    find_license: FindLicense,
) -> CardFacts:
    entry = config["pos_scheme"]
    options = config_from_entry(entry)
    results = read_results(contents.folder, entry, adapter=True)
    name, on_hub = _base_name(config, base_model)
    base = base_of(entry, name if on_hub else None, license, find_license)
    if not base.on_hub and name is not None:
        base = replace(base, name=Path(name).name)  # the published config of the adapter has this name
    return CardFacts(
        title=repo.rpartition("/")[2],
        repo=repo,
        base=base,
        options=options,
        native=entry.get("native", "learned"),
        auto_class=AUTO_CLASS_OF_TASK.get(str(config.get("task_type"))),
        has_tokenizer="tokenizer_config.json" in contents.files,
        results=results,
        measurements=tuple(about(options, results, contents.folder.resolve().name)),
        figures=contents.figures,
    )
