"""A swapped model's config states what the model can represent; nothing stops at the old limit, and it comes back."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import hf_posswap
from hf_posswap.architectures.discovery import LENGTH_FIELD, STOCK_LENGTH, length_field
from hf_posswap.errors import CheckpointError
from hf_posswap.swapped.stated_length import NO_LIMIT
from tests.families.configs import tiny_model
from tests.matrix.cells import TRAIN_LENGTH, Cell, default_cells, random_tokens, small_model, supported_cells
from tests.test_first_edition import CHECKPOINTS

DEFAULT_TOKENS = 20
"""Tokens that `generate` makes if nobody says how many."""


def reminders(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "predefined maximum length" in record.message]


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What transformers logs; by default it hands nothing on."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="transformers")  # whatever was set before in this process
    transformers.utils.logging.warning_once.cache_clear()  # it says each thing once per process
    return caplog


@pytest.mark.parametrize("cell", [cell for cell in supported_cells() if cell.causal], ids=str)
@pytest.mark.parametrize("length", [20, 40])
def test_generate_without_lengths_makes_its_default_tokens(
    cell: Cell, length: int, heard: pytest.LogCaptureFixture
) -> None:
    model = cell.swapped()
    limit = hf_posswap.longest_position(model)
    if limit is not None and length >= limit:
        with pytest.raises(ValueError, match=f"`max_length` is set to {limit}"):
            model.generate(random_tokens(1, length), do_sample=False, eos_token_id=None)
        return
    made = model.generate(random_tokens(1, length), do_sample=False, eos_token_id=None).shape[1] - length
    assert made == (DEFAULT_TOKENS if limit is None else min(DEFAULT_TOKENS, limit - length))
    assert not reminders(heard)


def test_stock_reminds_where_the_swapped_model_does_not(heard: pytest.LogCaptureFixture) -> None:
    """So the fixture would hear transformers' reminder."""
    small_model("llama", True).generate(random_tokens(1, 20), max_new_tokens=20, do_sample=False, eos_token_id=None)
    assert reminders(heard)


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_the_config_states_it_and_its_file_the_stock_number(cell: Cell, tmp_path: Path) -> None:
    before = cell.stock().config.to_dict()
    model = cell.swapped(randomised=False)
    limit = hf_posswap.longest_position(model)
    stated = NO_LIMIT if limit is None else limit
    assert model.config.max_position_embeddings == stated
    model.save_pretrained(tmp_path)
    name = length_field(model.config)
    assert json.loads((tmp_path / "config.json").read_text())[name] == TRAIN_LENGTH
    assert transformers.AutoConfig.from_pretrained(tmp_path).max_position_embeddings == TRAIN_LENGTH
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.max_position_embeddings == stated
    again = type(model)(model.config)  # a config that states the model's own number makes the same modules
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }
    assert model.config.max_position_embeddings == stated
    assert hf_posswap.train_length(model) == TRAIN_LENGTH
    for restored in (hf_posswap.restore(loaded), hf_posswap.restore(model)):
        assert restored.config.max_position_embeddings == TRAIN_LENGTH
    assert hf_posswap.restore(hf_posswap.swap(cell.stock(), cell.config)).config.to_dict() == before


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("scheme", ["alibi", "learned", "learned:length=48", "rope"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_number_raised_by_hand_leaves_a_model_that_loads(
    architecture: str, scheme: str, where: str, tmp_path: Path
) -> None:
    model = hf_posswap.swap(small_model(architecture, True), scheme)
    if where == "memory":
        model.config.max_position_embeddings = 4096
    model.save_pretrained(tmp_path)
    if where == "file":
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {length_field(model.config): 4096}))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = random_tokens(1, 24)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert hf_posswap.train_length(loaded) == TRAIN_LENGTH


def test_the_number_follows_another_scheme_and_comes_back() -> None:
    model = small_model("gpt2", True)
    for scheme, stated in (("alibi", NO_LIMIT), ("learned:length=48", 48), ("t5", NO_LIMIT), ("learned", 32)):
        hf_posswap.swap(model, scheme, replace=True)
        assert model.config.max_position_embeddings == stated
    assert hf_posswap.restore(model).config.max_position_embeddings == TRAIN_LENGTH


@pytest.mark.parametrize("checkpoint", ["gpt2-t5", "llama-rope-yarn"])
def test_checkpoints_without_the_stock_number_get_it(checkpoint: str) -> None:
    folder = CHECKPOINTS / checkpoint
    config = json.loads((folder / "config.json").read_text())
    assert STOCK_LENGTH not in config["pos_scheme"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    name = length_field(model.config)
    assert model.config.max_position_embeddings == NO_LIMIT
    assert model.config.pos_scheme[STOCK_LENGTH] == config[name]
    assert hf_posswap.restore(model).config.max_position_embeddings == config[name]


@pytest.mark.parametrize("length", [0, -1, True, "512", 10**30])
def test_a_stock_number_that_none_has_is_refused(length: Any) -> None:
    entry = hf_posswap.swap(small_model("gpt2", True), "alibi").config.pos_scheme
    with pytest.raises(CheckpointError, match=f"pos_scheme.{STOCK_LENGTH} is .*a whole number from 1 to"):
        transformers.AutoConfig.for_model("posswap_gpt2", pos_scheme=entry | {STOCK_LENGTH: length})


@pytest.mark.parametrize("scheme", [{"name": "alibi", "layers": [0]}, {"name": "alibi", "keep_native": True}], ids=str)
def test_rotary_angles_that_stay_are_those_of_the_stock_number(scheme: dict[str, Any]) -> None:
    """Dynamic scaling reads the number while it runs; beyond it the angles change."""
    dynamic = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    model = small_model("llama", True, rope_parameters=dynamic)
    tokens = random_tokens(1, 2 * TRAIN_LENGTH)
    given: list[Any] = []
    model.model.rotary_emb.register_forward_hook(lambda module, args, output: given.append(output))
    with torch.no_grad():
        model(tokens)
        hf_posswap.swap(model, scheme)
        model(tokens)
        assert all(torch.equal(mine, its) for mine, its in zip(given[-1], given[0], strict=True))
        with hf_posswap.without_scheme(model):
            model(tokens)
    assert all(torch.equal(mine, its) for mine, its in zip(given[-1], given[0], strict=True))
    assert getattr(model.model.rotary_emb.config, LENGTH_FIELD) == TRAIN_LENGTH
    assert type(hf_posswap.restore(model).model.rotary_emb.config) is type(model.config)


def test_buffers_are_initialised_by_the_stock_number(tmp_path: Path) -> None:
    """GPT-BigCode's mask is made by the config's number, when a checkpoint is loaded and in `init_weights`."""
    model = hf_posswap.swap(tiny_model("gpt_bigcode", True), "alibi")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    saved = model.state_dict()
    assert all(torch.equal(weight, saved[name]) for name, weight in loaded.state_dict().items())
    loaded.init_weights()
    assert loaded.config.max_position_embeddings == NO_LIMIT
