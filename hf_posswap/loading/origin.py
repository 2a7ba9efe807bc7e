"""The origin of a stock model: its name, whether it is on the Hub, its revision, and the licence on its card."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

CARD_FILE = "README.md"
FRONT_MATTER = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
LICENSE_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
COMMIT = re.compile(r"[0-9a-f]{40}")
LARGEST_CARD = 2**20
"""Maximum bytes of a card; a longer card is not searched for its licence."""

_REVISION = "_posswap_base_revision"
"""Attribute of a model with the commit that it was loaded from, which transformers does not store."""
_PLACE = "_posswap_base_place"
"""Attribute of a model with the folder or file that it was loaded from, if it has a name such as demo:gpt2."""


@dataclass(frozen=True)
class Origin:
    """The known facts about a stock model.

    Attributes:
        name: its name on the Hub, the name of its folder, or `demo:…`; None: it was made from a config.
        source: "hub" or "folder"; None: unknown.
        revision: its commit on the Hub, if known.
        license: the licence on its card, by the Hub's name, if known without a request to the Hub.
    """

    name: str | None = None
    source: str | None = None
    revision: str | None = None
    license: str | None = None

    def to_entry(self) -> dict[str, str | None]:
        """Return the keys of a `pos_scheme` entry that state the model's origin."""
        return {
            "base_model": self.name,
            "base_source": self.source,
            "base_revision": self.revision,
            "base_license": self.license,
        }


def remember_source(model: Any, name: Any, loading: Mapping[str, Any]) -> None:
    """Store, as attributes of a model, the Hub commit or the GGUF file that it was loaded from, if any.

    Args:
        model: the model.
        name: the name by which it was loaded.
        loading: the keyword arguments it was loaded with (`revision`, `cache_dir`, …).
    """
    revision = cached_revision(str(name), loading)
    if revision is not None:
        setattr(model, _REVISION, revision)
    file = Path(str(name), str(loading.get("gguf_file")))
    if loading.get("gguf_file") and file.is_file():
        remember_name(model, str(file), file.parent)


def remember_name(model: Any, name: str, place: str | Path) -> None:
    """Set a model's name to one by which it can be loaded again, such as demo:gpt2, instead of its folder.

    peft writes the name into adapters that are trained on the model.

    Args:
        model: the model.
        name: a name for `hf_posswap.sources.load_model`.
        place: the folder that the model was loaded from.
    """
    model.name_or_path = model.config.name_or_path = name
    setattr(model, _PLACE, str(place))


def cached_revision(name: str, loading: Mapping[str, Any]) -> str | None:
    """Return the commit of a Hub name and revision in the local cache; None if it is not there."""
    if not is_repo_id(name) or Path(name).exists():
        return None
    file = "/".join(filter(None, (loading.get("subfolder"), loading.get("gguf_file") or "config.json")))
    known = {key: loading[key] for key in ("cache_dir", "revision") if loading.get(key) is not None}
    path = try_to_load_from_cache(name, file, **known)
    if not isinstance(path, str):
        return None
    parts = Path(path).parts
    commit = parts[parts.index("snapshots") + 1] if "snapshots" in parts else ""
    return commit if COMMIT.fullmatch(commit) else None


def origin_of(model: Any) -> Origin:
    """Return the known origin of a stock model."""
    name = getattr(model.config, "_name_or_path", "") or ""
    if not name:
        return Origin()
    path = Path(vars(model).get(_PLACE) or name)
    if path.exists():
        # Keep only the folder's name: full paths are private.
        folder = path if path.is_dir() else path.parent
        known_as = (name if _PLACE in vars(model) else str(path.resolve())).rpartition("/")[2]
        return Origin(known_as or None, "folder", license=license_in(folder / CARD_FILE))
    revision = vars(model).get(_REVISION) or getattr(model.config, "_commit_hash", None)
    if revision is None and cached_revision(name, {}) is None:
        return Origin(name if is_repo_id(name) else None)
    return Origin(name, "hub", revision, cached_license(name, revision))


def cached_license(name: str, revision: str | None) -> str | None:
    """Return the licence on a Hub model's card, if the card is in the local cache."""
    path = try_to_load_from_cache(name, CARD_FILE, **({} if revision is None else {"revision": revision}))
    return license_in(Path(path)) if isinstance(path, str) else None


def license_in(card: Path) -> str | None:
    """Return the licence on a model card; None if there is no card, or no licence that the Hub knows."""
    if not card.is_file() or card.stat().st_size > LARGEST_CARD:
        return None
    name = front_matter(card.read_text(encoding="utf-8", errors="replace")).get("license")
    return name if is_license(name) else None


def front_matter(card: str) -> dict[str, Any]:
    """Return the front matter of a card's text; empty if there is none or it is not YAML."""
    match = FRONT_MATTER.search(card)
    if match is None:
        return {}
    try:
        values = yaml.safe_load(match.group(1))
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def is_license(name: Any) -> bool:
    """Return whether a value has the form of the Hub's licence names, such as "apache-2.0"."""
    return isinstance(name, str) and LICENSE_NAME.fullmatch(name) is not None


def is_repo_id(name: Any) -> bool:
    """Return whether a value has the form of names on the Hub: "gpt2" or "owner/name"."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
