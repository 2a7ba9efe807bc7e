"""Adapters refuse a base with another scheme, whatever door they come by; and what else is said with an error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig, PeftModel, get_peft_model

import hf_posswap
from hf_posswap.errors import AdapterError, CheckpointError, PosSwapError, UnsupportedError
from hf_posswap.training.adapters import add_lora, load_adapter
from tests.matrix.cells import small_model
from tests.test_auto import python
from tests.training.test_adapters import logits, swapped, train

ADAPTERS = {"stock": None, "t5": "t5", "t5-16": "t5:num_buckets=16", "none": "none"}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of adapters trained on a stock GPT-2 and on swapped ones."""
    folders = {}
    for name, scheme in ADAPTERS.items():
        torch.manual_seed(0)
        adapted = add_lora(small_model("gpt2", True) if scheme is None else swapped("gpt2", True, scheme), rank=2)
        train(adapted)
        folders[name] = str(tmp_path_factory.mktemp(name))
        adapted.save_pretrained(folders[name])
    return folders


def base_of(name: str) -> Any:
    scheme = ADAPTERS[name]
    return small_model("gpt2", True) if scheme is None else swapped("gpt2", True, scheme)


def through_peft(model: Any, folder: str) -> Any:
    return PeftModel.from_pretrained(model, folder)


def through_trainable(model: Any, folder: str) -> Any:
    return PeftModel.from_pretrained(model, folder, is_trainable=True)


def through_load_adapter(model: Any, folder: str) -> Any:
    adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["c_fc"]))
    try:
        return adapted.load_adapter(folder, "second")
    finally:
        assert ("second" in adapted.peft_config) == any("second" in name for name, _ in adapted.named_parameters())


def through_reloading(model: Any, folder: str) -> Any:
    return add_lora(model, rank=2).load_adapter(folder, "default")


def through_transformers(model: Any, folder: str) -> Any:
    return model.load_adapter(folder)


def through_us(model: Any, folder: str) -> Any:
    return load_adapter(folder, base=model)


DOORS = [
    through_peft, through_trainable, through_load_adapter, through_reloading, through_transformers, through_us
]  # fmt: skip
REFUSED = {
    (
        "t5",
        "stock",
    ): r"swapped to scheme 't5', but this base model has its stock scheme 'learned'. .*load_adapter\('.*', "
    r"base=model\) swaps it",
    (
        "t5",
        "none",
    ): r"swapped to scheme 't5', but this base model is swapped to scheme 'none'. .*hf_posswap.restore\(model\)",
    ("none", "t5"): r"swapped to scheme 'none', but this base model is swapped to scheme 't5'",
    ("t5", "t5-16"): r"'t5' with num_buckets=32, but this base model is swapped to scheme 't5' with num_buckets=16",
    (
        "stock",
        "t5",
    ): r"on a stock model, whose scheme is 'learned', but this base model is swapped to scheme 't5'. Load it "
    r"on the stock model \(hf_posswap.restore\(model\)",
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("adapter", "base"), REFUSED, ids=lambda name: name)
def test_another_scheme_is_refused(
    door: Callable[[Any, str], Any], adapter: str, base: str, adapters: dict[str, str]
) -> None:
    model = base_of(base)
    before = logits(model)
    if door is through_us and base == "stock":
        door(model, adapters[adapter])
        assert model.config.pos_scheme["name"] == "t5"
        return
    with pytest.raises(AdapterError, match=REFUSED[adapter, base]):
        door(model, adapters[adapter])
    assert torch.equal(logits(model), before)
    if door not in (through_load_adapter, through_reloading):
        assert not [name for name, _ in model.named_parameters() if "lora_" in name]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ADAPTERS)
def test_the_same_scheme_is_taken(door: Callable[[Any, str], Any], name: str, adapters: dict[str, str]) -> None:
    door(base_of(name), adapters[name])


def test_a_refused_second_adapter_leaves_the_first_alone(adapters: dict[str, str]) -> None:
    model = base_of("t5")
    model.load_adapter(adapters["t5"], "first")
    before = logits(model)
    with pytest.raises(AdapterError, match=REFUSED["stock", "t5"]):
        model.load_adapter(adapters["stock"], "second")
    assert list(model.peft_config) == ["first"]
    assert torch.equal(logits(model), before)


def test_a_config_given_by_hand_does_not_get_around_it(adapters: dict[str, str]) -> None:
    for adapter, base in REFUSED:
        config = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")
        with pytest.raises(AdapterError, match=REFUSED[adapter, base]):
            PeftModel.from_pretrained(base_of(base), adapters[adapter], config=config)


def test_an_entry_of_a_newer_format_is_refused(adapters: dict[str, str], tmp_path: Path) -> None:
    for file in Path(adapters["t5"]).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    for entry, message in [
        (values["pos_scheme"] | {"format_version": 2}, r"pos_scheme format 2 .* Upgrade: pip install -U hf_posswap"),
        (values["pos_scheme"] | {"name": "t6"}, r"malformed: unknown positional scheme 't6'. Allowed: alibi"),
        (None, r"pos_scheme in the config is None; it must be an object"),
    ]:
        (tmp_path / "adapter_config.json").write_text(json.dumps(values | {"pos_scheme": entry}))
        with pytest.raises(CheckpointError, match=message):
            PeftModel.from_pretrained(base_of("t5"), str(tmp_path))


def test_auto_classes_of_peft(adapters: dict[str, str], tmp_path: Path) -> None:
    small_model("gpt2", True).save_pretrained(tmp_path / "stock")
    swapped("gpt2", True, "t5").save_pretrained(tmp_path / "swapped")
    adapted = add_lora(hf_posswap.AutoModelForCausalLM.from_pretrained(tmp_path / "swapped"), rank=2)
    trained = train(adapted)
    adapted.save_pretrained(str(tmp_path / "on-swapped"))
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "on-swapped"))), trained)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "on-swapped")
    assert torch.equal(logits(again), trained)
    add_lora(
        hf_posswap.AutoModelForCausalLM.from_pretrained(tmp_path / "stock", pos_scheme="t5"), rank=2
    ).save_pretrained(str(tmp_path / "on-stock"))
    for auto in (AutoPeftModelForCausalLM, transformers.AutoModelForCausalLM):
        with pytest.raises(AdapterError, match="but this base model has its stock scheme 'learned'"):
            auto.from_pretrained(str(tmp_path / "on-stock"))


@pytest.mark.parametrize(("architecture", "causal"), [("gpt2", True), ("bert", False), ("llama", True)])
@pytest.mark.parametrize("pos_scheme", ["t5", None])
def test_one_call_loads_base_and_adapter(
    architecture: str, causal: bool, pos_scheme: str | None, tmp_path: Path
) -> None:
    base, folder = tmp_path / "base", tmp_path / "adapter"
    small_model(architecture, causal).save_pretrained(base)
    auto: Any = hf_posswap.AutoModelForCausalLM if causal else hf_posswap.AutoModelForMaskedLM
    adapted = add_lora(auto.from_pretrained(base, pos_scheme=pos_scheme), rank=2)
    trained = train(adapted)
    adapted.save_pretrained(str(folder))
    loaded = load_adapter(folder)
    assert torch.equal(logits(loaded), trained)
    assert type(loaded.get_base_model()) is type(adapted.get_base_model())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert any(parameter.requires_grad for parameter in load_adapter(folder, is_trainable=True).parameters())
    half = load_adapter(folder, base, dtype=torch.bfloat16)
    assert half.get_base_model().dtype == torch.bfloat16
    if pos_scheme is not None:
        auto.from_pretrained(base, pos_scheme=pos_scheme).save_pretrained(tmp_path / "swapped")
        assert torch.equal(logits(load_adapter(folder, tmp_path / "swapped")), trained)
        auto.from_pretrained(base, pos_scheme="alibi").save_pretrained(tmp_path / "other")
        with pytest.raises(AdapterError, match="scheme 't5', but this base model is swapped to scheme 'alibi'"):
            load_adapter(folder, tmp_path / "other")


def test_loading_says_what_is_missing(adapters: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"does not name the model under it.*load_adapter\(folder, base=model\)"):
        load_adapter(adapters["t5"])
    with pytest.raises(AdapterError, match=r"\['dtype'\] are for loading a base model, but base is a model"):
        load_adapter(adapters["t5"], base_of("t5"), dtype=torch.float32)
    small_model("bert", False).save_pretrained(tmp_path / "bert")
    config = json.loads((Path(adapters["t5"]) / "adapter_config.json").read_text())
    (tmp_path / "strange").mkdir()
    config |= {"task_type": None, "auto_mapping": {"base_model_class": "Thing", "parent_library": "os"}}
    (tmp_path / "strange" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=r"was trained on a Thing, which bert does not have"):
        load_adapter(tmp_path / "strange", tmp_path / "bert")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank is 0; it must be a positive integer"),
        ({"rank": 2.0}, "rank is 2.0"),
        ({"rank": True}, "rank is True"),
        ({"rank": 2, "alpha": 0}, "alpha is 0; it must be positive"),
        ({"rank": 2, "alpha": float("nan")}, "alpha is nan"),
        ({"rank": 2, "dropout": 1.0}, "dropout is 1.0; it must be at least 0 and less than 1"),
        ({"rank": 2, "dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_bad_numbers(arguments: dict[str, Any], message: str) -> None:
    model = base_of("t5")
    with pytest.raises(AdapterError, match=message):
        add_lora(model, **arguments)
    assert not hasattr(model, "peft_config")


def test_what_cannot_be_adapted() -> None:
    with pytest.raises(AdapterError, match=r"PeftModelForCausalLM is no transformers model.*add_adapter\(name"):
        add_lora(add_lora(base_of("t5"), rank=2), rank=2)
    config = transformers.T5Config(d_model=16, num_layers=1, num_heads=2, d_ff=16, vocab_size=20, d_kv=8)
    with pytest.raises(UnsupportedError, match="model type 't5' is not supported"):
        add_lora(transformers.T5ForConditionalGeneration(config), rank=2)
    with pytest.raises(UnsupportedError, match=r"the model has adapters \['default'\].*Swap first, then adapt"):
        hf_posswap.swap(add_lora(small_model("gpt2", True), rank=2).get_base_model(), "alibi")


def test_the_control_is_plain_lora(adapters: dict[str, str]) -> None:
    saved = json.loads((Path(adapters["stock"]) / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LORA"
    assert "pos_scheme" not in saved
    config = PeftConfig.from_pretrained(adapters["stock"])
    assert type(config) is LoraConfig
    adapted = add_lora(small_model("gpt2", True), rank=2)
    assert type(adapted) is peft.PeftModelForCausalLM
    assert not [name for name, p in adapted.named_parameters() if p.requires_grad and "lora_" not in name]


def test_errors_can_be_caught_together() -> None:
    assert issubclass(AdapterError, PosSwapError)


LOAD = """
import sys
{first}
import peft
from transformers import GPT2Config, GPT2LMHeadModel
for folder in sys.argv[1:]:
    for load in (peft.PeftModel.from_pretrained, GPT2LMHeadModel.load_adapter):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=32))
        try:
            load(model, folder)
            print("loaded")
        except Exception as error:
            print(type(error).__name__, error)
"""


def test_peft_without_hf_posswap_fails(adapters: dict[str, str]) -> None:
    done = python(LOAD.format(first=""), adapters["none"], adapters["stock"], without_hf_posswap=True)
    assert done.stdout.splitlines() == ["KeyError 'POSSWAP_LORA'"] * 2 + ["loaded"] * 2, done.stderr


@pytest.mark.parametrize(
    "first",
    [
        "import peft, hf_posswap",
        "import hf_posswap, importlib.util; importlib.util.find_spec('peft')",
        "import hf_posswap.adapters.carried",
    ],
)
def test_importing_hf_posswap_is_enough_in_any_order(first: str, adapters: dict[str, str]) -> None:
    done = python(LOAD.format(first=first), adapters["none"], adapters["stock"])
    lines = done.stdout.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["AdapterError"] * 2 + ["loaded"] * 2, done.stderr
    assert "was trained on a model swapped to scheme 'none', but this base model has its stock scheme" in lines[0]


def test_importing_hf_posswap_does_not_import_peft() -> None:
    done = python(
        "import sys, hf_posswap, hf_posswap.training; print('peft' in sys.modules)\n"
        "import peft, inspect; print(peft.__spec__.loader is peft.__loader__, 'PeftModel' in inspect.getsource(peft))"
    )
    assert done.stdout.split() == ["False", "True", "True"], done.stderr


PROMPTS = [peft.PromptTuningConfig, peft.PromptEncoderConfig]


@pytest.mark.parametrize("config_class", PROMPTS, ids=lambda config_class: config_class.__name__)
def test_prompt_learning_carries_the_scheme(config_class: Any, tmp_path: Path) -> None:
    tokens = torch.arange(12)[None]
    model = swapped("gpt2", True, "t5")
    adapted: Any = get_peft_model(model, config_class(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    assert hf_posswap.is_swapped(adapted)
    expected = adapted(input_ids=tokens).logits
    adapted.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"].startswith("POSSWAP_P")
    for other in (small_model("gpt2", True), swapped("gpt2", True, "alibi")):
        with pytest.raises(AdapterError, match="trained on a model swapped to scheme 't5'"):
            PeftModel.from_pretrained(other, str(tmp_path))
    again = PeftModel.from_pretrained(swapped("gpt2", True, "t5"), str(tmp_path)).eval()
    assert torch.equal(again(input_ids=tokens).logits, expected)


@pytest.mark.parametrize("config_class", PROMPTS, ids=lambda config_class: config_class.__name__)
def test_a_stock_models_prompt_is_refused_by_a_swapped_one(config_class: Any, tmp_path: Path) -> None:
    stock = get_peft_model(small_model("gpt2", True), config_class(task_type="CAUSAL_LM", num_virtual_tokens=3))
    stock.save_pretrained(str(tmp_path))
    assert "pos_scheme" not in json.loads((tmp_path / "adapter_config.json").read_text())
    with pytest.raises(AdapterError, match="trained on a stock model"):
        PeftModel.from_pretrained(swapped("gpt2", True, "t5"), str(tmp_path))
