"""RoPE entries of configs: what transformers reads in them is read, and only where it is used."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import hf_posswap
from hf_posswap.architectures import architecture_of
from hf_posswap.architectures.rotary import RotarySeam
from hf_posswap.errors import UnsupportedError
from hf_posswap.schemes import schemes
from hf_posswap.schemes.chosen_rotations import ChosenRotations
from hf_posswap.schemes.rope_config import RopeConfig
from hf_posswap.swapped.plan import core_of
from tests.families.configs import tiny_model
from tests.matrix.cells import TRAIN_LENGTH, random_tokens, small_model

FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0]}
SHORT = {"original_max_position_embeddings": 8}
YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 2.0, "beta_slow": 0.2, **SHORT}
ENTRIES: dict[str, dict[str, Any]] = {
    "linear of transformers 4": {"type": "linear", "factor": 4.0},
    "dynamic of transformers 4": {"type": "dynamic", "factor": 4.0},
    "dynamic by 1": {"rope_type": "dynamic", "factor": 1.0},
    "linear by 1": {"rope_type": "linear", "factor": 1.0},
    "yarn": YARN,
    "yarn without factor": YARN | {"factor": None},
    "yarn with both mscales": YARN | {"mscale": 0.7, "mscale_all_dim": 1.0},
    "yarn with one mscale": YARN | {"mscale": 0.7},
    "yarn with mscales and a factor of its own": YARN | {"mscale": 0.7, "mscale_all_dim": 1.0, "attention_factor": 1.5},
    "longrope": {"rope_type": "longrope", "factor": 3.0, **SHORT, **FACTORS},
    "longrope without factor": {"rope_type": "longrope", **SHORT, **FACTORS},
    "longrope beyond the limit": {"rope_type": "longrope", **FACTORS, "original_max_position_embeddings": 64},
    "llama3": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **SHORT},
    "sections of images": {"rope_type": "default", "mrope_section": [2, 1, 1]},
    "an entry that nothing reads": {"type": "linear", "factor": 4.0, "finetuned": True},
}
"""`rope_parameters` as configs have them."""


def llama(entry: dict[str, Any], **changes: Any) -> Any:
    """A small Llama whose config has an entry, with the weights that it has without one."""
    return small_model("llama", True, rope_parameters={"rope_theta": 10000.0, **entry}, **changes)


def rotary(model: Any) -> RotarySeam:
    seam: RotarySeam | None = architecture_of(model.config).rotary(core_of(model))
    assert seam is not None
    return seam


@torch.no_grad()
def logits(model: Any, length: int) -> Tensor:
    out: Tensor = model(random_tokens(1, length), use_cache=False).logits
    return out


@pytest.mark.parametrize("length", [6, TRAIN_LENGTH - 4, 2 * TRAIN_LENGTH])
@pytest.mark.parametrize("entry", ENTRIES)
def test_angles_that_are_read_are_the_stock_ones(entry: str, length: int) -> None:
    """Put into a model without the entry, they give what the model with the entry does."""
    stock = llama(ENTRIES[entry])
    options = rotary(stock).options
    assert options is not None, rotary(stock).unread
    swapped = hf_posswap.swap(llama({"rope_type": "default"}), RopeConfig(**options))
    torch.testing.assert_close(logits(swapped, length), logits(stock, length), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_models_own_rope_stays_what_it_is(entry: str, tmp_path: Path) -> None:
    expected = logits(llama(ENTRIES[entry]), 28)
    model = hf_posswap.swap(llama(ENTRIES[entry]), "rope")
    torch.testing.assert_close(logits(model, 28), expected, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = hf_posswap.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, 28), logits(model, 28))
    assert torch.equal(logits(hf_posswap.restore(model), 28), expected)


UNREADABLE = {"linear by less than 1": {"rope_type": "linear", "factor": 0.5}}


ASK_NOT = [s.name for s in schemes if s.name != "rope" and not issubclass(s, ChosenRotations)]
"""The schemes that do not use the model's own frequencies."""


@pytest.mark.parametrize("entry", ["linear of transformers 4", "yarn with both mscales", *UNREADABLE])
@pytest.mark.parametrize("scheme", ASK_NOT)
def test_a_rope_that_is_swapped_out_is_not_asked_what_it_was(scheme: str, entry: str) -> None:
    without = hf_posswap.swap(llama({"rope_type": "default"}), scheme)
    swapped = hf_posswap.swap(llama((ENTRIES | UNREADABLE)[entry]), scheme)
    assert torch.equal(logits(swapped, 12), logits(without, 12))


def test_a_rope_that_cannot_be_read_stays_and_is_not_scaled() -> None:
    entry = UNREADABLE["linear by less than 1"]
    assert torch.equal(logits(hf_posswap.swap(llama(entry), "rope"), 28), logits(llama(entry), 28))
    with pytest.raises(UnsupportedError, match="cannot read.*'factor' is 0.5.*keeps it as it is"):
        hf_posswap.swap(llama(entry), "rope:yarn")


def test_two_mscales_make_the_attention_factor() -> None:
    options = rotary(llama(ENTRIES["yarn with both mscales"])).options
    assert options is not None
    expected = (0.1 * 0.7 * math.log(4) + 1) / (0.1 * 1.0 * math.log(4) + 1)
    assert options["attention_factor"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("entry", ["dynamic of transformers 4", "longrope without factor"])
@pytest.mark.parametrize("model_type", ["mistral", "qwen3", "cohere"])
def test_angles_by_length_stay_where_heads_may_not_turn_whole(model_type: str, entry: str) -> None:
    """The model's own rotation cannot be replaced by one after the cache, so `rope` leaves it alone, bit for bit."""
    long = [float(n) for n in range(1, 9)]
    parameters = {"rope_theta": 10000.0, **ENTRIES[entry], "short_factor": [1.0] * 8, "long_factor": long}
    parameters = {key: value for key, value in parameters.items() if entry.startswith("longrope") or "_f" not in key}
    model = tiny_model(model_type, True, rope_parameters=parameters)
    expected = [logits(model, length) for length in (28, 80)]
    hf_posswap.swap(model, "rope")
    assert all(torch.equal(logits(model, n), out) for n, out in zip((28, 80), expected, strict=True))
    assert "nothing: the scheme is the model's own" in str(hf_posswap.describe(model))


@pytest.mark.parametrize("scaling", ["linear", "ntk", "yarn", "llama3"])
def test_a_scaling_turns_the_share_of_the_heads_that_the_model_turns(scaling: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.GPTNeoXConfig(vocab_size=97, max_position_embeddings=32, **sizes)
    share = config.rope_parameters["partial_rotary_factor"]
    assert share < 1
    model = hf_posswap.swap(transformers.GPTNeoXForCausalLM(config).eval(), f"rope:{scaling}")
    assert model.config.pos_scheme["options"]["partial_rotary_factor"] == share
    with pytest.raises(UnsupportedError, match="leave out partial_rotary_factor, or give the model's own"):
        hf_posswap.swap(model, f"rope:{scaling}:partial_rotary_factor={2 * share}", replace=True)


@pytest.mark.parametrize("scaling", ["yarn", "llama3"])
@pytest.mark.parametrize("own", ["yarn", "llama3"])
def test_a_scaling_of_a_model_that_was_stretched_starts_from_what_it_was_trained_on(own: str, scaling: str) -> None:
    extra = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if own == "llama3" else {}
    stretched = {"rope_type": own, "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0} | extra
    model = small_model("llama", True, max_position_embeddings=128, rope_parameters=stretched)
    hf_posswap.swap(model, f"rope:{scaling}")
    assert model.config.pos_scheme["options"]["original_length"] == 32
