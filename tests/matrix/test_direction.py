"""Invariant 8: causal models see no future; encoders are mirrored exactly by symmetric biases and by no others.

Decoders that a config makes bidirectional are encoders; whatever changes the direction after the swap is refused.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hf_posswap
from hf_posswap.architectures.model_types import class_name_of
from hf_posswap.errors import BackendError, UnsupportedError
from hf_posswap.schemes import schemes
from hf_posswap.swapped.capabilities import CORE
from tests.matrix.cells import (
    Cell,
    all_cells,
    class_of,
    default_cells,
    fitted,
    random_tokens,
    randomise,
    small_model,
    supported_cells,
)

DECODERS = [cell for cell in all_cells() if cell.causal]
CAUSAL = [cell for cell in default_cells() if cell.causal]
WITHOUT_FLEX = [name for name in CORE if not class_of(name, class_name_of(name, "AutoModel"))._supports_flex_attn]
BIDIRECTIONAL = [
    *((cell, backend) for cell in DECODERS for backend in ("eager", "sdpa")),
    *((cell, "flex_attention") for cell in DECODERS if cell.is_default and cell.architecture not in WITHOUT_FLEX),
]


@pytest.mark.parametrize("cell", [cell for cell in supported_cells() if cell.causal], ids=str)
def test_no_future_leak(cell: Cell) -> None:
    model = cell.swapped()
    tokens = random_tokens(2, 24)
    changed = tokens.clone()
    changed[:, 15:] = random_tokens(2, 9, seed=9)
    with torch.no_grad():
        before, after = model(tokens).logits, model(changed).logits
        shorter = model(tokens[:, :15]).logits
    torch.testing.assert_close(after[:, :15], before[:, :15], atol=1e-5, rtol=0)
    torch.testing.assert_close(shorter, before[:, :15], atol=2e-4, rtol=1e-4)
    assert (after[:, 15:] - before[:, 15:]).abs().max() > 1e-3


@pytest.mark.parametrize("cell", [cell for cell in supported_cells() if not cell.causal], ids=str)
def test_mirror(cell: Cell) -> None:
    model = cell.swapped()
    tokens = random_tokens(2, 20)
    with torch.no_grad():
        forward, backward = model(tokens).logits, model(tokens.flip(1)).logits.flip(1)
    difference = (forward - backward).abs().max()
    if model.base_model.pos_scheme.symmetric():
        assert difference < 2e-4
    else:
        assert difference > 1e-2


def test_schemes_with_and_without_a_direction_are_among_the_encoders() -> None:
    declared = [cell.swapped().base_model.pos_scheme.symmetric() for cell in default_cells() if not cell.causal]
    assert any(declared)
    assert not all(declared)


def made_bidirectional(cell: Cell, backend: str) -> Any:
    """A stock decoder whose config makes it bidirectional."""
    model = small_model(cell.architecture, causal=True)
    model.set_attn_implementation(backend)
    model.config.is_causal = False
    return model


def read(model: Any, text: Tensor, before: int = 0, after: int = 0) -> Tensor:
    """Logits of texts (B, L) that stand alone, or beside padding."""
    if not before + after:
        return model(text, use_cache=False).logits
    left, right = (torch.zeros(len(text), number, dtype=torch.long) for number in (before, after))
    mask = torch.cat((left, torch.ones_like(text), right), dim=1)
    logits = model(torch.cat((left, text, right), dim=1), attention_mask=mask, use_cache=False).logits
    return logits[:, before : before + text.shape[1]]


@pytest.mark.parametrize(("cell", "backend"), BIDIRECTIONAL, ids=str)
def test_a_decoder_made_bidirectional_takes_a_scheme_as_an_encoder_does(cell: Cell, backend: str) -> None:
    model = made_bidirectional(cell, backend)
    try:
        hf_posswap.swap(model, cell.config)
    except (UnsupportedError, BackendError) as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert any(reason in refusal for reason in REASONS), refusal
        return
    randomise(fitted(model))
    text = random_tokens(2, 12)
    other = text.clone()
    other[:, -1] = (other[:, -1] + 1) % 90 + 3
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # flex_attention, see test_backends.py
        alone = read(model, text)
        assert (read(model, other)[:, 0] - alone[:, 0]).abs().max() > 1e-3, "the last token does not reach the first"
        torch.testing.assert_close(read(model, text, before=4), alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(read(model, text, after=4), alone, atol=1e-4, rtol=1e-4)
        if backend == "eager":
            described = hf_posswap.describe(model)
            assert (described.mode, described.scheme) == ("encoder", cell.config.name)


CAUSAL_ONLY = {scheme.name: scheme.encoder_refusal for scheme in schemes if not scheme.supports_encoder}
REASONS = (
    *CAUSAL_ONLY.values(),
    "is for causal models",  # ALiBi's causal form, FIRE's learned threshold
    "has no position table",
    "a model without RoPE has learnt to turn none",
    "turns keys otherwise",
    "only if the model rotates whole heads",
    "backend 'flex_attention' cannot carry",
)
"""Why such a model refuses a scheme: what an encoder, this family or the backend refuses too."""


def test_most_schemes_enter_a_decoder_made_bidirectional() -> None:
    entered = set()
    for cell in DECODERS:
        model = made_bidirectional(cell, "sdpa")
        try:
            hf_posswap.swap(model, cell.config, verify=False)
        except UnsupportedError:
            continue
        entered.add((cell.architecture, cell.config.name))
    assert {(cell.architecture, cell.config.name) for cell in CAUSAL if cell.config.name not in CAUSAL_ONLY} == entered


@pytest.mark.parametrize("how", ["config", "keyword", "modules"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("cell", CAUSAL, ids=str)
def test_a_decoder_made_bidirectional_after_the_swap_is_refused(
    cell: Cell, backend: str, how: str, tmp_path: Path
) -> None:
    model = cell.swapped()
    model.set_attn_implementation(backend)
    if how == "modules":
        attending = [module for module in model.base_model.pos_layers if hasattr(module, "is_causal")]
        if not attending:
            pytest.skip("the scheme enters at the embeddings alone, in the stock model's own layers")
        for module in attending:
            module.is_causal = False
    elif how == "config":
        model.config.is_causal = False
    arguments = {"is_causal": False} if how == "keyword" else {}
    with pytest.raises(UnsupportedError, match="was swapped in for causal attention, and"):
        model(random_tokens(1, 12), **arguments)
    if how == "keyword":
        assert model(random_tokens(1, 12), is_causal=True).logits.isfinite().all()
        return
    with pytest.raises(UnsupportedError, match="was swapped in for causal attention, and"):
        hf_posswap.describe(model)
    with pytest.raises(UnsupportedError, match="was swapped in for causal attention, and"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    model.config.is_causal = True
    for module in model.base_model.pos_layers:
        module.is_causal = True
    assert hf_posswap.describe(model).mode == "causal"


@pytest.mark.parametrize("cell", [cell for cell in default_cells() if not cell.causal], ids=str)
def test_an_encoder_is_not_read_causally(cell: Cell) -> None:
    with pytest.raises(
        UnsupportedError, match=r"for bidirectional attention, and the forward was given is_causal=True"
    ):
        cell.swapped()(random_tokens(1, 12), is_causal=True)
