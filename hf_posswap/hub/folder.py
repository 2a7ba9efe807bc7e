"""Selects the files of a folder that are published, and refuses folders with unsafe files.

Only files with known names are uploaded, so that no checkpoints of a run, logs or data are published by accident. All
files are checked before anything is sent, and nothing in the folder is executed or unpickled.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hf_posswap.hub.errors import HubError
from hf_posswap.hub.results import read_json

CONFIG_FILE, CARD_FILE, INDEX_FILE = "config.json", "README.md", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
)
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
OF_TRAINER = re.compile(r"training_args\.bin|(optimizer|scheduler|scaler)\.pt|rng_state(_\d+)?\.pth")
"""File that transformers' Trainer writes: it holds no weights and is not published."""
FIGURES_FOLDER = "figures"
FIGURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(png|jpg|jpeg)", re.IGNORECASE)
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
"""First bytes of a PNG and of a JPEG file."""
SECRET = re.compile(rb"hf_[A-Za-z0-9]{30,}")
"""Pattern of the Hub's access tokens."""
LARGEST_TEXT = 64 * 2**20


@dataclass(frozen=True)
class Contents:
    """The files of a folder.

    Attributes:
        folder: the folder.
        files: names, relative to the folder, of the files that are published.
        figures: the names in `files` that are images.
        left: names at the top of the folder that are not published.
    """

    folder: Path
    files: tuple[str, ...]
    figures: tuple[str, ...]
    left: tuple[str, ...]


def model_contents(folder: Path) -> Contents:
    """Return the files of a checkpoint's folder to publish.

    Raises:
        HubError: the folder holds no checkpoint, or holds pickled weights, links to files outside it, or a secret.
    """
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG_FILE).is_file():
        raise HubError(f"{str(folder)!r} holds an adapter, not a whole model. Take push_adapter and adapter_card_of.")
    _require_folder(folder, CONFIG_FILE, "a checkpoint of a swapped model, as `hf-posswap swap` or save_pretrained")
    weights = sorted(path.name for path in folder.iterdir() if WEIGHTS.fullmatch(path.name))
    _refuse_pickles(folder)
    if not weights:
        raise HubError(f"{str(folder)!r} has no model.safetensors: there are no weights to publish.")
    if INDEX_FILE not in names_in(folder) and weights != ["model.safetensors"]:
        raise HubError(f"{str(folder)!r} has weights in several files but no {INDEX_FILE}. Save the model again.")
    known = [CONFIG_FILE, "generation_config.json", INDEX_FILE, *weights, *TOKENIZER_FILES]
    return _contents(folder, known, also_known=("modeling_posswap.py",))


def adapter_contents(folder: Path) -> Contents:
    """Return the files of an adapter's folder to publish.

    Raises:
        HubError: see `model_contents`.
    """
    if (folder / CONFIG_FILE).is_file() and not (folder / ADAPTER_CONFIG).is_file():
        raise HubError(
            f"{str(folder)!r} holds a whole model, not an adapter. Leave --adapter out; in Python, take push_folder "
            "and card_of."
        )
    _require_folder(folder, ADAPTER_CONFIG, "an adapter, as `hf-posswap finetune --lora-rank` or save_pretrained")
    _refuse_pickles(folder)
    if ADAPTER_WEIGHTS not in names_in(folder):
        raise HubError(f"{str(folder)!r} has no {ADAPTER_WEIGHTS}: there are no weights to publish.")
    return _contents(folder, [ADAPTER_CONFIG, ADAPTER_WEIGHTS, *TOKENIZER_FILES])


def names_in(folder: Path) -> set[str]:
    """Return the names at the top of a folder."""
    return {path.name for path in folder.iterdir()}


def read_shapes(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in safetensors files by their names; only the headers are read.

    Raises:
        HubError: a file is not a safetensors file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        try:
            with safe_open(folder / name, framework="pt") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  it is no mapping
        except (SafetensorError, OSError) as error:
            raise HubError(f"{name!r} in {str(folder)!r} is no whole safetensors file: {error}.") from error
    return shapes


def _require_folder(folder: Path, needed: str, what: str) -> None:
    if not folder.is_dir():
        raise HubError(f"{str(folder)!r} is no folder. Give one that holds {what} writes it.")
    if not (folder / needed).is_file():
        raise HubError(f"{str(folder)!r} has no {needed}. Give a folder that holds {what} writes it.")


def _refuse_pickles(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLED)
    pickled = [name for name in names if not OF_TRAINER.fullmatch(name)]
    if pickled:
        raise HubError(
            f"{str(folder)!r} holds pickled files: {', '.join(map(repr, pickled))}. Loading one can run any code, so "
            "no folder with one is published. Weights belong into safetensors (model.save_pretrained writes them); "
            "move the others elsewhere."
        )


def _contents(folder: Path, known: Iterable[str], also_known: Iterable[str] = ()) -> Contents:
    names = names_in(folder)
    figures = _figures(folder)
    files = [name for name in dict.fromkeys(known) if name in names]
    for name in (*files, *figures, *({CARD_FILE} & names)):
        _require_inside(folder, name)
        _refuse_secrets(folder / name)
    left = sorted(names - set(files) - {CARD_FILE, FIGURES_FOLDER, *also_known} - set(figures))
    return Contents(folder, (*files, *figures), tuple(figures), tuple(left))


def _figures(folder: Path) -> list[str]:
    """Return the images at the top of a folder and in its subfolder `figures`, the comparison first."""
    top = sorted((path for path in folder.iterdir() if FIGURE.fullmatch(path.name)), key=_comparison_first)
    below = folder / FIGURES_FOLDER
    inside = sorted(path for path in below.iterdir() if FIGURE.fullmatch(path.name)) if below.is_dir() else []
    found = [path.relative_to(folder).as_posix() for path in (*top, *inside)]
    for name in found:
        _require_inside(folder, name)
        with (folder / name).open("rb") as file:
            if not file.read(16).startswith(SIGNATURES):
                raise HubError(f"{name!r} in {str(folder)!r} is named a picture but is none. Take it out.")
    return found


def _comparison_first(path: Path) -> tuple[bool, str]:
    return path.name != "compare.png", path.name


def _require_inside(folder: Path, name: str) -> None:
    """Refuse anything but a regular file inside the folder: a link could publish other files by accident."""
    target = (folder / name).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise HubError(
            f"{name!r} in {str(folder)!r} is a link to {str(target)!r}, outside of the folder. Put a copy in its place "
            "if that file is meant."
        )
    if not target.is_file():
        raise HubError(f"{name!r} in {str(folder)!r} is no file. Take it out.")


def _refuse_secrets(path: Path) -> None:
    """Refuse a text file that contains an access token."""
    if path.suffix == ".safetensors" or path.stat().st_size > LARGEST_TEXT:
        return
    if SECRET.search(path.read_bytes()):
        raise HubError(
            f"{path.name!r} in {str(path.parent)!r} contains what looks like an access token of the Hub. Take it out, "
            "and revoke the token if others have seen it."
        )


def check_index(folder: Path, weights: Iterable[str]) -> None:
    """Check that a sharded checkpoint's index names exactly the existing files.

    Raises:
        HubError: the index and the files differ.
    """
    named = read_json(folder / INDEX_FILE).get("weight_map")
    files = set(map(str, named.values())) if isinstance(named, dict) else set()
    if files != set(weights):
        raise HubError(
            f"{INDEX_FILE} in {str(folder)!r} names {sorted(files)[:5]}, but the folder has {sorted(weights)[:5]}. "
            "Save the model again, into a new folder."
        )
