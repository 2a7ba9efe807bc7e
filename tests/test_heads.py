"""Every head class that transformers registers for a supported architecture takes a scheme, and keeps it on disk."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import hf_posswap
from hf_posswap.architectures import architecture_named
from hf_posswap.architectures.model_types import package_of
from hf_posswap.loading.auto_classes import auto_classes
from hf_posswap.swapped.cache_view import cache_among, cache_keyword
from hf_posswap.swapped.capabilities import CORE
from tests.matrix.cells import class_of, random_tokens, small_config


def head_classes() -> list[tuple[str, str]]:
    """(architecture, class) for all public model classes of the modeling modules."""
    found = []
    for architecture in map(architecture_named, CORE):
        module = importlib.import_module(package_of(architecture.name))
        for name in dir(module):
            value = getattr(module, name)
            if (
                inspect.isclass(value)
                and issubclass(value, transformers.PreTrainedModel)
                and belongs(architecture.name, value)
            ):
                found.append((architecture.name, name))
    return found


def belongs(model_type: str, model_class: Any) -> bool:
    """Whether a class is a model of this type, and not of another one in the same package."""
    return "PreTrained" not in model_class.__name__ and model_class.config_class.model_type == model_type


def inputs_of(name: str) -> dict[str, Any]:
    tokens = random_tokens(2, 12)
    if "MultipleChoice" in name or "DoubleHeads" in name:
        return {"input_ids": tokens[:, None].repeat(1, 3, 1), "attention_mask": torch.ones(2, 3, 12)}
    return {"input_ids": tokens, "attention_mask": torch.ones(2, 12)}


def run(model: Any, name: str) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        outputs = model(**inputs_of(name))
    return {key: value for key, value in outputs.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize(("architecture", "name"), head_classes(), ids=lambda value: value)
@pytest.mark.parametrize("scheme", ["alibi", "sinusoidal"])
def test_head(architecture: str, name: str, scheme: str, tmp_path: Path) -> None:
    causal = architecture != "bert" or "LMHead" in name
    torch.manual_seed(0)
    stock = class_of(architecture, name)(small_config(architecture, causal)).eval()
    before = run(stock, name)
    model = hf_posswap.swap(stock, scheme)
    after = run(model, name)
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert after[key].shape == value.shape
        assert (after[key] - value).abs().max() > 1e-4, key
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    restored = run(hf_posswap.restore(model), name)
    for key, value in run(loaded, name).items():
        # The same weights at another place in memory: small heads' products may round differently.
        torch.testing.assert_close(value, after[key], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(restored[key], before[key], atol=1e-6, rtol=1e-6)


def test_every_registered_head_is_covered() -> None:
    covered = set(head_classes())
    for architecture in map(architecture_named, CORE):
        for name in auto_classes(architecture).values():
            assert (architecture.name, name) in covered


def test_cross_attention_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(small_config("gpt2", True, add_cross_attention=True)).eval()
    hf_posswap.swap(model, "alibi")
    assert {type(block.crossattention).__name__ for block in model.transformer.h} == {"GPT2Attention"}
    tokens, states = random_tokens(1, 10), torch.randn(1, 7, 32)
    with torch.no_grad():
        expected = model(tokens, encoder_hidden_states=states, use_cache=False).logits
        cached, parts = {}, []
        for token in tokens.split(1, dim=1):
            out = model(token, encoder_hidden_states=states, use_cache=True, **cached)
            cached = {cache_keyword(out): cache_among(out.values())}
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=2e-4, rtol=1e-4)
