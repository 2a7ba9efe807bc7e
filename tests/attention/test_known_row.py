"""The row of a bias that decoding layers share: found for the same bias, mask and shapes only."""

from typing import Any

import pytest
import torch

import hf_posswap
from hf_posswap.attention import paths, sdpa
from hf_posswap.swapped.cache_view import cache_keyword
from tests.matrix.cells import TRAIN_LENGTH, random_tokens, small_model


def decoded(model: Any, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The logits of the last token, read through a cache."""
    before = None if mask is None else mask[:, :-1]
    with torch.no_grad():
        outputs = model(tokens[:, :-1], attention_mask=before, use_cache=True)
        name = cache_keyword(outputs)
        assert name is not None
        found: torch.Tensor = model(tokens[:, -1:], attention_mask=mask, **{name: outputs[name]}).logits
    return found


def counted(function: Any, calls: list[str], name: str) -> Any:
    """The function, which notes its calls."""

    def call(*args: Any) -> Any:
        calls.append(name)
        return function(*args)

    return call


@pytest.mark.parametrize(
    ("scheme", "rows", "searches"),
    [
        ("alibi", 1, 1),
        ("t5", 1, 1),
        ("relative_bias", 3, 3),
        ("t5:layers=0,alibi", 2, 2),
        ("alibi:window=4", 1, 3),
        ("transformer_xl", 3, 3),
    ],
)
@pytest.mark.parametrize("padded", [False, True])
def test_layers_share_a_row_and_its_path_only_if_their_bias_is_the_same(
    scheme: str, rows: int, searches: int, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hf_posswap.swap(small_model("llama", True), scheme)
    tokens = random_tokens(2, TRAIN_LENGTH)
    mask = torch.ones_like(tokens) if padded else None
    if mask is not None:
        mask[0, :5] = 0
    made: list[str] = []
    monkeypatch.setattr(sdpa, "_single_row", counted(sdpa._single_row, made, "row"))
    monkeypatch.setattr(paths, "single_query_attention", counted(paths.single_query_attention, made, "search"))
    last = decoded(model, tokens, mask)
    assert (made.count("row"), made.count("search")) == (rows, searches)
    with torch.no_grad():
        whole = model(tokens, attention_mask=mask, use_cache=False).logits[:, -1:]
    torch.testing.assert_close(last, whole, atol=1e-4, rtol=1e-4)
