"""What is special about families, by name: their own bias, windows, softcaps, sinks, first rows, two-way decoders."""

from typing import Any

import pytest
import torch
import transformers

import hf_posswap
from hf_posswap.errors import UnsupportedError
from hf_posswap.swapped.plan import core_of
from tests.families.checks import assert_close, check_bias, check_cached, logits, randomise, tokens
from tests.families.configs import tiny_model
from tests.matrix.cells import small_model


def test_alibi_in_bloom_is_what_bloom_has() -> None:
    stock = tiny_model("bloom", True)
    with torch.no_grad():
        expected = stock(tokens(), use_cache=False).logits
    assert_close(logits(hf_posswap.swap(stock, "alibi"), tokens()), expected)


@pytest.mark.parametrize("model_type", ["bloom", "mpnet"])
def test_a_bias_of_its_own_is_replaced_as_a_whole_only(model_type: str) -> None:
    model = tiny_model(model_type, model_type == "bloom")
    with pytest.raises(UnsupportedError, match="a bias of its own.*Leave out keep_native, and name all layers"):
        hf_posswap.swap(model, "t5:keep_native=true")


def test_bloom_refuses_what_hands_nothing_on_to_its_layers() -> None:
    model = hf_posswap.swap(tiny_model("bloom", True), "alibi").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(UnsupportedError, match="gradient checkpointing runs again"):
        model(tokens(), use_cache=False).logits.sum().backward()


@pytest.mark.parametrize("scheme", ["alibi", "t5", "none", "relative_bias", "transformer_xl"])
@pytest.mark.parametrize("model_type", ["qwen2", "mistral", "gemma3_text", "gpt_oss"])
def test_a_layer_with_a_window_counts_from_the_end_of_the_text(model_type: str, scheme: str) -> None:
    changes: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    model = tiny_model(model_type, True, **(changes if model_type == "qwen2" else {}))
    hf_posswap.swap(model, scheme)
    randomise(model)
    check_cached(model, (9, 1, 1, 8, 1, 1, 1, 7, 1, 1))
    check_cached(model, (20, *[1] * 12))


def test_a_softcap_comes_before_the_bias() -> None:
    model = hf_posswap.swap(tiny_model("gemma2", True), "alibi")
    check_bias(model)
    before = logits(model, tokens())
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = 1.0
    assert (logits(model, tokens()) - before).abs().max() > 1e-3


def test_attention_sinks_take_part_in_the_softmax() -> None:
    model = hf_posswap.swap(tiny_model("gpt_oss", True), "alibi")
    check_bias(model)
    before = logits(model, tokens())
    for layer in model.model.layers:
        layer.self_attn.sinks.data += 3
    assert (logits(model, tokens()) - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("model_type", "causal", "first"), [("roberta", False, 2), ("xlm-roberta", False, 2), ("opt", True, 2)]
)
def test_the_first_usable_row_is_the_first_position(model_type: str, causal: bool, first: int) -> None:
    stock = tiny_model(model_type, causal)
    arguments = {"use_cache": False} if causal else {}
    with torch.no_grad():
        expected = stock(tokens(), **arguments).logits
    model = hf_posswap.swap(stock, "learned")
    core = core_of(model)
    assert core.pos_place.first_row == first
    assert hf_posswap.train_length(model) == core.pos_scheme.table.shape[0]
    assert_close(logits(model, tokens()), expected)


def test_one_config_object_serves_two_models() -> None:
    config = small_model("gpt2", True).config
    first, second = (transformers.GPT2LMHeadModel(config).eval() for _ in range(2))
    hf_posswap.swap(first, "alibi")
    assert second.config is config
    assert not hasattr(config, "pos_scheme")
    hf_posswap.swap(second, "none")
    assert (first.config.pos_scheme["name"], second.config.pos_scheme["name"]) == ("alibi", "none")
    assert all(getattr(module, "config", first.config) is not config for module in first.modules())


def test_encoder_decoders_are_refused_with_the_reason() -> None:
    sizes = {f"{part}_{name}": value for part in ("encoder", "decoder")
             for name, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))}  # fmt: skip
    bart = transformers.BartConfig(d_model=16, vocab_size=99, **sizes)
    with pytest.raises(UnsupportedError, match="encoder–decoder"):
        hf_posswap.swap(transformers.BartForConditionalGeneration(bart), "alibi")
