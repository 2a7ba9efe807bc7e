"""LoRA on swapped models: what trains, what is saved, and that it comes back bit for bit."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.integrations import peft as integrations_peft
from transformers.pytorch_utils import Conv1D

import hf_posswap
from hf_posswap.architectures.tables import RetiredTable
from hf_posswap.errors import AdapterError, UnsupportedError
from hf_posswap.loading.entry import config_from_entry, is_healed
from hf_posswap.training.adapters import add_lora, load_adapter
from tests.matrix.cells import random_tokens, randomise, small_config, small_model

CASES = [
    *[("gpt2", True, scheme) for scheme in ("alibi", "t5", "relative_bias", "sinusoidal", "none", "learned:length=48")],
    *[("bert", False, scheme) for scheme in ("alibi", "t5", "relative_bias", "sinusoidal")],
    *[("llama", True, scheme) for scheme in ("alibi", "t5", "relative_bias", "sinusoidal", "none", "transformer_xl")],
]
NAMES = [f"{architecture}-{scheme}" for architecture, _, scheme in CASES]
TOKENS = random_tokens(2, 14)


def swapped(architecture: str, causal: bool, scheme: str, seed: int | None = 1, **extra: Any) -> Any:
    """A small swapped model; its scheme's parameters are random by the seed, or where they start."""
    model = hf_posswap.swap(small_model(architecture, causal, **extra), scheme)
    if seed is not None:
        randomise(model, seed)
    return model


def scheme_names(model: Any) -> set[str]:
    """Names of all parameters that are the scheme's own, mean rows included, found by the modules' names alone."""
    names = {name for name, _ in model.named_parameters() if "pos_scheme" in name}
    for name, module in model.named_modules():
        if isinstance(module, RetiredTable) and bool(module.weight.any()):
            names.add(f"{name}.weight")
    return names


def train(model: Any, steps: int = 3) -> Tensor:
    """Take plain gradient steps; return the logits after them."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS).logits


@pytest.mark.parametrize(("architecture", "causal", "scheme"), CASES, ids=NAMES)
def test_lora_and_the_scheme_train_and_nothing_else(architecture: str, causal: bool, scheme: str) -> None:
    model = swapped(architecture, causal, scheme)
    own, before = scheme_names(model), logits(model)
    adapted = add_lora(model, rank=2)
    torch.testing.assert_close(logits(adapted), before, atol=1e-5, rtol=1e-5)  # another attention path may open
    start = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    training = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    plain = {name.removeprefix("base_model.model.").replace(".modules_to_save.default", "") for name in training}
    assert {name for name in plain if ".lora_" not in name} == own
    train(adapted)
    for name, parameter in adapted.named_parameters():
        moved = not torch.equal(parameter, start[name])
        assert moved == (name in training), name
        assert (parameter.grad is not None) == (name in training), name
        if name in training:
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("architecture", "causal", "scheme"), CASES, ids=NAMES)
def test_saved_and_loaded_bit_for_bit(architecture: str, causal: bool, scheme: str, tmp_path: Path) -> None:
    model = swapped(architecture, causal, scheme)
    own = scheme_names(model)
    adapted = add_lora(model, rank=2)
    trained = train(adapted)
    adapted.save_pretrained(str(tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md",
    }  # fmt: skip
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "POSSWAP_LORA"
    assert config_from_entry(saved["pos_scheme"]) == config_from_entry(model.config.pos_scheme)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {n.removeprefix("base_model.model.") for n in tensors if ".lora_" not in n} == own  # no retired table

    fresh = [swapped(architecture, causal, scheme, seed=None) for _ in range(2)]
    loaded = PeftModel.from_pretrained(fresh[0], str(tmp_path))
    assert torch.equal(logits(loaded), trained)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    info = fresh[1].load_adapter(str(tmp_path))
    assert torch.equal(logits(fresh[1]), trained)
    assert not info.missing_keys
    assert not info.unexpected_keys


@pytest.mark.parametrize(("architecture", "causal", "scheme"), CASES, ids=NAMES)
def test_merged_it_is_a_swapped_model(architecture: str, causal: bool, scheme: str, tmp_path: Path) -> None:
    model = swapped(architecture, causal, scheme)
    names = set(model.state_dict())
    adapted = add_lora(model, rank=2)
    trained = train(adapted)
    merged: Any = adapted.merge_and_unload()
    assert merged is model
    assert hf_posswap.is_swapped(merged)
    assert is_healed(merged.config)  # its weights are no longer the stock model's
    assert set(merged.state_dict()) == names
    torch.testing.assert_close(logits(merged), trained, atol=2e-5, rtol=2e-5)
    merged.save_pretrained(tmp_path)
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
    assert torch.equal(logits(auto.from_pretrained(tmp_path)), logits(merged))
    hf_posswap.swap(merged, "alibi", replace=True)  # nothing of peft is left to stand in the way
    assert not [module for module in merged.modules() if type(module).__module__.startswith("peft")]


@pytest.mark.parametrize(("architecture", "causal"), [("gpt2", True), ("bert", False), ("llama", True)])
def test_disabled_and_unloaded_it_is_the_base(architecture: str, causal: bool) -> None:
    before, stock = logits(swapped(architecture, causal, "t5")), logits(small_model(architecture, causal))
    adapted = add_lora(swapped(architecture, causal, "t5"), rank=2)
    trained = train(adapted)
    assert not torch.equal(trained, before)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), before)
        with hf_posswap.without_scheme(adapted.get_base_model()):
            assert torch.equal(logits(adapted), stock)
    assert torch.equal(logits(adapted), trained)
    assert torch.equal(logits(copy.deepcopy(adapted)), trained)
    base = adapted.unload()
    assert torch.equal(logits(base), before)
    assert torch.equal(logits(hf_posswap.restore(base)), stock)


@pytest.mark.parametrize(("architecture", "causal"), [("gpt2", True), ("bert", False), ("llama", True)])
def test_projections_of_attention_and_mlp_are_adapted(architecture: str, causal: bool) -> None:
    model = swapped(architecture, causal, "t5")
    inside = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and any(part.isdigit() for part in name.split("."))
    }
    adapted = add_lora(model, rank=2, alpha=6, dropout=0.25)
    assert set(adapted.targeted_module_names) == inside
    assert len(inside) == 3 * {"gpt2": 4, "bert": 6, "llama": 7}[architecture]
    config = adapted.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 6, 0.25)
    assert add_lora(swapped(architecture, causal, "t5"), rank=3).peft_config["default"].lora_alpha == 6


@pytest.mark.parametrize("excluded", [None, ["c_fc"], r".*\.c_fc"])
def test_the_schemes_own_linear_layers_are_trained_in_full(excluded: Any) -> None:
    model = swapped("gpt2", True, "t5")
    model.transformer.pos_scheme.own = nn.Linear(4, 4)
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", exclude_modules=excluded))
    assert len(adapted.targeted_module_names) == (12 if excluded is None else 9)
    assert not [name for name, _ in adapted.named_parameters() if "pos_scheme" in name and "lora_" in name]
    own = adapted.get_base_model().transformer.pos_scheme.modules_to_save["default"].own
    assert own.weight.requires_grad


@pytest.mark.parametrize("scheme", ["t5", "relative_bias"])
def test_gradient_checkpointing_gives_the_same_gradients(scheme: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        adapted = add_lora(swapped("gpt2", True, scheme), rank=2)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.constant_(parameter, 0.01)
        if checkpointing:
            adapted.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
            adapted.enable_input_require_grads()
        adapted.train()(TOKENS, labels=TOKENS).loss.backward()
        gradients.append({name: p.grad for name, p in adapted.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert sum("pos_scheme" in name for name in gradients[0]) == {"t5": 1, "relative_bias": 3}[scheme]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


def test_training_goes_on_after_loading(tmp_path: Path) -> None:
    adapted = add_lora(swapped("gpt2", True, "t5"), rank=2)
    train(adapted)
    adapted.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(swapped("gpt2", True, "t5", seed=None), str(tmp_path), is_trainable=True)
    assert torch.equal(train(loaded.train()), train(adapted.train()))
    loaded.save_pretrained(str(tmp_path / "again"))
    again = PeftModel.from_pretrained(swapped("gpt2", True, "t5", seed=None), str(tmp_path / "again"))
    assert torch.equal(logits(again), logits(loaded))


@pytest.mark.parametrize(("dtype", "empty"), [(torch.bfloat16, False), (torch.float32, True)])
def test_half_precision_and_empty_weights(dtype: torch.dtype, empty: bool, tmp_path: Path) -> None:
    adapted = add_lora(swapped("gpt2", True, "t5").to(dtype), rank=2)
    trained = train(adapted)
    adapted.save_pretrained(str(tmp_path))
    base = swapped("gpt2", True, "t5", seed=None).to(dtype)
    loaded = PeftModel.from_pretrained(base, str(tmp_path), low_cpu_mem_usage=empty)
    assert torch.equal(logits(loaded), trained)


def test_each_adapter_has_its_own_scheme_parameters(tmp_path: Path) -> None:
    first, second = (add_lora(swapped("gpt2", True, "t5"), rank=2) for _ in range(2))
    expected = [train(first, steps=2), train(second, steps=4)]
    for name, adapted in (("first", first), ("second", second)):
        adapted.save_pretrained(str(tmp_path / name))
    both = PeftModel.from_pretrained(swapped("gpt2", True, "t5"), str(tmp_path / "first"), adapter_name="one")
    both.load_adapter(str(tmp_path / "second"), "two")
    assert torch.equal(logits(both), expected[0])
    both.set_adapter("two")
    assert torch.equal(logits(both), expected[1])
    with pytest.raises(AdapterError, match=r"adapters \['one', 'two'\] cannot be merged together"):
        both.merge_and_unload(adapter_names=["one", "two"])
    assert torch.equal(logits(both), expected[1])
    merged = both.merge_and_unload(adapter_names=["one"])
    torch.testing.assert_close(logits(merged), expected[0], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_peft_as_people_write_it(architecture: str, tmp_path: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=2)
    adapted = get_peft_model(swapped(architecture, True, "relative_bias"), config)
    stock: Any = get_peft_model(small_model(architecture, True), LoraConfig(task_type="CAUSAL_LM", r=2))
    assert set(adapted.targeted_module_names) == set(stock.targeted_module_names)
    trained = train(adapted)
    adapted.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["pos_scheme"]["name"] == "relative_bias"
    loaded = PeftModel.from_pretrained(swapped(architecture, True, "relative_bias", seed=None), str(tmp_path))
    assert torch.equal(logits(loaded), trained)
    assert pickle.loads(pickle.dumps(config)) == config
    assert isinstance(config, LoraConfig)


def test_one_config_for_many_models(tmp_path: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"])
    models = {scheme: get_peft_model(swapped("gpt2", True, scheme), config) for scheme in ("t5", "alibi")}
    models["stock"] = get_peft_model(small_model("gpt2", True), config)
    for name, adapted in models.items():
        adapted.save_pretrained(str(tmp_path / name))
        saved = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert saved["peft_type"] == ("LORA" if name == "stock" else "POSSWAP_LORA")
        assert saved.get("pos_scheme", {"name": "stock"})["name"] == name


@pytest.mark.skipif(
    Version(getattr(integrations_peft, "MIN_PEFT_VERSION", "0")) > Version(peft.__version__),
    reason="transformers wants a newer peft for its own load_adapter than there is",
)
def test_through_transformers_alone(tmp_path: Path) -> None:
    model = swapped("gpt2", True, "t5")
    model.add_adapter(LoraConfig(r=2, init_lora_weights=False), "mine")
    trained = train(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["pos_scheme"]["name"] == "t5"
    fresh = swapped("gpt2", True, "t5", seed=None)
    fresh.load_adapter(str(tmp_path), "another")
    assert torch.equal(logits(fresh), trained)
    with pytest.raises(UnsupportedError, match=r"has adapters \['another'\], made for the scheme it has now"):
        hf_posswap.swap(fresh, "alibi", replace=True)


def test_a_new_classifier_is_kept_beside_the_scheme(tmp_path: Path) -> None:
    def classifier() -> Any:
        torch.manual_seed(0)
        config = small_config("bert", causal=False)
        return hf_posswap.swap(transformers.AutoModelForSequenceClassification.from_config(config).eval(), "t5")

    adapted = add_lora(classifier(), rank=2)
    assert type(adapted) is peft.PeftModelForSequenceClassification
    adapted(TOKENS, labels=torch.tensor([0, 1])).loss.backward()
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter -= 0 if parameter.grad is None else 0.5 * parameter.grad
    adapted.save_pretrained(str(tmp_path))
    loaded = load_adapter(tmp_path, base=classifier())
    assert torch.equal(logits(loaded), logits(adapted))


def test_other_kinds_of_adapters_carry_the_scheme_too(tmp_path: Path) -> None:
    adapted = get_peft_model(swapped("gpt2", True, "t5"), peft.IA3Config(task_type="CAUSAL_LM"))
    trained = train(adapted)
    adapted.save_pretrained(str(tmp_path))
    loaded: Any = PeftModel.from_pretrained(swapped("gpt2", True, "t5", seed=None), str(tmp_path))
    assert torch.equal(logits(loaded), trained)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), trained, atol=2e-5, rtol=2e-5)
    with pytest.raises(AdapterError, match="scheme 't5', but this base model has its stock scheme 'learned'"):
        PeftModel.from_pretrained(small_model("gpt2", True), str(tmp_path))


@pytest.mark.parametrize(("architecture", "causal", "scheme"), CASES, ids=NAMES)
def test_under_an_adapter_the_model_is_told_as_it_is_without(architecture: str, causal: bool, scheme: str) -> None:
    model = swapped(architecture, causal, scheme)
    alone = hf_posswap.describe(model)
    adapted = add_lora(model, rank=2)
    assert hf_posswap.is_swapped(adapted)
    assert not hf_posswap.is_swapped(add_lora(small_model(architecture, causal), rank=2))
    told = hf_posswap.describe(adapted)
    for name in ("scheme", "options", "removed", "added", "parameters_before", "parameters_after", "longest_after"):
        assert getattr(told, name) == getattr(alone, name), name
    assert told.probe is not None
    assert alone.probe is not None
    assert told.probe.largest == pytest.approx(alone.probe.largest, rel=1e-4)


def test_an_adapted_model_is_neither_swapped_nor_restored() -> None:
    adapted = add_lora(swapped("gpt2", True, "t5"), rank=2)
    before = logits(adapted)
    with pytest.raises(UnsupportedError, match=r"with adapters \['default'\].*unload\(\)"):
        hf_posswap.restore(adapted)
    with pytest.raises(UnsupportedError, match="Swap the transformers model first"):
        hf_posswap.swap(adapted, "alibi", replace=True)
    assert torch.equal(logits(adapted), before)


def test_calibration_fits_the_adapters_own_parameters() -> None:
    model = swapped("gpt2", True, "t5", seed=None)
    adapted = add_lora(model, rank=2)
    report = hf_posswap.calibrate(adapted, [random_tokens(2, 24)], measure=False)  # random weights: no loss to win
    layer = model.base_model.pos_scheme
    assert bool(layer.modules_to_save["default"].table.any())
    assert not bool(layer.original_module.table.any())
    assert len(report.explained) == model.config.n_layer
