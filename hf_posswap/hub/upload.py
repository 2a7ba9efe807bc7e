"""Upload to the Hub in one commit, so that either all files arrive or none; an error says which and how to continue.

All requests go through huggingface_hub, so its settings apply: `hf auth login`, HF_TOKEN, HF_ENDPOINT, proxies, Xet.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from hf_posswap.hub.card import MARK
from hf_posswap.hub.errors import HubError, UploadError
from hf_posswap.hub.folder import ADAPTER_WEIGHTS, CARD_FILE, INDEX_FILE, WEIGHTS, Contents
from hf_posswap.hub.patience import patience
from hf_posswap.loading.origin import is_repo_id, license_in

_QUERY = re.compile(r"(https?://[^\s'\"?]+)\?[^\s'\"]+")
"""Pattern of a web address with a query, which may contain a signature."""
ADVICE = {
    401: "the Hub does not accept the token. Log in again with `hf auth login`, or set HF_TOKEN to a valid token",
    403: "the token may not do this. Take one with write access to the repository's owner",
    404: "the Hub has no such repository or owner, or the token may not see it. Check the name",
    409: "someone else changed the repository at the same time",
    413: "a file is too large for the Hub. Save the model with a smaller max_shard_size",
    429: "too many requests; the Hub wants you to wait for a few minutes",
}
"""Explanations of HTTP status codes of the Hub, for error messages."""


PATIENCE = 60.0
"""Timeout in seconds for an answer of the Hub, and for the network to accept the next bytes."""
TEMPLATE_TITLE, TEMPLATE_GAP, MOST_GAPS_FILLED = "# Model Card for Model ID", "[More Information Needed]", 10
"""Text in the card template that peft and transformers save, which has about 30 gaps."""
TRAINER_MARK = "This model card has been generated automatically according to the information the Trainer had access to"
"""Beginning of a comment in the cards of transformers' Trainer, which asks whoever completes the card to remove it."""


@dataclass(frozen=True)
class Target:
    """The repository and the options of an upload.

    Attributes:
        repo_id: "owner/name", or "name" for a repository of the token's owner.
        private: make a new repository private; None: by the owner's settings.
        token: access token; None: the one of `hf auth login` or HF_TOKEN.
        revision: branch; None: main.
        create_pr: open a pull request instead of committing to the branch.
        message: first line of the commit's message.
        description: the rest of the commit's message.
        again: instruction, such as a command, with which to continue after an error.
        timeout: seconds without progress after which a connection counts as broken.
    """

    repo_id: str
    private: bool | None = None
    token: str | bool | None = None
    revision: str | None = None
    create_pr: bool = False
    message: str = "Upload a model swapped by hf_posswap"
    description: str | None = None
    again: str = "push again"
    timeout: float = PATIENCE


@dataclass(frozen=True)
class Upload:
    """The result of an upload.

    Attributes:
        repo_id: full name of the repository.
        commit: huggingface_hub's commit information.
        files: paths in the repository.
        left: names in the folder that were not uploaded.
        card: "written" from facts, or "kept" if a person wrote the card in the folder or in the repository.
    """

    repo_id: str
    commit: Any
    files: tuple[str, ...]
    left: tuple[str, ...]
    card: str


def require_repo_name(name: str) -> None:
    """Refuse an invalid name of a repository on the Hub.

    Raises:
        HubError: the name is invalid.
    """
    if not is_repo_id(name):
        raise HubError(f"{name!r} is no name on the Hub. Write owner/name.")


def require_login(target: Target) -> None:
    """Refuse to start without a name and a token.

    Raises:
        HubError: the name is invalid, nobody is logged in, or the timeout is not a positive number.
    """
    require_repo_name(target.repo_id)
    if not 0 < target.timeout < math.inf:
        raise HubError(f"the timeout is {target.timeout}; it must be a number of seconds above 0, such as {PATIENCE}.")
    if target.token in (None, True) and get_token() is None:
        raise HubError("you are not logged in to the Hub. Log in with `hf auth login`, or set HF_TOKEN.")


def upload(
    target: Target, contents: Contents, made: Mapping[str, str], write_card: Callable[[str], ModelCard]
) -> Upload:
    """Upload files of a folder and a card in one commit.

    Args:
        target: repository and options of the upload.
        contents: the checked files.
        made: texts of generated files by their paths; they replace files of the folder.
        write_card: function that makes the card from the repository's full name; not called if a person wrote one.

    Raises:
        HubError: nobody is logged in.
        UploadError: the Hub or the connection to it failed; the message gives the repository's present state and how to
            continue.
    """
    require_login(target)
    api = HfApi(token=target.token)
    state = _State(target, api)
    with patience(target.timeout), state.explained():
        state.repo_id = api.create_repo(target.repo_id, private=target.private, exist_ok=True).repo_id
        if target.revision is not None and not target.revision.startswith("refs/pr"):
            api.create_branch(state.repo_id, branch=target.revision, exist_ok=True)
        state.head = _head(api, state.repo_id, target.revision)
        there = set(api.list_repo_files(state.repo_id, revision=target.revision)) if state.head else set()
        card = _card(contents.folder, state, there, write_card)
        if card is not None and card.text.startswith("---"):
            ModelCard(card.text).validate()  # the Hub validates it, before anything large is sent
        texts = dict(made) | ({} if card is None else {CARD_FILE: card.text})
        files = [name for name in contents.files if name not in texts]
        uploaded = [*files, *texts]
        operations: list[Any] = [CommitOperationAdd(name, contents.folder / name) for name in files]
        for addition in [operation for operation in operations if operation.path_in_repo.endswith(".safetensors")]:
            # Upload one by one, so that an error can name the files that arrived; the commit does not send them again.
            api.preupload_lfs_files(state.repo_id, [addition], revision=target.revision, create_pr=target.create_pr)
            state.arrived.append(addition.path_in_repo)
        operations += [CommitOperationAdd(name, text.encode()) for name, text in texts.items()]
        operations += [CommitOperationDelete(name) for name in sorted(there) if _outdated(name, uploaded)]
        commit = api.create_commit(
            state.repo_id,
            operations,
            commit_message=target.message,
            commit_description=target.description,
            revision=target.revision,
            create_pr=target.create_pr,
        )
    written = card is not None and card.ours
    return Upload(state.repo_id, commit, tuple(uploaded), contents.left, "written" if written else "kept")


@dataclass(frozen=True)
class _Card:
    text: str
    ours: bool


def _card(folder: Path, state: "_State", there: set[str], write_card: Callable[[str], ModelCard]) -> _Card | None:
    """Return the card to upload; None if a person's card stays in the repository."""
    own = folder / CARD_FILE
    if own.is_file() and is_handwritten(own.read_text(encoding="utf-8", errors="replace")):
        return _Card(own.read_text(encoding="utf-8", errors="replace"), ours=False)
    if CARD_FILE in there:
        path = state.api.hf_hub_download(state.repo_id, CARD_FILE, revision=state.target.revision)
        if is_handwritten(Path(path).read_text(encoding="utf-8", errors="replace")):
            return None
    return _Card(str(write_card(state.repo_id)), ours=True)


def is_handwritten(card: str) -> bool:
    """Return whether a person wrote a card: it has text, and neither hf_posswap nor a template made it."""
    body = re.sub(r"\A\s*---\r?\n.*?\r?\n---[ \t]*(\r?\n|\Z)", "", card, count=1, flags=re.DOTALL)
    unfilled = TEMPLATE_TITLE in body and body.count(TEMPLATE_GAP) >= MOST_GAPS_FILLED
    return bool(body.strip()) and MARK not in body and TRAINER_MARK not in body and not unfilled


def _outdated(name: str, uploaded: list[str]) -> bool:
    """Return whether a file of the repository holds weights of an earlier upload, which transformers might load."""
    is_weights = WEIGHTS.fullmatch(name) or name in (INDEX_FILE, ADAPTER_WEIGHTS)
    return bool(is_weights) and name not in uploaded


class _State:
    """The progress of an upload, for error messages."""

    def __init__(self, target: Target, api: HfApi) -> None:
        self.target, self.api = target, api
        self.repo_id = ""
        self.head: str | None = None
        self.arrived: list[str] = []

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn errors within a `with` block into an `UploadError` that says how to continue."""
        try:
            yield
        except (HubError, UploadError):
            raise
        except Exception as error:  # by version, huggingface_hub raises HTTP, transport, OS or its own errors
            raise UploadError(f"{self._what(error)}. {self._where()} To go on: {self.target.again}") from error

    def _what(self, error: Exception) -> str:
        if _stood_still(error):
            return (
                f"cannot upload to {self.target.repo_id!r}: the connection to the Hub stood still for "
                f"{self.target.timeout:g} seconds"
            )
        status = next((status for status in map(_status, _chain(error)) if status is not None), None)
        ends = (" ".join(str(end).split()).rstrip(".") for end in (error, _chain(error)[-1]))
        said = self._redacted("; ".join(dict.fromkeys(filter(None, ends))))
        if status is None:
            return f"cannot upload to {self.target.repo_id!r}: {said or type(error).__name__}"
        advice = ADVICE.get(status, "the Hub has trouble" if status >= 500 else "the Hub refuses this")
        return f"cannot upload to {self.target.repo_id!r}: {advice} (HTTP {status}: {said})"

    def _redacted(self, text: str) -> str:
        token = self.target.token if isinstance(self.target.token, str) else get_token()
        text = _QUERY.sub(r"\1", text)
        return text.replace(token, "…") if token else text

    def _where(self) -> str:
        """Return a sentence on the present state of the repository."""
        if not self.repo_id:
            return "Nothing was sent."
        try:
            now = _head(self.api, self.repo_id, self.target.revision)
        except Exception:  # without a connection to the Hub, the repository's state is unknown
            return (
                f"{self.repo_id} holds either what it held before or all of the upload, never a part; which of the "
                f"two is unknown. Weights that arrived: {', '.join(self.arrived) or 'none'}."
            )
        if now != self.head:
            return f"{self.repo_id} has a new commit {now}: the upload may have arrived whole and its answer been lost."
        arrived = f"{', '.join(self.arrived)} arrived: not sent again." if self.arrived else "No weights arrived whole."
        return f"{self.repo_id} is as it was before: nothing was committed. {arrived}"


def _head(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    """Return the commit at the head of a branch; None for a repository without commits."""
    try:
        return api.model_info(repo_id, revision=revision).sha
    except RevisionNotFoundError:
        return None


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and those that caused it, the first cause last."""
    errors = [error]
    while (cause := errors[-1].__cause__) is not None and cause not in errors:
        errors.append(cause)
    return errors


def _stood_still(error: BaseException | None) -> bool:
    """Return whether a connection that timed out is among the causes of an error."""
    return error is not None and (isinstance(error, TimeoutError) or _stood_still(error.__cause__ or error.__context__))


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def fetched_license(name: str, revision: str | None) -> str | None:
    """Return the licence on a Hub model's card, requested from the Hub; None if there is no card or no answer."""
    try:
        path = HfApi().hf_hub_download(name, CARD_FILE, revision=revision)
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None
    return license_in(Path(path))
