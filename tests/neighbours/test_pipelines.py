"""`pipeline` on saved swapped models, given the folder alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import pipeline

import hf_posswap
from tests.neighbours.conftest import TEXT

LONG = " ".join([TEXT] * 40)
"""More tokens than either stock model can read."""


def test_text_generation(gpt2_folder: str, gpt2: Any, tokenizer: Any) -> None:
    pipe = pipeline("text-generation", gpt2_folder)
    settings = {"max_new_tokens": 8, "do_sample": False}
    for text in (TEXT, LONG):
        tokens = tokenizer(text, return_tensors="pt")
        expected = gpt2.generate(**tokens, pad_token_id=tokenizer.eos_token_id, **settings)
        answer = pipe(text, return_full_text=True, **settings)[0]["generated_text"]
        assert answer == tokenizer.decode(expected[0], skip_special_tokens=True)


def test_feature_extraction(bert_folder: str) -> None:
    pipe = pipeline("feature-extraction", bert_folder)
    model = transformers.AutoModel.from_pretrained(bert_folder).eval()
    for text in (TEXT, LONG):
        tokens = pipe.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            expected = model(**tokens).last_hidden_state
        torch.testing.assert_close(torch.tensor(pipe(text)), expected, atol=1e-5, rtol=1e-5)
    assert tokens.input_ids.shape[1] > 512


@pytest.fixture(scope="module")
def with_heads(minilm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The real encoder with fresh heads, saved: a masked language model and a classifier."""
    folders = {}
    for auto in ("AutoModelForMaskedLM", "AutoModelForSequenceClassification"):
        folders[auto] = str(tmp_path_factory.mktemp(auto))
        model = getattr(hf_posswap, auto).from_pretrained(minilm_path, dtype=torch.float32, pos_scheme="alibi")
        model.save_pretrained(folders[auto])
        tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_path)
        tokenizer.model_max_length = 4096
        tokenizer.save_pretrained(folders[auto])
    return folders


@torch.no_grad()
def test_fill_mask(with_heads: dict[str, str]) -> None:
    folder = with_heads["AutoModelForMaskedLM"]
    pipe = pipeline("fill-mask", folder)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokens = pipe.tokenizer(f"{LONG} the [MASK] came.", return_tensors="pt")
    place = int((tokens.input_ids[0] == pipe.tokenizer.mask_token_id).nonzero())
    assert place > 512
    best = model(**tokens).logits[0, place].softmax(-1).max(-1)
    answer = pipe(f"{LONG} the [MASK] came.")[0]
    assert answer["token"] == int(best.indices)
    assert answer["score"] == pytest.approx(float(best.values), rel=1e-4)


@torch.no_grad()
def test_text_classification(with_heads: dict[str, str]) -> None:
    folder = with_heads["AutoModelForSequenceClassification"]
    pipe = pipeline("text-classification", folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    expected = model(**pipe.tokenizer(LONG, return_tensors="pt")).logits[0].softmax(-1).max()
    assert pipe(LONG)[0]["score"] == pytest.approx(float(expected), rel=1e-4)
