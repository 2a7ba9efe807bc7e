"""`hf-posswap export`: a swapped model as a stock checkpoint that loads without hf_posswap."""

from pathlib import Path
from typing import Annotated

import typer

from hf_posswap.commands.console import JsonOption, note, print_json
from hf_posswap.commands.models import load_swapped


def export(
    model: Annotated[str, typer.Argument(metavar="DIR", help="A folder or Hub name of a swapped model.")],
    output_dir: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder for the stock checkpoint.")],
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Longest text that the stock model shall read. Where a formula without a limit becomes a table, "
            "the default is four times the train length.",
            min=1,
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a swapped model as a stock checkpoint with the same outputs, where stock transformers has an equivalent."""
    loaded = load_swapped(model, None, "auto")
    from hf_posswap.errors import SourceError
    from hf_posswap.export import export_native
    from hf_posswap.sources import load_tokenizer
    from hf_posswap.swapped.tokenizers import STOCK_LIMIT

    result = export_native(loaded, output_dir, max_length)
    try:
        tokenizer = load_tokenizer(model)
    except SourceError as error:
        note(f"No tokenizer was saved: {error}")
    else:
        tokenizer.init_kwargs.pop(STOCK_LIMIT, None)
        tokenizer.model_max_length = result.max_length
        tokenizer.save_pretrained(output_dir)
    if as_json:
        print_json(result.to_dict())
        return
    typer.echo(str(result))
    typer.echo(f"\nSaved to {output_dir}:")
    for path in sorted(output_dir.iterdir()):
        typer.echo(f"  {path}")
