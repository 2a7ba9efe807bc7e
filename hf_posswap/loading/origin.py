"""Where a stock model came from: its name, whether that is on the Hub, the revision, and the licence on its card."""

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
"""Bytes; a longer card is not read for its licence."""

_REVISION = "_posswap_base_revision"
"""Where a model that was loaded here keeps the commit it came from, since transformers does not."""
_PLACE = "_posswap_base_place"
"""Where a model that goes by a name of ours keeps the folder or file it was loaded from."""


@dataclass(frozen=True)
class Origin:
    """What is known of the stock model.

    Attributes:
        name: its name on the Hub, or the name of its folder, or `demo:…`; None: made from a config.
        source: "hub" or "folder"; None: unknown.
        revision: its commit on the Hub, if known.
        license: the licence its card states, as the Hub names licences, if known here without asking the Hub.
    """

    name: str | None = None
    source: str | None = None
    revision: str | None = None
    license: str | None = None

    def to_entry(self) -> dict[str, str | None]:
        """Return the keys of a `pos_scheme` entry that say where the model came from."""
        return {
            "base_model": self.name,
            "base_source": self.source,
            "base_revision": self.revision,
            "base_license": self.license,
        }


def remember_source(model: Any, name: Any, loading: Mapping[str, Any]) -> None:
    """Note at a model which commit of the Hub, or which GGUF file, it was just loaded from, if it came from there.

    Args:
        model: the model.
        name: what it was loaded by.
        loading: the keyword arguments it was loaded with (`revision`, `cache_dir`, …).
    """
    revision = cached_revision(str(name), loading)
    if revision is not None:
        setattr(model, _REVISION, revision)
    file = Path(str(name), str(loading.get("gguf_file")))
    if loading.get("gguf_file") and file.is_file():
        remember_name(model, str(file), file.parent)


def remember_name(model: Any, name: str, place: str | Path) -> None:
    """Let a model go by a name that leads back to it, such as demo:gpt2, where the folder it is in does not.

    peft writes the name into adapters that are trained on the model.

    Args:
        model: the model.
        name: what `hf_posswap.demo.load_model` finds it by.
        place: the folder it was loaded from.
    """
    model.name_or_path = model.config.name_or_path = name
    setattr(model, _PLACE, str(place))


def cached_revision(name: str, loading: Mapping[str, Any]) -> str | None:
    """Return the commit that a name and revision of the Hub mean in the local cache, or None if there is none."""
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
    """Return what is known of where a stock model came from."""
    name = getattr(model.config, "_name_or_path", "") or ""
    if not name:
        return Origin()
    path = Path(vars(model).get(_PLACE) or name)
    if path.exists():
        # Paths of this computer are nobody else's business: a folder's name only.
        folder = path if path.is_dir() else path.parent
        known_as = (name if _PLACE in vars(model) else str(path.resolve())).rpartition("/")[2]
        return Origin(known_as or None, "folder", license=license_in(folder / CARD_FILE))
    revision = vars(model).get(_REVISION) or getattr(model.config, "_commit_hash", None)
    if revision is None and cached_revision(name, {}) is None:
        return Origin(name if is_repo_id(name) else None)
    return Origin(name, "hub", revision, cached_license(name, revision))


def cached_license(name: str, revision: str | None) -> str | None:
    """Return the licence on a Hub model's card, if that card lies in the local cache."""
    path = try_to_load_from_cache(name, CARD_FILE, **({} if revision is None else {"revision": revision}))
    return license_in(Path(path)) if isinstance(path, str) else None


def license_in(card: Path) -> str | None:
    """Return the licence that a model card states, or None if there is no card or it states none that the Hub knows."""
    if not card.is_file() or card.stat().st_size > LARGEST_CARD:
        return None
    name = front_matter(card.read_text(encoding="utf-8", errors="replace")).get("license")
    return name if is_license(name) else None


def front_matter(card: str) -> dict[str, Any]:
    """Return the front matter of a card's text; empty if there is none, or none that is YAML."""
    match = FRONT_MATTER.search(card)
    if match is None:
        return {}
    try:
        values = yaml.safe_load(match.group(1))
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def is_license(name: Any) -> bool:
    """Return whether a value is written as the Hub writes licences, such as "apache-2.0"."""
    return isinstance(name, str) and LICENSE_NAME.fullmatch(name) is not None


def is_repo_id(name: Any) -> bool:
    """Return whether a value is written as names on the Hub are: "gpt2" or "owner/name"."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
