"""Several schemes in one model, each in its own layers: what holds for one scheme holds for them together."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_posswap
from hf_posswap.architectures import architecture_named
from hf_posswap.errors import PosSwapError, SchemeConfigError, UnsupportedError
from hf_posswap.ramp import set_ramp
from hf_posswap.schemes import as_config, scheme_text
from hf_posswap.swapped.capabilities import CORE
from hf_posswap.swapped.plan import core_of
from tests.matrix import test_masks
from tests.matrix import test_round_trip as on_disk
from tests.matrix.cells import LAYERS, Cell, random_tokens, randomise, scheme_variants, small_model
from tests.swapped.invariants import check_decoding, check_invariants

COMPOSED = ("none:layers=1,rope", "alibi:layers=0+2,none", "t5:layers=0,alibi")


def cell_of(architecture: str, causal: bool, text: str) -> Cell:
    return Cell(architecture, causal, hf_posswap.parse_scheme(text), text)


CELLS = [
    cell_of(architecture, causal, text)
    for architecture in CORE
    for causal in architecture_named(architecture).modes
    for text in COMPOSED
    if causal or "none" not in text
]
CAUSAL = [cell for cell in CELLS if cell.causal]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_invariants(cell: Cell, tmp_path: Path) -> None:
    check_invariants(cell, tmp_path)
    for backend in ("eager", "sdpa"):
        test_masks.test_a_4d_mask_and_positions_counted_along_it(cell, backend)


@pytest.mark.parametrize("cell", CAUSAL, ids=str)
def test_decoding_invariants(cell: Cell) -> None:
    check_decoding(cell)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_no_token_sees_the_future(cell: Cell) -> None:
    tokens = random_tokens(1, 20)
    changed = tokens.clone()
    changed[:, 12:] = random_tokens(1, 8, seed=9)
    with torch.no_grad():
        model = cell.swapped()
        same = torch.equal(model(tokens).logits[:, :12], model(changed).logits[:, :12])
    assert same is cell.causal


@pytest.mark.parametrize(("architecture", "text"), [("llama", "none:layers=1,rope"), ("gpt2", "t5:layers=0,alibi")])
def test_compiled_as_one_graph(architecture: str, text: str) -> None:
    on_disk.test_compiled_as_one_graph_for_all_lengths(cell_of(architecture, True, text))


@pytest.mark.parametrize("config", [config for _, config in scheme_variants()], ids=lambda config: config.name)
def test_a_list_of_one_is_the_scheme_itself(config: Any) -> None:
    assert as_config([config]) == as_config([config.to_dict()]) == config


def test_a_list_of_one_gives_the_same_model_and_the_same_entry() -> None:
    plain, listed = small_model("llama", True), small_model("llama", True)
    hf_posswap.swap(plain, "t5:layers=0+2")
    hf_posswap.swap(listed, [{"name": "t5", "layers": [0, 2]}])
    assert plain.config.pos_scheme == listed.config.pos_scheme
    assert list(plain.state_dict()) == list(listed.state_dict())
    assert all(map(torch.equal, plain.state_dict().values(), listed.state_dict().values()))


@pytest.mark.parametrize(
    ("architecture", "causal"), [(name, causal) for name in CORE for causal in architecture_named(name).modes]
)
@pytest.mark.parametrize(
    "scheme", ["alibi", "rope:linear:factor=2", "shaw", "rope:dynamic:factor=2", "none:recalibration=0.5"]
)
def test_one_scheme_in_two_entries_is_that_scheme(architecture: str, causal: bool, scheme: str) -> None:
    """The layers of each entry get what that entry prepared, also under a window of the model's own."""
    plain, composed = small_model(architecture, causal), small_model(architecture, causal)
    try:
        hf_posswap.swap(plain, scheme)
    except UnsupportedError:
        with pytest.raises(UnsupportedError, match=r"entry 1 \("):
            hf_posswap.swap(composed, f"{scheme}:layers=1,{scheme}")
        return
    hf_posswap.swap(composed, f"{scheme}:layers=1,{scheme}")
    tokens = random_tokens(2, 40)
    with torch.no_grad():
        assert torch.equal(composed(tokens).logits, plain(tokens).logits)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_layers_that_no_entry_names_keep_the_native_mechanism(architecture: str) -> None:
    part, whole = small_model(architecture, True), small_model(architecture, True)
    hf_posswap.swap(part, "alibi:layers=0,t5:layers=2")
    hf_posswap.swap(whole, "alibi:layers=0,t5:layers=2,rope:layers=1")
    for model in (part, whole):
        randomise(model)
    tokens = random_tokens(2, 24)
    with torch.no_grad():
        torch.testing.assert_close(part(tokens).logits, whole(tokens).logits)
        assert not torch.allclose(part(tokens).logits, small_model(architecture, True)(tokens).logits, atol=1e-2)
    assert core_of(part).pos_scheme.config.layers == (0, 2)
    assert core_of(whole).pos_scheme.config.layers is None


@pytest.mark.parametrize("cell", [cell for cell in CAUSAL if cell.architecture in ("gpt2", "llama")], ids=str)
def test_a_ramp_leads_from_the_stock_model_to_all_entries(cell: Cell) -> None:
    model, tokens = cell.swapped(), random_tokens(2, 24)
    with torch.no_grad():
        swapped = model(tokens).logits
        set_ramp(model, 0)
        torch.testing.assert_close(model(tokens).logits, cell.stock()(tokens).logits, atol=1e-5, rtol=1e-5)
        set_ramp(model, 1)
        torch.testing.assert_close(model(tokens).logits, swapped, atol=1e-5, rtol=1e-5)
        set_ramp(model, 0.5)
        between = model(tokens).logits
    assert not torch.allclose(between, swapped, atol=1e-3)


def test_the_entry_of_the_config_is_json_and_the_text_is_parsed_to_it() -> None:
    model = hf_posswap.swap(small_model("llama", True), "none:layers=1,rope")
    scheme, entry = core_of(model).pos_scheme, json.loads(json.dumps(model.config.pos_scheme))
    assert entry["name"] == "none+rope"
    assert as_config({"name": entry["name"]} | entry["options"]) == scheme.config
    assert [part["layers"] for part in entry["options"]["entries"]] == [[1], [0, 2]]
    assert scheme_text(scheme.config, scheme.facts) == "none:layers=1,rope"
    assert hf_posswap.parse_scheme(scheme_text(scheme.config, scheme.facts)).resolve(scheme.facts) == scheme.config


def test_the_smaller_limit_counts() -> None:
    scheme = core_of(hf_posswap.swap(small_model("llama", True), "alibi:layers=0,rope")).pos_scheme
    assert scheme.longest_position() is None
    for number, limit in enumerate((48, 40)):
        scheme.entries[number].longest_position = lambda limit=limit: limit
        assert scheme.longest_position() == limit


REFUSED = [
    ([], "empty list"),
    (["alibi:layers=0", "t5:layers=0"], r"layer 0 is named by entry 1 \(alibi\) and by entry 2 \(t5\)"),
    (["alibi", "t5"], "two of the entries 1 .alibi., 2 .t5. name no layers"),
    (["alibi:layers=0+1+2", "t5"], r"entry 2 \(t5\): it names no layers.* all 3"),
    (["alibi:layers=9", "t5"], r"entry 1 \(alibi\).*\[9\].* 0 to 2"),
    (["alibi:layers=0", "learned"], r"entry 2 \(learned\).*embeddings"),
    (["sinusoidal:layers=0", "alibi"], r"entry 1 \(sinusoidal\).*embeddings"),
    (["alibi:layers=0", "alib"], r"entry 2 \(alib\).*Did you mean 'alibi'"),
    (["alibi:layers=0", "rope:keep_native=true"], "contradict each other: keep_native"),
    (["alibi:layers=0", ["t5"]], r"entry 2 \(list\).*not a list"),
    ([{"name": "alibi", "layers": [0]}, {"name": "t5", "bukets": 3}], r"entry 2 \(t5\).*'num_buckets'"),
    (["alibi:layers=0", 3], r"entry 2 \(int\).*name"),
    ({"name": "t5+alibi", "entries": ["alibi:layers=0", "t5"]}, "name of its entries, here 'alibi.t5'"),
]


@pytest.mark.parametrize(("given", "words"), REFUSED, ids=lambda value: None)
def test_lists_that_make_no_sense_are_refused_and_change_nothing(given: Any, words: str) -> None:
    model = small_model("llama", True)
    with pytest.raises(PosSwapError, match=words):
        hf_posswap.swap(model, given)
    assert not hf_posswap.is_swapped(model)


def test_an_entry_whose_layers_share_their_attention_is_refused() -> None:
    from transformers import AlbertConfig, AlbertForMaskedLM

    config = AlbertConfig(
        vocab_size=97, hidden_size=32, embedding_size=16, num_attention_heads=4, intermediate_size=48,
        num_hidden_layers=LAYERS,
    )  # fmt: skip
    with pytest.raises(SchemeConfigError, match=r"entry 2 \(alibi\)"):
        hf_posswap.swap(AlbertForMaskedLM(config), "t5:layers=0,alibi")


def test_stock_transformers_has_no_word_for_it(tmp_path: Path) -> None:
    model = hf_posswap.swap(small_model("llama", True), "none:layers=1,rope")
    with pytest.raises(UnsupportedError, match=r"none\+rope"):
        hf_posswap.export_native(model, tmp_path / "stock")


def test_describe_has_a_line_for_each_group_of_layers() -> None:
    text = str(hf_posswap.describe(hf_posswap.swap(small_model("llama", True), "alibi:layers=0,t5:layers=2")))
    assert "scheme:     alibi+t5 in the place of rope" in text
    assert "layers:     0: ALiBi (alibi, form=causal)\n            2: T5" in text
    assert "\n            1: rope, the model's own\n" in text
    assert "removed:    rope in 2 of 3 layers" in text


def test_describe_counts_what_was_taken_out_and_what_is_the_models_own() -> None:
    found = hf_posswap.describe(hf_posswap.swap(small_model("llama", True), "none:layers=1,rope"))
    assert found.removed == "rope in 1 of 3 layers"
    assert [(group.layers, group.scheme) for group in found.groups] == [((1,), "none"), ((0, 2), "rope")]
    assert json.loads(json.dumps(found.to_dict()))["options"]["entries"][0]["name"] == "none"


def test_inspect_names_the_scheme_of_each_layer() -> None:
    found = hf_posswap.inspect(hf_posswap.swap(small_model("llama", True), "none:layers=1,rope"))
    assert [layer.scheme for layer in found.layers] == ["rope", "none", "rope"]
    assert [layer.turns for layer in found.layers] == [True, False, True]


@pytest.mark.parametrize(("architecture", "scheme"), [("llama", "relative_bias"), ("gpt2", "rope"), ("gpt2", "shaw")])
def test_calibration_fits_each_entry_as_it_fits_the_scheme_alone(architecture: str, scheme: str) -> None:
    plain, composed = small_model(architecture, True), small_model(architecture, True)
    hf_posswap.swap(plain, scheme)
    hf_posswap.swap(composed, f"{scheme}:layers=1,{scheme}")
    batches, tokens = [random_tokens(6, 24)], random_tokens(2, 24, seed=8)
    before = composed(tokens).logits
    reports = [hf_posswap.calibrate(model, batches, measure=False) for model in (plain, composed)]
    assert reports[0] == reports[1]
    assert torch.equal(plain(tokens).logits, composed(tokens).logits)
    assert not torch.equal(composed(tokens).logits, before)


def test_calibration_fits_shared_parameters_to_the_layers_of_their_entry() -> None:
    batches = [random_tokens(6, 24)]
    composed = hf_posswap.swap(small_model("llama", True), "t5:layers=0,alibi:trainable=true")
    alone = hf_posswap.swap(small_model("llama", True), "t5:layers=0")
    for model in (composed, alone):
        hf_posswap.calibrate(model, batches, measure=False)
    fitted, slopes = core_of(composed).pos_scheme.entries
    assert all(map(torch.equal, fitted.parameters(), core_of(alone).pos_scheme.parameters()))
    assert any(weight.any() for weight in fitted.parameters())
    assert not torch.equal(slopes.log_slopes, slopes.make_log_slopes())


def test_calibration_needs_an_entry_with_parameters() -> None:
    model = hf_posswap.swap(small_model("llama", True), "none:layers=1,alibi")
    with pytest.raises(UnsupportedError, match=r"scheme 'none\+alibi' has no parameters"):
        hf_posswap.calibrate(model, [random_tokens(6, 24)])


def test_the_bias_by_distance_is_that_of_each_layers_own_entry() -> None:
    from hf_posswap.evaluation.bias_by_distance import bias_by_distance

    rows = bias_by_distance(hf_posswap.swap(small_model("gpt2", True), "rope:layers=1,alibi:layers=2"), 8)
    assert {(row["layer"], row["quantity"]) for row in rows} == {(1, "cosine-sum"), (2, "bias")}


def test_healing_trains_every_entry() -> None:
    model = hf_posswap.swap(small_model("llama", True), "t5:layers=0,relative_bias")
    tokens = random_tokens(2, 24)
    model.train()(tokens, labels=tokens).loss.backward()
    scheme_weights = {name: weight for name, weight in model.named_parameters() if "pos_scheme" in name.split(".")}
    assert {name.split("pos_scheme")[0] for name in scheme_weights} == {
        "model.", "model.layers.1.self_attn.", "model.layers.2.self_attn."
    }  # fmt: skip
    assert all(weight.grad is not None and weight.grad.any() for weight in scheme_weights.values())


def test_the_card_names_every_entry(tmp_path: Path) -> None:
    from hf_posswap.hub.card import model_card
    from hf_posswap.hub.checkpoint import read_checkpoint
    from hf_posswap.hub.facts import folder_facts

    hf_posswap.swap(small_model("llama", True), "none:layers=1,rope:linear:factor=2").save_pretrained(tmp_path)
    card = str(model_card(folder_facts(read_checkpoint(tmp_path))))
    assert "pos-scheme:none" in card
    assert "pos-scheme:rope" in card
    assert "**NoPE + RoPE** in the place of" in card
    assert "layers 1 of 3 (counted from 0)" in card
    assert "layers 0, 2 of 3 (counted from 0)" in card


def test_a_bias_of_the_models_own_is_replaced_in_all_layers_or_refused() -> None:
    model = hf_posswap.swap(small_model("bloom", True), "t5:layers=0,alibi")
    assert core_of(model).pos_scheme.name == "t5+alibi"
    with pytest.raises(UnsupportedError, match="as a whole only"):
        hf_posswap.swap(small_model("bloom", True), "t5:layers=0,alibi:layers=1")
