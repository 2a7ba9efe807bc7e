"""Publishing of a folder or a model: checks, facts, card and upload."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import ModelCard

from hf_posswap.architectures import architecture_of
from hf_posswap.hub.card import model_card
from hf_posswap.hub.checkpoint import Checkpoint, read_checkpoint
from hf_posswap.hub.facts import CardFacts, folder_facts
from hf_posswap.hub.results import CheckpointResults
from hf_posswap.hub.upload import Target, Upload, fetched_license, require_login, require_repo_name, upload
from hf_posswap.loading.configuration import remote_code_of
from hf_posswap.loading.entry import REMOTE_CODE_FILE
from hf_posswap.swapped.description import describe


def card_of(
    folder: Path, repo: str | None = None, base_model: str | None = None, license: str | None = None
) -> ModelCard:
    """Return the card of a checkpoint's folder, without requests to the Hub.

    Args:
        folder: see `push_folder`.
        repo: the future repository on the Hub, for the code that loads the model.
        base_model: see `push_folder`.
        license: see `push_folder`.

    Raises:
        HubError: the folder cannot be published, or `repo` is not a valid name on the Hub.
    """
    if repo is not None:
        require_repo_name(repo)
    return model_card(folder_facts(read_checkpoint(folder), repo, base_model, license))


def push_folder(folder: Path, target: Target, base_model: str | None = None, license: str | None = None) -> Upload:
    """Upload a swapped checkpoint with its card: only weights, config, tokenizer, remote-code file and figures.

    Args:
        folder: a folder written by `hf-posswap swap`, `calibrate` or `finetune`, or by `save_pretrained`.
        target: repository and options of the upload.
        base_model: name of the base model on the Hub, if the checkpoint's config does not have it.
        license: the licence; None: the base model's, if known.

    Raises:
        HubError: the folder cannot be published, or nobody is logged in. Nothing was sent.
        UploadError: the Hub or the connection to it failed.
    """
    checkpoint = read_checkpoint(folder)
    require_login(target)

    def write_card(repo_id: str) -> ModelCard:
        return model_card(folder_facts(checkpoint, repo_id, base_model, license, fetched_license))

    return upload(target, checkpoint.contents, _code(checkpoint), write_card)


def push_model(
    model: Any,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tags: list[str] | str | None = None,
    base_model: str | None = None,
    license: str | None = None,
) -> Any:
    """Upload a swapped model with its card; `model.push_to_hub` calls this.

    Args:
        model: the model.
        repo_id: "owner/name", or "name" for a repository of the token's owner.
        commit_message: first line of the commit's message.
        commit_description: the rest of the commit's message.
        private: make a new repository private; None: by the owner's settings.
        token: access token; None: the one of `hf auth login` or HF_TOKEN.
        revision: branch; None: main.
        create_pr: open a pull request instead of committing to the branch.
        max_shard_size: size at which weights are split into several files.
        tags: further tags for the card.
        base_model: name of the base model on the Hub, if the model's config does not have it.
        license: the licence; None: the base model's, if known.

    Returns:
        huggingface_hub's commit information, as transformers' method returns it.

    Raises:
        HubError, UploadError: see `push_folder`.
    """
    target = Target(repo_id, private, token, revision, create_pr, commit_message or Target.message, commit_description)
    require_login(target)
    results = CheckpointResults(swap={"description": describe(model).to_dict()})
    with TemporaryDirectory() as place:
        folder = Path(place)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        checkpoint = read_checkpoint(folder)

        def write_card(repo: str) -> ModelCard:
            facts: CardFacts = replace(
                folder_facts(checkpoint, repo, base_model, license, fetched_license), results=results
            )
            return model_card(facts, [tags] if isinstance(tags, str) else tags or [])

        return upload(target, checkpoint.contents, _code(checkpoint), write_card).commit


def _code(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the remote-code file of this version, which replaces the one in the folder."""
    return {REMOTE_CODE_FILE: remote_code_of(architecture_of(checkpoint.config))}
