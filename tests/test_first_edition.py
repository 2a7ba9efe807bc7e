"""Checkpoints that were written before swaps went through transformers' seams: they load, and give what they gave."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hf_posswap

CHECKPOINTS = Path(__file__).parent / "checkpoints"


@pytest.mark.parametrize("name", ["gpt2-t5", "llama-rope-yarn"])
def test_a_checkpoint_of_the_first_edition_gives_what_it_gave(name: str) -> None:
    model = hf_posswap.AutoModelForCausalLM.from_pretrained(CHECKPOINTS / name).eval()
    expected = load_file(CHECKPOINTS / name / "expected.safetensors")
    with torch.no_grad():
        logits = model(expected["tokens"]).logits
    torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=1e-5)
    assert hf_posswap.is_swapped(model)
    assert "format_version" in model.config.pos_scheme


def test_it_is_restored_to_its_stock_model() -> None:
    model = hf_posswap.AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "gpt2-t5")
    table = model.transformer.wpe.table.clone()
    assert torch.equal(hf_posswap.restore(model).transformer.wpe.weight, table)
