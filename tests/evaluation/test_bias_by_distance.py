"""The bias by distance, against the formulas of the papers."""

import math
from typing import Any

import pytest
import torch

import hf_posswap
from hf_posswap.errors import NotSwappedError
from hf_posswap.evaluation.bias_by_distance import bias_by_distance, shown_distances
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.schemes import list_schemes
from hf_posswap.sources import load_model


def swapped(name: str, scheme: str) -> Any:
    return hf_posswap.swap(load_model(name, dtype="float32"), scheme)


def test_distances_are_dense_near_the_query_and_end_at_the_longest() -> None:
    found = shown_distances(1000).tolist()
    assert found[:18] == [*range(17), 17]
    assert found == sorted(set(found))
    assert found[-1] == 1000
    assert {32, 64, 128, 256, 512} <= set(found)
    assert len(found) < 60
    with pytest.raises(EvaluationError, match="at least 1"):
        shown_distances(0)


def test_alibi_is_its_slopes_once_for_all_layers() -> None:
    rows = bias_by_distance(swapped("demo:gpt2", "alibi"), 100)
    assert {row["layer"] for row in rows} == {None}
    assert {row["quantity"] for row in rows} == {"bias"}
    for row in rows:
        assert row["value"] == pytest.approx(-(2.0 ** -(row["head"] + 1)) * row["distance"], rel=1e-5)
    assert {row["head"] for row in rows} == set(range(8))


def test_an_encoder_has_keys_on_both_sides_and_hidden_ones() -> None:
    rows = bias_by_distance(swapped("demo:bert", "alibi:one-sided"), 8)
    assert sorted({row["distance"] for row in rows}) == list(range(-8, 9))
    of_first = {row["distance"]: row for row in rows if row["head"] == 0}
    assert of_first[-1]["value"] is None
    assert of_first[-1]["note"] == "hidden"
    assert of_first[1]["value"] < 0


@pytest.mark.parametrize("name", ["demo:gpt2", "demo:bert"])
def test_rope_is_its_mean_cosine(name: str) -> None:
    model = swapped(name, "rope")
    rows = bias_by_distance(model, 300)
    assert {(row["layer"], row["head"], row["quantity"]) for row in rows} == {(None, None, "cosine-sum")}
    dim = model.config.hidden_size // model.config.num_attention_heads
    for row in rows:
        angles = [row["distance"] * 10000 ** (-2 * pair / dim) for pair in range(dim // 2)]
        assert row["value"] == pytest.approx(sum(map(math.cos, angles)) / len(angles), abs=2e-5)


def test_a_table_is_read_layer_by_layer_and_head_by_head() -> None:
    model = swapped("demo:gpt2", "relative_bias")
    tables = []
    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__ == "RelativeBiasLayer":
                module.table.normal_()
                tables.append(module.table.detach())
    rows = bias_by_distance(model, 2000)
    assert max(row["distance"] for row in rows) == 2000
    for row in rows:
        table = tables[row["layer"]]
        wanted = table[row["head"], min(row["distance"], table.shape[1] - 1)]
        assert row["value"] == pytest.approx(float(wanted), rel=1e-5)


def test_a_bias_that_reads_the_query_is_taken_at_the_mean_query() -> None:
    """Shaw: the mean over a text's queries of q·a/√d, from the rows of the real bias."""
    model = swapped("demo:gpt2", "shaw:max_distance=4:values=false")
    seen: list[torch.Tensor] = []
    layers = [module for module in model.modules() if type(module).__name__ == "ShawLayer"]
    with torch.no_grad():
        for layer in layers:
            layer.key_table.normal_()
        text = torch.arange(50, 90)[None]
        original = type(layers[0]).bias

        def spy(self: Any, inputs: Any) -> Any:
            if self is layers[1]:
                seen.append(inputs.q)
            return original(self, inputs)

        rows = bias_by_distance(model, 8, text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(layers[0]), "bias", spy)
            model(text)
    queries = seen[0].detach()
    mean = queries.mean((0, 2)) / math.sqrt(queries.shape[-1])
    for row in rows:
        if row["layer"] == 1:
            vector = layers[1].key_table[4 - min(row["distance"], 4)].detach()
            assert row["value"] == pytest.approx(float(mean[row["head"]] @ vector), rel=1e-3, abs=1e-5)
            assert row["note"] == "at the mean query of a text"
    assert {row["value"] for row in bias_by_distance(model, 8)} == {0.0}


def test_keys_between_the_shown_distances_are_counted() -> None:
    """CoPE at keys of zero: each gate is a half, so that the key at Δ is at the position (Δ + 1)/2."""
    model = swapped("demo:gpt2", "cope:positions=40")
    layers = [module for module in model.modules() if type(module).__name__ == "CopeLayer"]
    with torch.no_grad():
        for layer in layers:
            layer.position_vectors.copy_(torch.arange(40.0)[:, None].expand_as(layer.position_vectors))
    rows = [row for row in bias_by_distance(model, 100, torch.arange(50, 90)[None]) if row["layer"] == 1]
    for head in range(8):
        values = {row["distance"]: row["value"] for row in rows if row["head"] == head}
        for distance, value in values.items():
            assert value == pytest.approx(min((distance + 1) / 2, 39) * 2 * values[0], rel=1e-4)


@pytest.mark.parametrize("scheme", list_schemes())
def test_every_scheme_says_something_or_why_not(scheme: str) -> None:
    model = swapped("demo:gpt2", scheme)
    before = [parameter.clone() for parameter in model.parameters()]
    rows = bias_by_distance(model, 64)
    assert rows
    for row in rows:
        assert set(row) == {"layer", "head", "distance", "value", "quantity", "note"}
        assert row["distance"] is not None or row["note"]
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_bounded_scheme_stops_at_its_end() -> None:
    rows = bias_by_distance(swapped("demo:gpt2", "alibi:keep_native=true"), 5000)
    assert max(row["distance"] for row in rows) == 255


def test_a_stock_model_is_refused() -> None:
    with pytest.raises(NotSwappedError, match="swapped model"):
        bias_by_distance(load_model("demo:gpt2"))
