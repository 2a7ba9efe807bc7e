"""Continuous batching gives the text that `generate` gives, or refuses before a thread begins."""

import logging
from typing import Any

import pytest
import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

import hf_posswap
from hf_posswap.errors import BackendError, UnsupportedError
from hf_posswap.schemes import SchemeLayer
from tests.families.configs import tiny_model
from tests.matrix.cells import Cell, default_cells, random_tokens, randomise, representative_cells, small_model

# Options change what a scheme computes, not where it acts, which is what decides here.
CAUSAL = [cell for cell in representative_cells() if cell.causal and cell.architecture != "bert"]
"""BERT's decoders are not among the models that transformers batches so."""
SIZES: dict[str, Any] = {"num_blocks": 4, "max_batch_tokens": 64}
"""A small cache; by default transformers takes all memory there is."""
NEW = 6


def prompts() -> list[list[int]]:
    tokens = random_tokens(2, 12)
    return [tokens[0].tolist(), tokens[1, :7].tolist()]


def in_batches(model: Any) -> list[list[int]]:
    """What continuous batching makes of the prompts."""
    settings = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    outputs = model.generate_batch(
        prompts(), generation_config=settings, continuous_batching_config=ContinuousBatchingConfig(**SIZES),
        warmup=False,
    )  # fmt: skip
    assert not any(output.error for output in outputs.values())
    return [output.generated_tokens for output in outputs.values()]


def one_by_one(model: Any) -> list[list[int]]:
    settings: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return [model.generate(torch.tensor([text]), **settings)[0, len(text) :].tolist() for text in prompts()]


def made(cell: Cell, backend: str) -> Any:
    """The cell's model. Continuous batching takes the number of key heads from any config that has such a field."""
    heads = {"num_key_value_heads": 4} if cell.architecture == "gpt2" else {}
    model = hf_posswap.swap(small_model(cell.architecture, True, attn_implementation=backend, **heads), cell.config)
    randomise(model)
    return model


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("cell", CAUSAL, ids=str)
def test_it_gives_the_text_of_generate_or_refuses(cell: Cell, backend: str) -> None:
    model = made(cell, backend)
    if any(module.enters_attention for module in model.modules() if isinstance(module, SchemeLayer)):
        for ask in (
            lambda: in_batches(model),
            lambda: model.generate(random_tokens(2, 8), cache_implementation="paged", max_new_tokens=4),
            lambda: model.init_continuous_batching(),
        ):
            with pytest.raises(UnsupportedError, match=r"continuous batching .*cannot run scheme .*Use model.generate"):
                ask()
        return
    assert in_batches(model) == one_by_one(model)
    assert model.config._attn_implementation == backend


def test_schemes_of_both_kinds_were_tried() -> None:
    acting = [any(m.enters_attention for m in made(cell, "sdpa").modules() if isinstance(m, SchemeLayer))
              for cell in default_cells() if cell in CAUSAL]  # fmt: skip
    assert set(acting) == {True, False}


def test_attention_that_is_written_anew_is_refused() -> None:
    model = hf_posswap.swap(tiny_model("bloom", True), "none")
    with pytest.raises(UnsupportedError, match="cannot run scheme 'none' in 'bloom'"):
        model.generate_batch([[5, 6, 7]])


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_a_paged_function_without_a_paged_cache_is_refused(cell: Cell) -> None:
    """Stock attention by it is not causal: other logits, without a word."""
    model = cell.swapped()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model.set_attn_implementation("paged|eager")
    with pytest.raises(BackendError, match="'paged|eager' is for continuous batching"):
        model(random_tokens(2, 12))
    model.set_attn_implementation("eager")
    assert model(random_tokens(2, 12)).logits.isfinite().all()


def test_a_stock_model_is_batched_so() -> None:
    """What refuses is ours, not the release."""
    model = transformers.LlamaForCausalLM(small_model("llama", True).config).eval()
    assert in_batches(model) == one_by_one(model)
