"""The `pos_scheme` entry of a config: validated on load, refused when malformed or from the future."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import hf_posswap
import hf_posswap.modeling
from hf_posswap.errors import CheckpointError, SchemeConfigError
from hf_posswap.loading.entry import FORMAT_VERSION, config_from_entry
from hf_posswap.swapped.config_view import own_config
from hf_posswap.swapped.plan import core_of
from tests.matrix.cells import Cell, default_cells, random_tokens, small_config, small_model

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


def by_hand(cell: Cell) -> Any:
    """The config of a cell as a person writes it, who leaves open what can be left open."""
    stock = small_config(cell.architecture, cell.causal)
    kind = getattr(hf_posswap.modeling, f"PosSwap{type(stock).__name__}")
    config = kind(**{key: value for key, value in stock.to_dict().items() if key != "model_type"})
    config.pos_scheme = {"format_version": FORMAT_VERSION, "name": cell.config.name, "options": {}}
    return config


@torch.no_grad()
@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_a_config_that_leaves_options_open_gives_a_checkpoint_that_loads(cell: Cell, tmp_path: Path) -> None:
    config, tokens = by_hand(cell), random_tokens(2, 12)
    auto = hf_posswap.AutoModelForCausalLM if cell.causal else hf_posswap.AutoModelForMaskedLM
    model = auto.from_config(config).eval()
    assert config.pos_scheme["options"] == {}, "another model of the config takes what is open from its own weights"
    assert config_from_entry(model.config.pos_scheme) == core_of(model).pos_scheme.config
    assert {id(own_config(module)) for module in model.modules()} == {id(None), id(model.config)}
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"]["AutoConfig"] == f"modeling_posswap.{type(config).__name__}"
    assert torch.equal(auto.from_pretrained(tmp_path).eval()(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_what_is_taken_from_weights_is_not_left_open_where_there_are_none(architecture: str, tmp_path: Path) -> None:
    hf_posswap.swap(small_model(architecture, True), "sinusoidal").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["pos_scheme"]["options"]["amplitude"] = None
    path.write_text(json.dumps(config))
    with pytest.raises(SchemeConfigError, match="'amplitude' is left open.*Give it: sinusoidal:amplitude=0.1"):
        hf_posswap.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.device("meta"), pytest.raises(SchemeConfigError, match="'amplitude' is left open"):
        hf_posswap.swap(small_model(architecture, True), "sinusoidal")


@pytest.mark.parametrize("scheme", ["alibi", "learned", "rope"])
def test_a_family_that_starts_its_table_from_the_module_around_it_loads(scheme: str, tmp_path: Path) -> None:
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 32}
    config = transformers.DistilBertConfig(vocab_size=97, sinusoidal_pos_embds=True, **sizes)
    model = hf_posswap.swap(transformers.DistilBertForMaskedLM(config).eval(), scheme)
    model.save_pretrained(tmp_path)
    loaded = hf_posswap.AutoModelForMaskedLM.from_pretrained(tmp_path)
    tokens = torch.arange(3, 15)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
        assert torch.equal(hf_posswap.restore(loaded)(tokens).logits, hf_posswap.restore(model)(tokens).logits)
