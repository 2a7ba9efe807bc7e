"""Bases whose linear layers are quantised: swapped after loading, like any other model."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import hf_posswap
from hf_posswap.errors import UnsupportedError
from tests.matrix.cells import randomise

SCHEMES = ["alibi", "rope:yarn:factor=4", "t5:per_layer=true"]


def quantisation(name: str) -> Any:
    if name == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return transformers.TorchAoConfig(Int8WeightOnlyConfig())
    four = name == "bitsandbytes-nf4"
    return transformers.BitsAndBytesConfig(
        load_in_4bit=four, load_in_8bit=not four, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stock Llama whose dimensions quantisation can take."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.08,
    )  # fmt: skip
    folder = str(tmp_path_factory.mktemp("llama"))
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def with_weights_of(quantised: Any, model: Any) -> Any:
    """Give a plain model the weights that the linear layers of a quantised one amount to."""
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.copy_(quantised.get_submodule(name)(torch.eye(layer.in_features)).T)
    return model


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("name", "rounding"),
    [
        pytest.param("torchao-int8", 1e-4, marks=pytest.mark.needs("torchao")),
        # bitsandbytes rounds what enters a layer too: to bfloat16 on a CPU, or to 8 bits.
        pytest.param("bitsandbytes-nf4", 0.05, marks=pytest.mark.needs("bitsandbytes")),
        pytest.param("bitsandbytes-int8", 0.05, marks=pytest.mark.needs("bitsandbytes")),
    ],
)
@torch.no_grad()
def test_a_quantised_base_takes_a_scheme(
    llama_folder: str, name: str, rounding: float, scheme: str, tmp_path: Path
) -> None:
    load = transformers.AutoModelForCausalLM.from_pretrained
    tokens = torch.randint(97, (2, 100), generator=torch.Generator().manual_seed(0))
    stock = load(llama_folder, dtype=torch.float32, quantization_config=quantisation(name), device_map="cpu").eval()
    before = stock(tokens).logits
    plain = load(llama_folder).eval()
    assert (plain(tokens).logits - before).abs().max() > 1e-3
    reference = hf_posswap.swap(with_weights_of(stock, plain), scheme)
    model = hf_posswap.swap(stock, scheme)
    for swapped in (reference, model):
        randomise(swapped)
    expected, logits = reference(tokens).logits, model(tokens).logits
    assert (logits - expected).square().mean().sqrt() < rounding * expected.square().mean().sqrt()
    assert (logits - before).abs().max() > 0.05
    generated = model.generate(tokens[:1, :8], max_new_tokens=80, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert generated.shape == (1, 88)
    with pytest.raises(UnsupportedError, match="quantised"):
        hf_posswap.export_native(model, tmp_path / "stock")
    assert torch.equal(hf_posswap.restore(model)(tokens).logits, before)
