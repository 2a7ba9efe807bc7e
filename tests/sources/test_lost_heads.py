"""Checkpoints without weights for the head that their config names, as sentence-transformers saves them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_posswap.experiments.measuring import objective_of
from hf_posswap.sources import class_for, load_config, load_model
from hf_posswap.swapped.capabilities import families
from tests.families.configs import model_types, tiny_model

KNOWN = {(model_type, "causal" if causal else "encoder") for model_type, causal, _ in model_types()}
SUPPORTED = [family for family in families() if family.supported and (family.model_type, family.mode) in KNOWN]
ENCODERS = [family.model_type for family in SUPPORTED if family.mode == "encoder"]


def save_without_its_head(model: Any, folder: Path) -> None:
    """Save a model's base under the config of the whole model."""
    model.base_model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [type(model).__name__]}))


def has_weights_of_its_own(model: Any) -> bool:
    """Tell whether a model's head is more than its table of tokens."""
    shared = {id(weight) for weight in model.base_model.parameters()}
    return any(id(weight) not in shared for weight in model.parameters())


@pytest.mark.parametrize("model_type", ENCODERS)
def test_an_encoder_is_loaded_with_the_head_that_its_checkpoint_has(model_type: str, tmp_path: Path) -> None:
    model, whole, base = tiny_model(model_type, False), str(tmp_path / "whole"), str(tmp_path / "base")
    model.save_pretrained(whole)
    assert class_for(load_config(whole)).__name__ == "AutoModelForMaskedLM"
    assert type(load_model(whole)) is type(model)
    save_without_its_head(model, Path(base))
    if not has_weights_of_its_own(model):
        assert type(load_model(base)) is type(model)
        return
    assert load_config(base).architectures == [type(model.base_model).__name__]
    assert type(load_model(base)) is type(model.base_model)
    assert (objective_of(load_config(whole)), objective_of(load_config(base))) == ("mlm", "embedding")


def test_a_checkpoint_of_another_model_is_not_taken_for_one_without_its_head(tmp_path: Path) -> None:
    model = tiny_model("bert", False)
    model.save_pretrained(tmp_path, state_dict={"other.weight": torch.zeros(2)})
    assert load_config(str(tmp_path)).architectures == ["BertForMaskedLM"]


def test_a_config_without_weights_is_left_as_it_is(tmp_path: Path) -> None:
    tiny_model("bert", False).config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text()) | {"architectures": ["BertForMaskedLM"]}
    path.write_text(json.dumps(content | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    assert load_config(str(tmp_path)).architectures == ["BertForMaskedLM"]
