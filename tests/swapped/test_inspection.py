"""What `inspect` finds by experiment, in models whose mechanism is known."""

import json
from typing import Any

import pytest
import transformers

import hf_posswap
from hf_posswap.errors import UnsupportedError
from tests.families.configs import tiny_model
from tests.matrix.cells import small_model


@pytest.mark.parametrize(
    ("model_type", "causal", "first"),
    [("gpt2", True, 0), ("bert", False, 0), ("roberta", False, 2), ("opt", True, 2), ("esm", False, 2)],
)
def test_a_table_is_found_by_the_rows_that_are_looked_up(model_type: str, causal: bool, first: int) -> None:
    found = hf_posswap.inspect(tiny_model(model_type, causal))
    assert found.first_row == first
    assert found.mechanism.startswith("a table of")
    assert not any(layer.turns for layer in found.layers)
    assert found.order is not None
    assert found.order > 0.01


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt_neox", "cohere", "gemma3_text"])
def test_rotation_is_seen_in_every_layer(model_type: str) -> None:
    found = hf_posswap.inspect(tiny_model(model_type, True))
    assert found.table is None
    assert all(layer.turns for layer in found.layers)
    assert found.shift is not None
    assert found.stretch is not None
    assert found.shift < 1e-4 < found.stretch


def test_layers_without_rotation_among_others_are_told_apart() -> None:
    found = hf_posswap.inspect(tiny_model("smollm3", True, num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0]))
    assert [layer.turns for layer in found.layers] == [True, False, True, False]
    assert "in 2 of 4 layers" in found.mechanism


@pytest.mark.parametrize("scheme", ["alibi", "rope", "none"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_swapped_model_shows_its_scheme(architecture: str, scheme: str) -> None:
    found = hf_posswap.inspect(hf_posswap.swap(small_model(architecture, True), scheme))
    assert found.mechanism.startswith(f"scheme {scheme}, swapped in")
    assert {layer.scheme for layer in found.layers} == {scheme}
    assert found.shift is not None
    assert found.shift < 1e-4
    if scheme == "none":
        assert found.stretch is not None
        assert found.stretch < 1e-4


def test_the_penalty_of_alibi_shows_in_the_scores() -> None:
    model = small_model("gpt2", True)
    for block in model.transformer.h:
        block.attn.c_attn.weight.data.zero_()
    found = hf_posswap.inspect(hf_posswap.swap(model, "alibi"))
    slopes = sum(2.0 ** (-2 * (head + 1)) for head in range(4)) / 4
    for layer in found.layers:
        assert layer.scores == pytest.approx([-slopes * distance for distance in (1, 4, 12)], rel=1e-4)


def test_a_config_that_claims_what_transformers_does_not_read_is_contradicted() -> None:
    model = small_model("bert", False)
    model.config.position_embedding_type = "relative_key"
    found = hf_posswap.inspect(model)
    assert "relative_key" in found.disagreements[0]
    assert "DISAGREES" in str(found)
    model = small_model("gpt2", True)
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
    assert "no layer turns" in hf_posswap.inspect(model).disagreements[0]


def test_attention_that_cannot_be_seen_is_said_to_be() -> None:
    found = hf_posswap.inspect(tiny_model("bloom", True))
    assert found.layers == []
    assert any("AttentionInterface" in note for note in found.notes)
    assert "a bias by index" in found.mechanism


def test_an_inspection_is_json_and_leaves_the_model_alone() -> None:
    model = small_model("llama", True).train()
    before: Any = [(type(module), dict(vars(module))) for module in model.modules()]
    content = json.loads(json.dumps(hf_posswap.inspect(model).to_dict()))
    assert content["transformers"] == transformers.__version__
    assert model.training
    assert [type(module) for module in model.modules()] == [kind for kind, _ in before]
    assert [vars(module).keys() for module in model.modules()] == [known.keys() for _, known in before]


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="a str is no transformers model"):
        hf_posswap.inspect("gpt2")
