"""Names and titles of figures."""

import re
from pathlib import PurePath

from hf_posswap.results.groups import Group

STAGE_WORDS = {"swapped": "swapped in, untrained", "calibrated": "calibrated", "healed": "healed"}
"""A stage as it is said of the schemes of a figure."""
PROTOCOL_TITLES = {
    "windows": "Non-overlapping windows",
    "same-targets": "Same target tokens, ever longer context",
    "masked": "Same masked tokens at every length",
    "agreement": "Mean cosine of text embeddings",
}


def slug(*parts: str) -> str:
    """Return a name for files and links: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-") or "figure"


def model_name(group: Group) -> str:
    """Return the group's model as titles say it: the last part of a path, with its texts if others share the model."""
    name = PurePath(group.model).name if group.model.startswith(("/", ".")) else group.model
    apart = " ".join(filter(None, (name, told_apart(group))))
    return apart or "the model"


def told_apart(group: Group) -> str:
    """Return what tells a group from others of its family and model: its texts, or its first file; nothing if alone."""
    if group.apart_by == "nothing":
        return ""
    texts = dict.fromkeys(str(text.get("name", "?")) for file in group.files for text in file.texts)
    if texts and group.apart_by == "texts":
        return f"on {', '.join(texts)}"
    return f"in {group.files[0].path}"


def variant(group: Group, stage: str) -> str:
    """Return what tells a group's figure in one stage from others with its heading."""
    return ", ".join(filter(None, (stage, told_apart(group))))


def staged(title: str, stage: str) -> str:
    """Return a title that says what was done to the schemes."""
    return f"{title}, schemes {STAGE_WORDS.get(stage, stage)}" if stage else title
