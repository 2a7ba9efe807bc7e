"""`hf-posswap describe`, `inspect` and `swap`: commands that report on one model or swap and save it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_posswap.commands.console import JsonOption, ModelArgument, note, print_json, quiet_libraries
from hf_posswap.commands.generated import takes
from hf_posswap.common.options import REQUIRED
from hf_posswap.loading.settings import SwapSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@takes(SwapSettings, "given", only=("model", "pos_scheme"), arguments=("model",))
def describe(*, given: dict[str, Any], as_json: JsonOption = False) -> None:
    """Report what a model's positional mechanism is, or what swapping in SCHEME would do to it."""
    quiet_libraries()
    from hf_posswap.swapped.description import describe

    settings = SwapSettings(**given)
    report = describe(load_swapped(settings.model, settings.pos_scheme, "float32"))
    if as_json:
        print_json(report.to_dict())
    else:
        typer.echo(str(report))


def inspect(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Find by experiment what positions a model really uses, in every layer, and whether its config says so."""
    quiet_libraries()
    from hf_posswap.sources import load_model
    from hf_posswap.swapped.inspection import inspect

    found = inspect(load_model(model, supported_only=False))
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(str(found))


@takes(SwapSettings, "given", arguments=("model",), defaults={"pos_scheme": REQUIRED})
def swap(
    *,
    given: dict[str, Any],
    output_dir: Annotated[Path, typer.Option("--output-dir", metavar="DIR", help="Where to save the swapped model.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Save into a folder that is not empty.")] = False,
) -> None:
    """Swap a model's positional mechanism and save it, with its tokenizer, as a checkpoint."""
    settings = SwapSettings(**given)
    check_output(output_dir, overwrite)
    quiet_libraries()
    from hf_posswap.swapped.description import describe

    swapped = load_swapped(settings.model, settings.pos_scheme, settings.dtype)
    description = describe(swapped)
    typer.echo(str(description))
    save(swapped, settings.model, output_dir, {"swap.json": {"kind": "swap", "description": description.to_dict()}})


def check_output(output_dir: Path, overwrite: bool, adapter: bool = False) -> None:
    """Refuse, before anything is loaded, a folder that is not empty.

    Args:
        output_dir: folder in which a model will be saved.
        overwrite: whether the folder may have contents.
        adapter: whether an adapter will be saved instead of a whole model. A folder with the other kind is refused even
            with `overwrite`.

    Raises:
        OutputError: it is not empty, or cannot be written to.
    """
    from hf_posswap.results.files import OutputError
    from hf_posswap.training.folders import require_no_other_kind

    require_no_other_kind(output_dir, adapter)
    if output_dir.is_dir() and any(output_dir.iterdir()) and not overwrite:
        raise OutputError(f"{str(output_dir)!r} is not empty. Give a new folder, or --overwrite to save into this one.")


def save(swapped: "PreTrainedModel", source: str, output_dir: Path, records: dict[str, dict[str, Any]]) -> None:
    """Save a swapped model with the tokenizer of the model that it was made from, and print the files' names.

    Args:
        swapped: the model.
        source: name of the model that it was made from.
        output_dir: the folder.
        records: records of the work, by the names of their JSON files; the environment is added to each.
    """
    from hf_posswap.errors import SourceError
    from hf_posswap.results.environment import collect_environment
    from hf_posswap.results.files import prepare_folder, write_text
    from hf_posswap.results.records import remove_records
    from hf_posswap.results.writing import to_json
    from hf_posswap.sources import load_tokenizer
    from hf_posswap.swapped.tokenizers import fit_tokenizer

    prepare_folder(output_dir)
    remove_records(output_dir)
    swapped.save_pretrained(output_dir)
    known = {"format_version": 1, "model": source, "pos_scheme": swapped.config.pos_scheme}
    for name, record in records.items():
        content = known | record | {"environment": collect_environment()}
        write_text(output_dir / name, to_json(content))
    try:
        fit_tokenizer(load_tokenizer(source), swapped).save_pretrained(output_dir)
    except SourceError as error:
        note(f"No tokenizer was saved: {error}")
    typer.echo(f"\nSaved to {output_dir}:")
    for path in sorted(output_dir.iterdir()):
        typer.echo(f"  {path}")


def load_swapped(model: str, pos_scheme: str | None, dtype: str) -> "PreTrainedModel":
    """Load a model and swap it if a scheme is given; both are checked before the weights are loaded.

    The scheme "native" gives a checkpoint the relative tables that transformers does not load.

    Raises:
        AlreadySwappedError: a scheme is given for a model that is already swapped.
        PosSwapError: an unknown scheme, or a model that cannot be loaded.
    """
    quiet_libraries()
    from hf_posswap.auto import NATIVE
    from hf_posswap.errors import AlreadySwappedError
    from hf_posswap.schemes import parse_scheme
    from hf_posswap.sources import load_config, load_model
    from hf_posswap.swapping import swap

    scheme = None if pos_scheme in (None, NATIVE) else parse_scheme(pos_scheme)
    config = load_config(model)
    entry = getattr(config, "pos_scheme", None)
    if pos_scheme is not None and entry is not None:
        raise AlreadySwappedError(
            f"model {model!r} is swapped already ({entry['name']!r}). Give the model it was made from."
        )
    own_tables: dict[str, Any] = {"pos_scheme": NATIVE, "supported_only": False} if pos_scheme == NATIVE else {}
    loaded = load_model(model, config=config, dtype=dtype, **own_tables)
    if scheme is not None:
        swap(loaded, scheme)
    return loaded
