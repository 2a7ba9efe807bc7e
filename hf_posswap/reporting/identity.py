"""What must be the same for work to go on from what an interrupted run left."""

import json
from collections.abc import Mapping
from typing import Any


def first_difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the name and both values of the first entry that differs, or None if all are the same.

    Args:
        saved: as it was read from a JSON file.
        now: JSON-ready; mappings inside are compared entry by entry.
    """
    wanted = json.loads(json.dumps(now))
    for key in sorted(set(saved) | set(wanted)):
        before, after = saved.get(key), wanted.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            inner = first_difference(before, after)
            if inner is not None:
                return inner
        elif before != after:
            return key, before, after
    return None
