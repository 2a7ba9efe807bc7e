"""Putting text between two marks of a page, so that what is generated and what is written live in one file."""

from hf_posswap.reporting.figures import Table

MARKS = "<!-- {} {}: written by docs/{} -->"


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    lines = [table.columns, ("---",) * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def between(page: str, name: str, text: str, script: str) -> str:
    """Return a page with a text in the place of what stands between the marks of a name.

    Args:
        page: what the page says now.
        name: of the marks, unique in the page.
        text: what is to stand between them.
        script: file name of the script that writes it; it is named in the marks.

    Raises:
        ValueError: the page has no such marks.
    """
    start, end = MARKS.format("start", name, script), MARKS.format("end", name, script)
    before, began, rest = page.partition(start)
    _, ended, after = rest.partition(end)
    if not (began and ended):
        raise ValueError(f"the page has no {start!r} with its end")
    return f"{before}{start}\n\n{text.rstrip()}\n\n{end}{after}"
