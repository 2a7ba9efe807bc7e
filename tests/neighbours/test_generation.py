"""`generate` in its many ways; greedy, beam, static cache and left padding for every scheme are in the matrix."""

from threading import Thread
from typing import Any

import pytest
import torch
import transformers
from transformers import QuantizedCache

import hf_posswap
from tests.matrix.cells import given
from tests.neighbours.conftest import TEXT

GREEDY: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def test_sampling_draws_the_same_with_and_without_a_cache(gpt2: Any, prompt: torch.Tensor) -> None:
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        settings = GREEDY | {"do_sample": True, "top_p": 0.9, "temperature": 0.8}
        texts.append(gpt2.generate(prompt, max_new_tokens=24, use_cache=use_cache, **settings))
    assert torch.equal(*texts)
    assert not torch.equal(texts[0], gpt2.generate(prompt, max_new_tokens=24, **GREEDY))


@pytest.mark.parametrize("assistant", ["a smaller swapped model", "a stock model", "the prompt"])
def test_assisted_generation_gives_the_greedy_text(gpt2: Any, prompt: torch.Tensor, assistant: str) -> None:
    helper: dict[str, Any] = {"prompt_lookup_num_tokens": 4}
    if assistant != "the prompt":
        small = hf_posswap.restore(transformers.AutoModelForCausalLM.from_pretrained(gpt2.name_or_path))
        small.transformer.h = small.transformer.h[:2]
        small.config.n_layer = 2
        if "swapped" in assistant:
            hf_posswap.swap(small, "rope")
        helper = {"assistant_model": small.eval()}
    expected = gpt2.generate(prompt, max_new_tokens=24, **GREEDY)
    assert torch.equal(gpt2.generate(prompt, max_new_tokens=24, **helper, **GREEDY), expected)


def test_generation_goes_on_past_the_old_limit(gpt2: Any, prompt: torch.Tensor) -> None:
    limit = hf_posswap.train_length(gpt2)
    text = gpt2.generate(prompt, max_new_tokens=limit + 40, **GREEDY)
    assert text.shape[1] > limit + 40
    with torch.no_grad():
        logits = gpt2(text, use_cache=False).logits
    best, chosen = logits[:, prompt.shape[1] - 1 : -1].max(-1).values, text[:, prompt.shape[1] :, None]
    picked = logits[:, prompt.shape[1] - 1 : -1].gather(-1, chosen)[..., 0]
    torch.testing.assert_close(picked, best, atol=1e-4, rtol=0)


def test_a_streamer_hears_the_text_as_it_comes(gpt2: Any, prompt: torch.Tensor, tokenizer: Any) -> None:
    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    arguments = {"inputs": prompt, "max_new_tokens": 16, "streamer": streamer} | GREEDY
    thread = Thread(target=gpt2.generate, kwargs=arguments)
    thread.start()
    pieces = list(streamer)
    thread.join()
    whole = gpt2.generate(prompt, max_new_tokens=16, **GREEDY)[0, prompt.shape[1] :]
    assert len(pieces) > 4
    assert "".join(pieces) == tokenizer.decode(whole)


@pytest.mark.needs("hqq")
@pytest.mark.parametrize("scheme", ["alibi", "rope", "none"])
def test_a_quantised_cache_stays_near_the_exact_one(gpt2_books_path: Any, tokenizer: Any, scheme: str) -> None:
    model = hf_posswap.AutoModelForCausalLM.from_pretrained(
        gpt2_books_path, dtype=torch.float32, pos_scheme=scheme
    ).eval()
    tokens = tokenizer(TEXT * 4, return_tensors="pt").input_ids
    cache = QuantizedCache("hqq", model.config, nbits=4, residual_length=8, q_group_size=32)
    parts, cached = [], given(model, cache)
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        for chunk in (tokens[:, :40], *tokens[:, 40:].split(1, dim=1)):
            parts.append(model(chunk, use_cache=True, **cached).logits)
    actual = torch.cat(parts, dim=1)
    difference = (actual - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 1e-6 < difference < 0.05
