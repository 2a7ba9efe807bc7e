"""`hf-posswap schemes` and `hf-posswap matrix`: the schemes and the capability table, generated from the registries."""

import dataclasses
from typing import Annotated, Any

import typer

from hf_posswap.commands.console import JsonOption, print_json, print_table


def schemes(as_json: JsonOption = False) -> None:
    """List the positional schemes with their options and papers."""
    from hf_posswap.schemes import list_schemes

    entries = [_scheme_entry(name) for name in list_schemes()]
    if as_json:
        print_json(entries)
        return
    rows = [
        (entry["name"], entry["summary"], ", ".join(option["name"] for option in entry["options"]), entry["paper_url"])
        for entry in entries
    ]
    print_table("Positional schemes", ("name", "summary", "options", "paper"), rows)


def matrix(
    families: Annotated[
        bool, typer.Option("--families", help="Show every model type of transformers instead of the core families.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show which scheme works in which architecture, and why not where it does not."""
    from hf_posswap.swapped.capabilities import capabilities

    if families:
        _show_families(as_json)
        return
    cells = capabilities()
    if as_json:
        print_json([dataclasses.asdict(cell) for cell in cells])
        return
    columns = list(dict.fromkeys((cell.architecture, cell.mode) for cell in cells))
    supported = {(cell.scheme, cell.architecture, cell.mode): cell.supported for cell in cells}
    rows = [
        (scheme, *("yes" if supported[scheme, *column] else "no" for column in columns))
        for scheme in dict.fromkeys(cell.scheme for cell in cells)
    ]
    headings = ("scheme", *(f"{architecture} {mode}" for architecture, mode in columns))
    print_table("Schemes by architecture", headings, rows)
    refused = [
        (cell.scheme, f"{cell.architecture} {cell.mode}", cell.reason or "") for cell in cells if not cell.supported
    ]
    if refused:
        print_table("Why not", ("scheme", "architecture", "reason"), refused)


def _show_families(as_json: bool) -> None:
    """Print every model type of transformers with its native mechanism, or the reason why it is not supported."""
    from hf_posswap.swapped.capabilities import families

    found = families()
    if as_json:
        print_json([dataclasses.asdict(family) for family in found])
        return
    supported = [family for family in found if family.supported]
    rows = [(family.model_type, family.mode, family.native or "", family.reason or "") for family in supported]
    print_table("Model types that take schemes", ("model type", "mode", "own mechanism", "but"), rows)
    refused = [(family.model_type, family.mode, family.reason or "") for family in found if not family.supported]
    print_table("Model types that do not", ("model type", "mode", "reason"), refused)
    count = len({family.model_type for family in supported})
    typer.echo(f"{count} model types take schemes; {len(found)} causal and masked language models were tried.")


def _scheme_entry(name: str) -> dict[str, Any]:
    """Return all declared facts of a scheme, JSON-ready."""
    from hf_posswap.schemes import scheme_class

    scheme = scheme_class(name)
    return {
        "name": scheme.name,
        "pretty_name": scheme.pretty_name,
        "summary": scheme.summary,
        "formula": scheme.formula,
        "paper": scheme.paper,
        "paper_url": scheme.paper_url,
        "options": [
            {"name": field.name, "default": field.default, "help": field.metadata.get("help", "")}
            for field in dataclasses.fields(scheme.config_class)
        ],
    }
