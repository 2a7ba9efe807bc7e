"""What the site needs beyond mkdocs: pages that live elsewhere in the repository, and a navigation that fits.

Pages link to each other as they lie in the repository, so that they can be read there too; here those links are turned
into the site's own.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
BROUGHT = ("CONTRIBUTING.md", "examples")
"""Files and folders outside of docs that the site has under the same path."""
SHOWN = (".md", ".py", ".yaml", ".txt", ".png", ".svg")
"""What is brought along from there; models and books are not."""
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?![a-z]+:|#|/)(?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


_unwritten: set[str] = set()
"""Pages that mkdocs.yml has a place for and nobody has written yet."""


def on_config(config: Any) -> Any:
    """Leave out of the navigation what is not written yet, and list every scheme's page."""
    _unwritten.clear()
    config.nav = [kept for item in config.nav if (kept := _present(item)) is not None]
    return config


def _present(item: Any) -> Any:
    if isinstance(item, str):
        return item if _written(item) else None
    ((title, value),) = item.items()
    if isinstance(value, str):
        return item if _written(value) else None
    entries = [kept for entry in value if (kept := _present(entry)) is not None]
    if title == "Schemes":
        entries += [{_title(page): f"schemes/{page.name}"} for page in sorted((ROOT / "docs" / "schemes").glob("*.md"))]
    return {title: entries}


def _written(page: str) -> bool:
    if not _source(page).exists():
        _unwritten.add(page)
    return page not in _unwritten


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").split(" (")[0]


def _source(page: str) -> Path:
    brought = page.split("/")[0] in BROUGHT
    if page.startswith("examples/") and not page.endswith("README.md"):
        return (ROOT / page).with_suffix(".ipynb")
    return ROOT / page if brought else ROOT / "docs" / page


def on_files(files: Any, config: Any) -> Any:
    """Bring in what lies outside of docs."""
    for name in BROUGHT:
        path = ROOT / name
        for source in [path] if path.is_file() else sorted(path.rglob("*")):
            relative = source.relative_to(ROOT)
            if source.suffix in SHOWN and "assets" not in relative.parts:
                files.append(File.generated(config, relative.as_posix(), abs_src_path=str(source)))
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        files.append(File.generated(config, f"examples/{notebook.stem}.md", content=notebook_page(notebook)))
    return files


def notebook_page(path: Path) -> str:
    """Return a notebook with its outputs as Markdown."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if picture:
                parts.append(f"![Figure](data:image/png;base64,{picture.strip()})")
            elif "text" in output:
                parts.append(f"````text\n{''.join(output['text']).rstrip()}\n````")
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links between files of the repository into links between pages.

    A link to a folder without a page becomes text, and so does one to a page that is not written yet.
    """
    place = page.file.src_uri
    here = place if place.split("/")[0] in BROUGHT else f"docs/{place}"

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), match["path"]))
        target = re.sub(r"\.ipynb$", ".md", target)
        if target == "README.md":
            target = "docs/index.md"
        known = target.removeprefix("docs/")
        if not (target.startswith("docs/") or known.split("/")[0] in BROUGHT):
            return match[0]
        if known in _unwritten:
            return match["text"]
        if (ROOT / target).is_dir():
            known = f"{known}/README.md"
            if files.get_file_from_path(known) is None:
                return match["text"]
        path = posixpath.relpath(known, posixpath.dirname(place) or ".")
        return f"[{match['text']}]({path}{match['anchor'] or ''})"

    return _LINK.sub(moved, markdown)
