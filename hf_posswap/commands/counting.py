"""A progress bar over things that are counted, such as the layers of a model, on stderr."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from hf_posswap.commands.console import note


@contextlib.contextmanager
def count_progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total): a bar in a terminal, a line each quarter elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: note(f"{what}: {unit} {done} of {total}") if done % max(1, total // 4) == 0 else None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
