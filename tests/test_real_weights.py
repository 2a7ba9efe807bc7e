"""The promises on real pretrained weights: a Llama of 135M parameters, a BERT encoder and a small GPT-2."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import hf_posswap
from hf_posswap.sources import ModelSource

PROMPT = "The sea was calm that morning, and the captain had not yet come on deck when the first mate"


@pytest.fixture(scope="module")
def tokenizer(smollm2_source: ModelSource) -> Any:
    return transformers.AutoTokenizer.from_pretrained(smollm2_source.path, **smollm2_source.from_pretrained_kwargs)


@pytest.fixture(scope="module")
def smollm2(smollm2_source: ModelSource) -> Any:
    """The stock model; tests swap copies or restore it."""
    source = smollm2_source
    return transformers.AutoModelForCausalLM.from_pretrained(
        source.path, dtype=torch.float32, **source.from_pretrained_kwargs
    ).eval()


@pytest.fixture
def tokens(tokenizer: Any) -> torch.Tensor:
    return tokenizer(PROMPT * 4, return_tensors="pt").input_ids


@torch.no_grad()
def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return model(tokens).logits


def test_rope_for_rope_is_the_same_llama(smollm2: Any, tokens: torch.Tensor) -> None:
    expected = logits(smollm2, tokens)
    hf_posswap.swap(smollm2, "rope")
    try:
        torch.testing.assert_close(logits(smollm2, tokens), expected, atol=1e-5, rtol=0)
        assert hf_posswap.describe(smollm2).probe.largest <= 1e-5  # type: ignore[union-attr]
    finally:
        hf_posswap.restore(smollm2)
    assert torch.equal(logits(smollm2, tokens), expected)


STOCK_SCALINGS: dict[str, dict[str, Any]] = {
    "rope:yarn:factor=4": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192},
    "rope:linear:factor=2": {"rope_type": "linear", "factor": 2.0},
    "rope:llama3:factor=8": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip


@pytest.mark.parametrize("scheme", list(STOCK_SCALINGS))
def test_rope_scalings_equal_stock_transformers(smollm2: Any, tokens: torch.Tensor, scheme: str) -> None:
    config = copy.deepcopy(smollm2.config)
    vars(config).pop("quantization_config", None)
    config.rope_parameters = STOCK_SCALINGS[scheme] | {"rope_theta": config.rope_parameters["rope_theta"]}
    stock = transformers.LlamaForCausalLM(config).eval()
    stock.load_state_dict(smollm2.state_dict())
    hf_posswap.swap(smollm2, scheme)
    try:
        actual = logits(smollm2, tokens)
    finally:
        hf_posswap.restore(smollm2)
    expected = logits(stock, tokens)
    assert (expected - logits(smollm2, tokens)).abs().max() > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_a_swapped_gguf_model_is_saved_and_loaded(
    smollm2_source: ModelSource, tokens: torch.Tensor, tmp_path: Path
) -> None:
    model = hf_posswap.AutoModelForCausalLM.from_pretrained(
        smollm2_source.path, dtype=torch.bfloat16, pos_scheme="alibi", **smollm2_source.from_pretrained_kwargs
    )
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))
    assert "quantization" not in (tmp_path / "config.json").read_text()


def test_generation_with_alibi_stays_the_same_with_a_cache(smollm2: Any, tokens: torch.Tensor) -> None:
    hf_posswap.swap(smollm2, "alibi")
    try:
        settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        mask = torch.ones_like(tokens)
        cached = smollm2.generate(tokens, attention_mask=mask, use_cache=True, **settings)
        assert torch.equal(cached, smollm2.generate(tokens, attention_mask=mask, use_cache=False, **settings))
    finally:
        hf_posswap.restore(smollm2)


@pytest.fixture(scope="module")
def minilm(minilm_path: Path) -> Any:
    return transformers.AutoModel.from_pretrained(minilm_path, dtype=torch.float32).eval()


def test_a_real_encoder_keeps_and_outgrows_its_table(minilm: Any, minilm_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_path)
    text = tokenizer("The sea was calm that morning. " * 200, return_tensors="pt", truncation=False).input_ids
    assert text.shape[1] > 1000
    short = text[:, :100]
    with torch.no_grad():
        expected = minilm(short).last_hidden_state
        hf_posswap.swap(minilm, "learned")
        torch.testing.assert_close(minilm(short).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
        hf_posswap.swap(minilm, "learned:last-row:length=2048", replace=True)
        torch.testing.assert_close(minilm(short).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
        assert minilm(text).last_hidden_state.isfinite().all()
        hf_posswap.swap(minilm, "alibi", replace=True)
        assert minilm(text).last_hidden_state.isfinite().all()
        hf_posswap.restore(minilm)
        assert torch.equal(minilm(short).last_hidden_state, expected)


def test_a_real_gpt2_reads_past_its_table(gpt2_books_path: Path) -> None:
    model = hf_posswap.AutoModelForCausalLM.from_pretrained(gpt2_books_path, dtype=torch.float32, pos_scheme="alibi")
    tokens = torch.randint(4096, (1, 1024))
    assert logits(model, tokens).isfinite().all()
    stock = hf_posswap.restore(model)
    with pytest.raises(IndexError):
        logits(stock, tokens)
