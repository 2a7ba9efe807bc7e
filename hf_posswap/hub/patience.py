"""Timeout for the Hub: by default huggingface_hub's client waits forever on a stalled connection."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import get_session
from huggingface_hub.utils import _http

FACTORY = "_GLOBAL_CLIENT_FACTORY"
"""Attribute of huggingface_hub with its client factory, which it calls again if a connection could not be opened."""


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Within a `with` block, make requests of huggingface_hub fail after this many seconds without progress.

    Slow transfers continue. huggingface_hub retries uploads a few times. Xet, which it uses for large files if the Hub
    offers that storage, has its own timeouts.
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
