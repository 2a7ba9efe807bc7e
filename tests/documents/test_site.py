"""The documentation site: built without a warning, complete, and in need of nothing from the network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents.blocks import ROOT

_LOADED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]+src="(https?:)?//|<link[^>]+href="https?://|url\(["']?(https?:)?//"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_every_page_of_the_docs_is_in_the_navigation(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    pages += ["CONTRIBUTING.html", "examples/from-pretrained-to-published.html"]
    missing = [page for page in pages if f'href="{page}"' not in home]
    assert missing == []


@pytest.mark.slow
def test_pages_load_nothing_from_the_network(site: Path) -> None:
    found = {
        f"{path.relative_to(site)}: {match[0]}"
        for path in [*site.rglob("*.html"), *site.rglob("*.css")]
        for match in _LOADED.finditer(path.read_text(encoding="utf-8"))
    }
    assert found == set()


@pytest.mark.slow
def test_links_lead_to_files_that_are_there(site: Path) -> None:
    broken = []
    for page in site.rglob("*.html"):
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text(encoding="utf-8")):
            if ":" in target or page.name == "404.html":
                continue
            path = (page.parent / target).resolve()
            if not (path.is_file() or (path / "index.html").is_file()):
                broken.append(f"{page.relative_to(site)} → {target}")
    assert broken == []


@pytest.mark.slow
def test_the_reference_documents_what_it_names(site: Path) -> None:
    reference = (site / "reference.html").read_text(encoding="utf-8")
    names = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) > 20
    for name in names:
        assert f'id="{name}' in reference, name
