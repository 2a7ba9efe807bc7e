"""sentence-transformers on a swapped encoder: texts of 4096 tokens in, embeddings out, trained, saved and loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import hf_posswap
from tests.neighbours.conftest import TEXT

pytestmark = pytest.mark.needs("sentence_transformers")


@pytest.fixture
def encoder(bert_folder: str) -> Any:
    """The swapped encoder with mean pooling; a folder without modules.json gets that."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(bert_folder, device="cpu")


def mean_pooled(folder: str, text: str) -> torch.Tensor:
    """The embedding without sentence-transformers."""
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        return transformers.AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state.mean(1)[0]


@pytest.mark.slow
def test_long_texts_are_read_to_their_end(encoder: Any, bert_folder: str, tmp_path: Path) -> None:
    assert encoder.max_seq_length == 4096
    longest = " ".join([TEXT] * 204)
    assert 3900 < len(encoder.tokenizer(longest).input_ids) <= 4096
    vector = encoder.encode([longest], convert_to_tensor=True)[0]
    torch.testing.assert_close(vector, mean_pooled(bert_folder, longest), atol=1e-4, rtol=1e-4)
    long = [" ".join([TEXT] * 40 + [end]) for end in ("a storm came.", "all were asleep.")]
    vectors = encoder.encode([TEXT, *long], convert_to_tensor=True, batch_size=3)
    torch.testing.assert_close(vectors[0], mean_pooled(bert_folder, TEXT), atol=1e-4, rtol=1e-4)
    assert (vectors[1] - vectors[2]).abs().max() > 1e-4


def test_saved_and_loaded(encoder: Any, tmp_path: Path) -> None:
    """sentence-transformers cuts texts at the tokenizer's limit or the one that the model's config states."""
    from sentence_transformers import SentenceTransformer

    encoder.save(str(tmp_path / "saved"))
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert loaded.max_seq_length == 4096
    assert hf_posswap.is_swapped(loaded[0].auto_model)
    texts = [TEXT, " ".join([TEXT] * 40)]
    expected = encoder.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(loaded.encode(texts, convert_to_tensor=True), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("scheme", "limit"), [("alibi", int(1e30)), ("learned:last-row:length=1024", 1024), ("learned", 512)]
)
def test_texts_are_cut_where_the_scheme_ends(minilm_path: Path, scheme: str, limit: int, tmp_path: Path) -> None:
    """With the tokenizer that the commands save beside a model."""
    from sentence_transformers import SentenceTransformer

    model = hf_posswap.AutoModel.from_pretrained(minilm_path, pos_scheme=scheme)
    model.save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_path)
    hf_posswap.fit_tokenizer(tokenizer, model).save_pretrained(tmp_path)
    encoder = SentenceTransformer(str(tmp_path), device="cpu")
    assert encoder.max_seq_length == limit
    tokens = len(tokenizer(" ".join([TEXT] * 60), truncation=False).input_ids)
    assert tokens > 1024
    read = encoder.tokenize([" ".join([TEXT] * 60)])["input_ids"].shape[1]
    assert read == min(limit, tokens)


def test_a_loaded_model_is_swapped_where_it_is(minilm_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(minilm_path), device="cpu")
    before = encoder.encode([TEXT], convert_to_tensor=True)
    hf_posswap.swap(encoder[0].auto_model, "learned:last-row:length=2048")
    encoder.max_seq_length = 2048
    torch.testing.assert_close(encoder.encode([TEXT], convert_to_tensor=True), before, atol=1e-5, rtol=1e-5)
    long = [" ".join([TEXT] * 40 + [end]) for end in ("a storm came.", "all were asleep.")]
    first, second = encoder.encode(long, convert_to_tensor=True)
    assert (first - second).abs().max() > 1e-4


def test_its_trainer_learns(encoder: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments, losses

    data = Dataset.from_dict({"anchor": [TEXT, "ships"] * 4, "positive": ["the sea", "a fleet of boats"] * 4})
    settings = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-3, logging_steps=1,
        report_to=[], use_cpu=True,
    )  # fmt: skip
    loss = losses.MultipleNegativesRankingLoss(encoder)
    trainer = SentenceTransformerTrainer(encoder, settings, train_dataset=data, loss=loss)
    before = encoder.encode([TEXT], convert_to_tensor=True).clone()
    trainer.train()
    assert (encoder.encode([TEXT], convert_to_tensor=True) - before).abs().max() > 1e-4
    assert all(entry["loss"] == entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
