"""A progress bar over the layers of a model, on stderr."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from hf_posswap.commands.console import note


@contextlib.contextmanager
def layer_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (layers done, layers): a bar in a terminal, a line each quarter elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: note(f"{what}: layer {done} of {total}") if done % max(1, total // 4) == 0 else None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
