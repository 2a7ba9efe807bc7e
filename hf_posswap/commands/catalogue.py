"""`hf-posswap schemes` and `hf-posswap matrix`: what there is, generated from what the code declares."""

import dataclasses
from typing import Any

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


def matrix(as_json: JsonOption = False) -> None:
    """Show which scheme works in which architecture, and why not where it does not."""
    import hf_posswap

    cells = hf_posswap.capabilities()
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


def _scheme_entry(name: str) -> dict[str, Any]:
    """Return everything a scheme declares about itself, JSON-ready."""
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
