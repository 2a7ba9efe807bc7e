"""When the Hub or the way to it fails: nothing half-done, the token nowhere, and a message that says how to go on."""

import re
import sys
from pathlib import Path

import huggingface_hub
import pytest
from typer.testing import CliRunner

from hf_posswap.commands import app
from hf_posswap.hub import HubError, Target, UploadError, push_folder
from hf_posswap.hub.patience import patience
from tests.hub.conftest import contains
from tests.hub.repositories import Fault
from tests.hub.server import OWNER, READER_TOKEN, TOKEN, HubServer

REPO = f"{OWNER}/gpt2-alibi"
PREUPLOAD, BATCH, PART = r"POST .*/preupload/", r"POST .*/objects/batch", r"PUT /lfs/part/"
VERIFY, COMMIT, CREATE, YAML = r"POST /lfs/verify", r"POST .*/commit/", r"POST /api/repos/create", r"POST /api/validate"

FAULTS = [
    (Fault(CREATE, 500), "the Hub has trouble (HTTP 500"),
    (Fault(CREATE, None), "cannot upload"),
    (Fault(YAML, 503), "the Hub has trouble (HTTP 503"),
    (Fault(PREUPLOAD, 429, headers={"Retry-After": "1"}), "wait for a few minutes (HTTP 429"),
    (Fault(BATCH, 500), "the Hub has trouble (HTTP 500"),
    (Fault(PART, 403), "write access to the repository's owner (HTTP 403"),
    (Fault(PART, None), "cannot upload"),
    (Fault(VERIFY, 404), "no such repository or owner"),
    (Fault(COMMIT, 500), "the Hub has trouble (HTTP 500"),
    (Fault(COMMIT, 429), "wait for a few minutes (HTTP 429"),
    (Fault(COMMIT, None), "cannot upload"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=lambda value: getattr(value, "pattern", ""))
def test_a_failed_upload_commits_nothing_and_the_next_one_goes_on(
    client: HubServer, swapped: Path, fault: Fault, message: str
) -> None:
    client.faults.append(fault)
    with pytest.raises(UploadError) as raised:
        push_folder(swapped, Target(REPO, again="hf-posswap push …"))
    text = str(raised.value)
    assert message in text
    assert text.endswith("To go on: hf-posswap push …")
    assert TOKEN not in text
    assert "X-Signature" not in text
    if fault.pattern == CREATE:
        assert "Nothing was sent." in text
        assert client.repositories == {}
    else:
        assert f"{REPO} is as it was before: nothing was committed." in text
        assert client.files(REPO) == {}
    client.faults.clear()
    client.requests.clear()
    push_folder(swapped, Target(REPO))
    assert "model.safetensors" in client.files(REPO)
    if fault.pattern in (VERIFY, COMMIT):
        assert not [request for request in client.requests if re.match(PART, request)], "sent again"


STALLS = [Fault(pattern, None, stalls=True) for pattern in (CREATE, YAML, PREUPLOAD, BATCH, PART, VERIFY, COMMIT)]


@pytest.mark.parametrize("fault", STALLS, ids=lambda fault: fault.pattern)
def test_a_connection_that_stalls_is_given_up_and_the_next_push_goes_on(
    client: HubServer, swapped: Path, fault: Fault
) -> None:
    client.faults.append(fault)
    with pytest.raises(UploadError) as raised:
        push_folder(swapped, Target(REPO, timeout=0.3, again="hf-posswap push …"))
    text = str(raised.value)
    assert text.startswith(f"cannot upload to '{REPO}': the connection to the Hub stood still for 0.3 seconds. ")
    assert text.endswith("To go on: hf-posswap push …")
    if fault.pattern == CREATE:
        assert "Nothing was sent." in text
    else:
        late = fault.pattern == COMMIT
        arrived = "model.safetensors arrived: not sent again." if late else "No weights arrived whole."
        assert f"{REPO} is as it was before: nothing was committed. {arrived}" in text
        assert client.files(REPO) == {}
    client.faults.clear()
    client.requests.clear()
    push_folder(swapped, Target(REPO))
    assert "model.safetensors" in client.files(REPO)
    if fault.pattern == COMMIT:
        assert not [request for request in client.requests if request.startswith("PUT")], "sent again"


def test_a_commit_whose_answer_stalls_is_told_from_a_failure(client: HubServer, swapped: Path) -> None:
    client.faults.append(Fault(COMMIT, None, after=True, stalls=True))
    with pytest.raises(UploadError, match="stood still for 0.3 seconds. .* has a new commit [0-9a-f]{40}"):
        push_folder(swapped, Target(REPO, timeout=0.3))
    assert "model.safetensors" in client.files(REPO)


def test_the_limit_holds_for_connections_made_anew_and_ends_with_the_push(client: HubServer, swapped: Path) -> None:
    """After a connection that cannot be opened, huggingface_hub makes a new client."""
    make, limits = huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY, huggingface_hub.get_session().timeout
    with patience(0.3):
        huggingface_hub.close_session()
        assert huggingface_hub.get_session().timeout.read == 0.3
    assert huggingface_hub.get_session().timeout == limits
    assert huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY is make


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_that_is_no_time_is_refused(client: HubServer, swapped: Path, timeout: float) -> None:
    with pytest.raises(HubError, match=f"the timeout is {timeout}; it must be a number of seconds above 0"):
        push_folder(swapped, Target(REPO, timeout=timeout))
    assert client.requests == []


def test_short_troubles_are_sat_out(client: HubServer, swapped: Path) -> None:
    client.faults += [Fault(PREUPLOAD, 429, times=2), Fault(BATCH, 503, times=1), Fault(PART, None, times=1)]
    push_folder(swapped, Target(REPO))
    assert "model.safetensors" in client.files(REPO)


def test_a_lost_answer_is_told_from_a_failure(client: HubServer, swapped: Path) -> None:
    client.faults.append(Fault(COMMIT, None, after=True))
    with pytest.raises(UploadError, match="has a new commit [0-9a-f]{40}: the upload may have arrived whole"):
        push_folder(swapped, Target(REPO))
    assert "model.safetensors" in client.files(REPO)


def test_a_hub_that_went_away_is_not_said_to_be_untouched(client: HubServer, swapped: Path) -> None:
    """It breaks the connection at the commit, and is not to be reached from then on."""
    client.faults.append(Fault(COMMIT, None, gone=True))
    with pytest.raises(UploadError, match="either what it held before or all of the upload, never a part"):
        push_folder(swapped, Target(REPO))
    assert client.files(REPO) == {}


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        ("hf_" + "wrong" * 7, REPO, "the Hub does not accept the token. Log in again with `hf auth login`"),
        (READER_TOKEN, REPO, "write access to the repository's owner (HTTP 403"),
        (TOKEN, "someone/else", "write access to the repository's owner (HTTP 403"),
    ],
)
def test_who_may_not_push_is_told_so(client: HubServer, swapped: Path, token: str, repo: str, message: str) -> None:
    with pytest.raises(UploadError) as raised:
        push_folder(swapped, Target(repo, token=token))
    assert message in str(raised.value)
    assert token not in str(raised.value)
    assert client.repositories == {}


def test_nobody_logged_in(client: HubServer, swapped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="not logged in to the Hub. Log in with `hf auth login`, or set HF_TOKEN"):
        push_folder(swapped, Target(REPO))
    assert client.requests == []


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "x y", "-x", "a--b", "x.git"])
def test_a_name_that_is_none_is_refused_before_anything_is_sent(client: HubServer, swapped: Path, name: str) -> None:
    with pytest.raises(HubError, match="is no name on the Hub. Write owner/name"):
        push_folder(swapped, Target(name))
    assert client.requests == []


def test_the_command_says_how_to_go_on(
    client: HubServer, swapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["push", str(swapped), REPO, "--private"]
    monkeypatch.setattr(sys, "argv", ["hf-posswap", *arguments])
    client.faults.append(Fault(COMMIT, None, stalls=True))
    arguments += ["--timeout", "0.3"]
    monkeypatch.setattr(sys, "argv", ["hf-posswap", *arguments])
    failed = CliRunner().invoke(app, arguments)
    assert failed.exit_code == 1
    assert f"the same command again: hf-posswap push {swapped} {REPO} --private --timeout 0.3" in failed.stderr
    assert "stood still for 0.3 seconds" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert TOKEN not in failed.output
    client.faults.clear()
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert CliRunner().invoke(app, ["push", str(tmp_path), REPO]).exit_code == 2
    assert contains(tmp_path, TOKEN) == []
