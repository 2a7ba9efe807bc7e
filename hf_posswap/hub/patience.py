"""How long to wait for the Hub: huggingface_hub's client by default waits without end on a connection that stalls."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import get_session
from huggingface_hub.utils import _http

FACTORY = "_GLOBAL_CLIENT_FACTORY"
"""Where huggingface_hub keeps what makes its client; it makes another one when a connection could not be opened."""


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Within a `with` block, let requests of huggingface_hub fail that stand still for so long.

    What moves, however slowly, goes on. huggingface_hub tries uploads again a few times. Xet, by which it uploads large
    files where the Hub has that storage, has limits of its own.
    """
    client, make = get_session(), getattr(_http, FACTORY)
    before = client.timeout
    client.timeout = seconds
    setattr(_http, FACTORY, _limited(make, seconds))
    try:
        yield
    finally:
        setattr(_http, FACTORY, make)
        now = get_session()
        now.timeout = before


def _limited(make: Callable[[], Any], seconds: float) -> Callable[[], Any]:
    def factory() -> Any:
        client = make()
        client.timeout = seconds
        return client

    return factory
