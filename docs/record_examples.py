"""Run the examples and record what they print: `make examples` (some minutes on two cores).

Every script's output goes to examples/outputs, with the command at its head; the notebook is run in place. The amounts
are small, so that anyone can run them again; docs/healing.md has the numbers of full runs.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
OUTPUTS = EXAMPLES / "outputs"
SMALL = "--tokens 16384 --eval-tokens 2048"
OPTIONS = {
    "swap.py": "",
    "finetune_clm.py": SMALL,
    "finetune_mlm.py": SMALL,
    "finetune_embedding.py": SMALL,
    "finetune_with_trainer.py": SMALL,
}
"""What each script is run with."""
NOTEBOOKS = ("from-pretrained-to-published.ipynb",)


def command_of(script: str) -> str:
    """Return the command line of a script as a reader would type it."""
    options = OPTIONS[script]
    output = f" --output-dir outputs/examples/{script.removesuffix('.py')}" if options else ""
    return f"python examples/{script} {options}{output}".rstrip()


def record_script(script: str) -> None:
    """Run a script and write its command and what it printed."""
    command = command_of(script)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, *command.split()[1:]]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    OUTPUTS.mkdir(exist_ok=True)
    (OUTPUTS / f"{script}.txt").write_text(f"$ {command}\n\n{_plain(done.stdout)}", encoding="utf-8")


_TIMES = re.compile(r"'\w+_(?:runtime|per_second|time)': '[^']*', ")


def _plain(text: str) -> str:
    """Leave out this machine's paths and times, and trailing blanks."""
    text = _TIMES.sub("", text)
    return re.sub(r"[ \t]+$", "", text.replace(f"{ROOT}/", ""), flags=re.MULTILINE)


def record_notebook(name: str) -> None:
    """Run a notebook in place, and leave out what differs from run to run."""
    import nbformat
    from nbclient import NotebookClient

    path = EXAMPLES / name
    notebook = nbformat.read(path, as_version=4)
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(ROOT)}}).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "text" in output:
                    output["text"] = _plain(output["text"])
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)


def main() -> None:
    """Record all, or those named on the command line."""
    wanted = sys.argv[1:] or [*OPTIONS, *NOTEBOOKS]
    for name in wanted:
        print(f"running {name}", flush=True)
        (record_notebook if name in NOTEBOOKS else record_script)(name)


if __name__ == "__main__":
    main()
