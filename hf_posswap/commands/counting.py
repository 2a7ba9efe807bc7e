"""A progress bar on stderr for countable items, such as the layers of a model."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from hf_posswap.commands.console import note


@contextlib.contextmanager
def count_progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total), which shows a bar in a terminal, otherwise a line at each quarter."""
    if not sys.stderr.isatty():
        yield lambda done, total: note(f"{what}: {unit} {done} of {total}") if done % max(1, total // 4) == 0 else None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
