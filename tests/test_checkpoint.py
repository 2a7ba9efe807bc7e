"""The `pos_scheme` entry of a config: validated on load, refused when malformed or from the future."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

import hf_posswap
from hf_posswap.errors import CheckpointError
from hf_posswap.loading.entry import FORMAT_VERSION, config_from_entry
from tests.matrix.cells import small_model

GOOD = {"format_version": FORMAT_VERSION, "name": "t5", "options": {"num_buckets": 16}, "native": "learned"}

BAD: list[tuple[Any, str]] = [
    ("alibi", "must be an object with format_version, name, options"),
    ({}, "format_version is None; it must be a positive integer"),
    (GOOD | {"format_version": "1"}, "format_version is '1'"),
    (GOOD | {"format_version": True}, "format_version is True"),
    (GOOD | {"format_version": FORMAT_VERSION + 1}, "reads up to 1. Upgrade: pip install -U hf_posswap"),
    (GOOD | {"options": [1]}, r"options is \[1\]; it must be an object"),
    (GOOD | {"options": {"bucket": 3}}, "malformed: unknown option of scheme 't5': 'bucket'"),
    (GOOD | {"name": "allibi"}, "malformed: unknown positional scheme 'allibi'. Did you mean 'alibi'"),
    (GOOD | {"name": None}, "has no 'name'"),
    (GOOD | {"healed": "yes"}, "healed is 'yes'; it must be true or false"),
    (GOOD | {"code": "import os"}, r"unknown keys \['code'\]"),
]


@pytest.mark.parametrize(("entry", "message"), BAD, ids=[str(index) for index in range(len(BAD))])
def test_a_malformed_entry_is_refused_on_load(entry: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_from_entry(entry)
    hf_posswap.swap(small_model("gpt2", True), "alibi").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pos_scheme": entry}))
    with pytest.raises(Exception, match=message) as raised:
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    chain = [raised.value, raised.value.__cause__, raised.value.__context__]
    assert any(isinstance(error, CheckpointError | ValueError | TypeError) for error in chain)


def test_a_good_entry_round_trips() -> None:
    config = config_from_entry(GOOD)
    assert config.to_dict()["num_buckets"] == 16


def test_a_swapped_class_without_an_entry_says_what_to_do() -> None:
    from hf_posswap.modeling import PosSwapGPT2LMHeadModel  # type: ignore[attr-defined]

    config = type(hf_posswap.swap(small_model("gpt2", True), "alibi").config)(n_layer=1, n_embd=8, n_head=2)
    with pytest.raises(CheckpointError, match="no pos_scheme entry"):
        PosSwapGPT2LMHeadModel(config)


def test_no_path_of_this_computer_is_written(tmp_path: Path) -> None:
    small_model("gpt2", True).save_pretrained(tmp_path / "mine")
    model = hf_posswap.AutoModelForCausalLM.from_pretrained(tmp_path / "mine", pos_scheme="alibi")
    model.save_pretrained(tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()
