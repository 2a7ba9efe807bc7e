"""Names and titles of figures."""

import re
from pathlib import PurePath

from hf_posswap.results.groups import Group
from hf_posswap.results.kinds import PROTOCOL_WORDS

STAGE_WORDS = {"swapped": "swapped in, untrained", "calibrated": "calibrated", "healed": "healed"}
"""Wording of each stage in titles."""


def protocol_title(protocol: str) -> str:
    """Return the title of a protocol's panel; a protocol that this version does not know has its name."""
    return PROTOCOL_WORDS[protocol].title if protocol in PROTOCOL_WORDS else protocol


def slug(*parts: str) -> str:
    """Return a name for files and links: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-") or "figure"


def model_name(group: Group) -> str:
    """Return the group's model for titles: the last part of its path, with the texts if other groups have the model."""
    name = PurePath(group.model).name if group.model.startswith(("/", ".")) else group.model
    apart = " ".join(filter(None, (name, told_apart(group))))
    return apart or "the model"


def told_apart(group: Group) -> str:
    """Return what distinguishes a group from others of its family and model: texts or first file; empty if alone."""
    if group.apart_by == "nothing":
        return ""
    texts = dict.fromkeys(str(text.get("name", "?")) for file in group.files for text in file.texts)
    if texts and group.apart_by == "texts":
        return f"on {', '.join(texts)}"
    return f"in {group.files[0].path}"


def variant(group: Group, stage: str) -> str:
    """Return what distinguishes a group's figure of one stage from others with the same heading."""
    return ", ".join(filter(None, (stage, told_apart(group))))


def staged(title: str, stage: str) -> str:
    """Return the title with the wording of the stage."""
    return f"{title}, schemes {STAGE_WORDS.get(stage, stage)}" if stage else title
