"""`hf-posswap push` and `hf-posswap card`: publish a swapped checkpoint or an adapter on the Hub, or print its card."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_posswap.commands.console import JsonOption, interruptible, note, print_json

if TYPE_CHECKING:
    from hf_posswap.hub import Upload

UPLOAD_FAILED = 1
"""Exit code if the Hub or the connection to it failed."""

FolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="A folder that `hf-posswap swap`, `calibrate` or `finetune` wrote.")
]
AdapterOption = Annotated[bool, typer.Option("--adapter", help="Refuse DIR if it holds a whole model, no adapter.")]
BaseModelOption = Annotated[
    str | None,
    typer.Option("--base-model", metavar="NAME", help="The base model's name on the Hub, if DIR does not state it."),
]
LicenseOption = Annotated[
    str | None,
    typer.Option("--license", metavar="ID", help="Licence, such as apache-2.0. Default: the base model's, if known."),
]


def push(
    folder: FolderArgument,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name; created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    adapter: AdapterOption = False,
    base_model: BaseModelOption = None,
    license: LicenseOption = None,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch; created if it does not exist.")
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time without data after which a connection counts as broken.")
    ] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Upload a swapped model to the Hub in one commit, with a model card written from the facts.

    The access token is that of `hf auth login`, or HF_TOKEN.
    """
    from huggingface_hub.utils import disable_progress_bars

    from hf_posswap.hub import Target, UploadError, push_adapter, push_folder
    from hf_posswap.sources import is_adapter

    if not sys.stderr.isatty():
        disable_progress_bars()
    again = f"the same command again: {shlex.join(['hf-posswap', *sys.argv[1:]])}"
    target = Target(repo, private or None, revision=revision, create_pr=create_pr, again=again, timeout=timeout)
    try:
        with interruptible(lambda: f"All arrives in one commit or nothing does. To go on: {again}"):
            publish = push_adapter if adapter or is_adapter(str(folder)) else push_folder
            done = publish(folder, target, base_model, license)
    except UploadError as error:
        typer.echo(f"hf-posswap: error: {error}", err=True)
        raise typer.Exit(UPLOAD_FAILED) from error
    _report(done, as_json)


def card(
    folder: FolderArgument,
    repo: Annotated[
        str | None, typer.Option(metavar="REPO", help="The model's repository, for the lines of the card that load it.")
    ] = None,
    adapter: AdapterOption = False,
    base_model: BaseModelOption = None,
    license: LicenseOption = None,
    write: Annotated[bool, typer.Option("--write", help="Write it to DIR/README.md instead of printing it.")] = False,
) -> None:
    """Print the model card that `push` would upload, or write it. Does not use the network."""
    from hf_posswap.hub import adapter_card_of, card_of
    from hf_posswap.sources import is_adapter

    write_card = adapter_card_of if adapter or is_adapter(str(folder)) else card_of
    made = str(write_card(folder, repo, base_model, license))
    if not write:
        typer.echo(made, nl=False)
        return
    from hf_posswap.hub.errors import HubError
    from hf_posswap.hub.upload import is_handwritten
    from hf_posswap.results.files import write_text

    path = folder / "README.md"
    if path.is_symlink() or (path.exists() and is_handwritten(path.read_text(encoding="utf-8", errors="replace"))):
        raise HubError(f"{str(path)!r} was not written by hf_posswap, so it stays as it is. Move it, then write again.")
    write_text(path, made)
    typer.echo(f"Wrote {path}.")


def _report(done: "Upload", as_json: bool) -> None:
    url = done.commit.pr_url or done.commit.commit_url
    if as_json:
        facts = {"repo": done.repo_id, "commit": done.commit.oid, "url": url}
        print_json(facts | {"card": done.card, "files": done.files, "left": done.left})
        return
    typer.echo(f"Uploaded to {done.repo_id}:")
    for name in done.files:
        typer.echo(f"  {name}")
    if done.card == "kept":
        note("The model card is one that hf_posswap has not written; it stays as it is.")
    if done.left:
        note(f"Not uploaded, since no model needs it: {', '.join(done.left)}.")
    typer.echo(url)
