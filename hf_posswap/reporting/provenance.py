"""Collects the provenance of a figure's numbers from its result files."""

from collections.abc import Iterable

from hf_posswap.reporting.figures import Provenance
from hf_posswap.results.groups import Group
from hf_posswap.results.reading import ResultFile

PACKAGES = ("hf_posswap", "torch", "transformers")


def provenance_of(group: Group) -> Provenance:
    """Return the provenance of a group's rows from the metadata of its files."""
    files = group.files
    return Provenance(
        models=(group.model,),
        texts=_distinct(_text(text) for file in files for text in file.texts),
        training=_distinct(_training(file) for file in files),
        seeds=_distinct(str(row["seed"]) for row in group.rows if row["seed"] is not None),
        commands=_distinct(str(file.environment.get("command", "")) for file in files),
        versions=_distinct(_versions(file) for file in files),
        hardware=_distinct(_hardware(file) for file in files),
        files=_distinct(file.path for file in files),
    )


def _text(text: object) -> str:
    assert isinstance(text, dict)
    name, tokens = str(text.get("name", "?")), text.get("tokens")
    return f"{name} ({tokens:,} tokens)" if isinstance(tokens, int) else name


def _training(file: ResultFile) -> str:
    healing = file.settings.get("healing")
    if not isinstance(healing, dict) or not isinstance(healing.get("tokens"), int):
        return ""
    weight, words = healing.get("distill"), healing.get("supervise")
    teacher = f", distilled from the stock model with weight {weight}" if weight else ""
    if isinstance(words, list) and not weight:
        teacher = f", learning from {', '.join(map(str, words)) or 'what suits each start'}"
    return f"{healing['tokens']:,} tokens of other texts{teacher}"


def _versions(file: ResultFile) -> str:
    versions = file.environment.get("versions")
    if not isinstance(versions, dict):
        return ""
    named = [f"{name} {versions[name]}" for name in PACKAGES if versions.get(name)]
    dtype = file.settings.get("dtype")
    return ", ".join([*named, *([str(dtype)] if dtype else [])])


def _hardware(file: ResultFile) -> str:
    hardware = file.environment.get("hardware")
    if not isinstance(hardware, dict):
        return ""
    accelerators = hardware.get("accelerators")
    cores = hardware.get("cores")
    processor = f"{hardware.get('processor', '?')}{f', {cores} cores' if cores else ''}"
    return ", ".join([processor, *map(str, accelerators if isinstance(accelerators, list) else [])])


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value))
