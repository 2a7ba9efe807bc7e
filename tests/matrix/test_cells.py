"""The table itself: what is refused says why and leaves the model alone; what is registered is documented."""

from pathlib import Path

import pytest
import torch

import hf_posswap
from hf_posswap.errors import PosSwapError, UnsupportedError
from hf_posswap.schemes import scheme_class
from tests.matrix.cells import Cell, all_cells, random_tokens, refusal, supported_cells

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("cell", [cell for cell in all_cells() if cell not in supported_cells()], ids=str)
def test_a_refused_cell_raises_with_its_reason_and_changes_nothing(cell: Cell) -> None:
    model = cell.stock()
    tokens = random_tokens(1, 8)
    before, classes = model(tokens).logits, [type(module) for module in model.modules()]
    with pytest.raises(UnsupportedError, match=f"{cell.config.name!r} cannot enter {cell.architecture!r}.*: .{{20,}}"):
        hf_posswap.swap(model, cell.config)
    assert not hf_posswap.is_swapped(model)
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(model(tokens).logits, before)


def test_refused_default_cells_say_why() -> None:
    refused = [cell for cell in hf_posswap.capabilities() if not cell.supported]
    found = {(cell.architecture, cell.mode, cell.scheme) for cell in refused}
    causal_only = [name for name in hf_posswap.list_schemes() if not scheme_class(name).supports_encoder]
    rotating = ("xpos", "self_extend", "rerope", "dual_chunk")  # q and k themselves, and not by the model's angles
    refused_in_gemma = {("gemma3_text", "causal", name) for name in rotating}
    assert found == {("bert", "encoder", name) for name in causal_only} | refused_in_gemma
    reasons = {cell.scheme: cell.reason or "" for cell in refused if cell.mode == "encoder"}
    assert "bag of words" in reasons["none"]
    assert all(scheme_class(name).encoder_refusal in reason for name, reason in reasons.items())


def test_capabilities_agree_with_what_models_do() -> None:
    declared = {(c.architecture, c.mode == "causal", c.scheme): c.supported for c in hf_posswap.capabilities()}
    for cell in all_cells():
        if cell.is_default:
            assert declared[cell.architecture, cell.causal, cell.config.name] == (refusal(cell) is None), str(cell)


def test_three_architectures_and_eight_schemes_are_in_the_matrix() -> None:
    assert {cell.architecture for cell in supported_cells()} <= set(hf_posswap.list_architectures())
    assert {cell.config.name for cell in supported_cells()} == set(hf_posswap.list_schemes())
    assert {"gpt2", "bert", "llama"} <= set(hf_posswap.list_architectures())
    seed = {"learned", "sinusoidal", "shaw", "transformer_xl", "t5", "rope", "alibi", "none"}
    assert seed <= set(hf_posswap.list_schemes())


@pytest.mark.parametrize("name", hf_posswap.list_schemes())
def test_every_scheme_says_what_it_is_and_has_a_docs_entry(name: str) -> None:
    scheme = scheme_class(name)
    for fact in ("pretty_name", "paper", "paper_url", "formula", "summary", "advice"):
        assert getattr(scheme, fact), fact
    assert scheme.paper_url.startswith("https://")
    page = (DOCS / "schemes" / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {scheme.pretty_name} (`{name}`)")
    assert f"(schemes/{name}.md)" in (DOCS / "schemes.md").read_text(encoding="utf-8")


def test_an_embedding_scheme_has_no_layers_to_choose_from() -> None:
    for cell in all_cells():
        if cell.is_default and not scheme_class(cell.config.name).acts_in_layers:
            with pytest.raises(PosSwapError, match="enters at the embeddings"):
                hf_posswap.swap(cell.stock(), {"name": cell.config.name, "layers": [0]})
