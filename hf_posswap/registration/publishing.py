"""Giving swapped models their way to the Hub: their classes lie below the hub package, and cannot import it."""

from typing import Any

from hf_posswap.modeling import SwappedModel


def register_publishing() -> None:
    """Let `push_to_hub` of swapped models upload by `hf_posswap.hub.push_model`, imported when it is called."""
    SwappedModel.pos_publish = staticmethod(_push_model)


def _push_model(model: Any, repo_id: str, **kwargs: Any) -> Any:
    from hf_posswap.hub import push_model  # slow to import

    return push_model(model, repo_id, **kwargs)
