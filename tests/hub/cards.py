"""What the Hub checks in a card's front matter, as far as its documentation tells: types, names and the model index."""

import re
from typing import Any

import yaml

TASKS = {
    "text-generation",
    "fill-mask",
    "text-classification",
    "token-classification",
    "question-answering",
    "feature-extraction",
    "multiple-choice",
    "sentence-similarity",
}
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
BLOCK = re.compile(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|$))")


def card_errors(text: str) -> list[str]:
    """Return what is wrong with a card's front matter; empty if it is valid."""
    match = BLOCK.search(text)
    if match is None:
        return []
    try:
        data = yaml.safe_load(match.group(2))
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    if not isinstance(data, dict):
        return ["the front matter is no mapping"]
    checks = {
        "license": lambda value: isinstance(value, str) and re.fullmatch(r"[a-z0-9.+-]+", value),
        "tags": lambda value: isinstance(value, list) and all(isinstance(tag, str) for tag in value),
        "library_name": lambda value: isinstance(value, str),
        "pipeline_tag": lambda value: value in TASKS,
        "base_model": lambda value: all(isinstance(name, str) and NAME.fullmatch(name) for name in _list(value)),
        "model-index": _valid_index,
    }
    return [f"{key} is {value!r}" for key, value in data.items() if key in checks and not checks[key](value)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _valid_index(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(model.get("name"), str) and all(map(_valid_result, model["results"])) for model in value)


def _valid_result(result: dict[str, Any]) -> bool:
    dataset, metrics = result["dataset"], result["metrics"]
    return (
        result["task"]["type"] in TASKS
        and isinstance(dataset["type"], str)
        and isinstance(dataset["name"], str)
        and bool(metrics)
        and all(isinstance(m["type"], str) and isinstance(m["value"], int | float) for m in metrics)
    )
