"""The committed outputs of the examples: there for every example, made as they say, and without an error."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.documents.blocks import ROOT
from tests.documents.printed import assert_printed
from tests.training import processes

EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "from-pretrained-to-published.ipynb"
SMALL = {
    "tokens=16_384": "tokens=1024",
    "windows=8": "windows=1",
    "16 * 256": "2 * 256",
    "16, 256": "2, 256",
    "(256, 1024, 2048)": "(256, 300, 512)",
    '.glob("*.txt"))]': '.glob("w*.txt"))]',
    'ROOT / "outputs"': "Path(OUTPUTS)",
}
"""The notebook in seconds."""


@pytest.fixture(scope="module")
def recorder() -> ModuleType:
    specification = importlib.util.spec_from_file_location("record_examples", ROOT / "docs" / "record_examples.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_example_has_a_recorded_output_and_the_command_that_made_it(recorder: ModuleType) -> None:
    assert set(recorder.OPTIONS) == {path.name for path in EXAMPLES.glob("*.py")}
    assert set(recorder.NOTEBOOKS) == {path.name for path in EXAMPLES.glob("*.ipynb")}
    for script in recorder.OPTIONS:
        first, blank, *printed = (EXAMPLES / "outputs" / f"{script}.txt").read_text(encoding="utf-8").splitlines()
        assert (first, blank) == (f"$ {recorder.command_of(script)}", "")
        assert len(printed) > 3


@pytest.mark.slow
def test_a_script_prints_what_was_recorded(recorder: ModuleType) -> None:
    recorded = (EXAMPLES / "outputs" / "swap.py.txt").read_text(encoding="utf-8").split("\n", 1)[1]
    assert_printed(processes.succeeded([], sys.executable, str(EXAMPLES / "swap.py")).stdout, recorded)


def test_the_notebook_was_run_to_its_end_in_order() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert str(Path.home()) not in NOTEBOOK.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(ROOT)
    namespace = {"OUTPUTS": str(tmp_path)}
    for index, cell in enumerate(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        for amount, small in SMALL.items():
            source = source.replace(amount, small)
        exec(compile(source, f"{NOTEBOOK.name}[{index}]", "exec"), namespace)
    assert namespace["same"] is True
    assert list(tmp_path.rglob("model.safetensors"))
