"""The option `window` of every scheme: a sliding window of keys in the layers of the scheme."""

from pathlib import Path
from typing import Any

import pytest
import torch

import hf_posswap
from hf_posswap.architectures import architecture_named
from hf_posswap.errors import BackendError, PosSwapError, SchemeConfigError, UnsupportedError
from hf_posswap.ramp import RampError, set_ramp
from hf_posswap.swapped.capabilities import CORE
from tests.matrix import test_round_trip as on_disk
from tests.matrix.cells import TRAIN_LENGTH, Cell, random_tokens, randomise, small_model
from tests.swapped.invariants import check_decoding, check_invariants

WINDOW, LENGTH = 5, 24
PLAIN = ("alibi", "t5", "rope", "rope:dynamic:factor=2", "none", "shaw", "transformer_xl")
WINDOWED = (
    f"rope:window={WINDOW}:layers=0+2,none",
    f"t5:window={WINDOW}",
    f"rope:window={WINDOW}",
    f"shaw:window={WINDOW}",
)
MODES = [(name, causal) for name in CORE for causal in architecture_named(name).modes]
PLAIN_CELLS = [
    (architecture, causal, scheme)
    for architecture, causal in MODES
    for scheme in PLAIN
    # gemma3_text has windows of its own, and encoders refuse none.
    if architecture != "gemma3_text" and (causal or scheme != "none")
]
CELLS = [
    Cell(architecture, causal, hf_posswap.parse_scheme(text), text)
    for architecture, causal in MODES
    for text in WINDOWED
    if causal or "none" not in text
]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def window_mask(length: int, causal: bool, window: int = WINDOW) -> torch.Tensor:
    distance = torch.arange(length)[:, None] - torch.arange(length)
    shown = distance.abs() < window
    return (shown & (distance >= 0) if causal else shown)[None, None]


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(("architecture", "causal", "scheme"), PLAIN_CELLS)
def test_a_window_equals_a_4d_mask_of_it(architecture: str, causal: bool, scheme: str, backend: str) -> None:
    models = [
        hf_posswap.swap(small_model(architecture, causal), text) for text in (scheme, f"{scheme}:window={WINDOW}")
    ]
    tokens = random_tokens(2, LENGTH)
    for model in models:
        randomise(model)
        model.set_attn_implementation(backend)
    with torch.no_grad():
        mask = window_mask(LENGTH, causal).expand(2, -1, -1, -1)
        expected = models[0](tokens, attention_mask=mask).logits
        found, everything = models[1](tokens).logits, models[0](tokens).logits
    torch.testing.assert_close(found, expected, **CLOSE)
    assert not torch.allclose(everything, expected, atol=1e-2)


def test_an_encoder_gets_a_window_beside_its_own_positions() -> None:
    model, tokens = small_model("bert", False), random_tokens(2, TRAIN_LENGTH)
    with torch.no_grad():
        expected = model(tokens, attention_mask=window_mask(TRAIN_LENGTH, False).expand(2, -1, -1, -1)).logits
        found = hf_posswap.swap(model, f"none:keep_native=true:window={WINDOW}")(tokens).logits
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "causal"), [("llama", True), ("bert", False)])
@pytest.mark.parametrize("scheme", ["alibi", "rope"])
def test_flex_attention_has_the_window(architecture: str, causal: bool, scheme: str) -> None:
    model = hf_posswap.swap(small_model(architecture, causal), f"{scheme}:window={WINDOW}")
    tokens = random_tokens(2, LENGTH)
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :7] = 0
    with torch.no_grad():
        expected = model(tokens, attention_mask=mask).logits
        model.set_attn_implementation("flex_attention")
        found = model(tokens, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_invariants(cell: Cell, tmp_path: Path) -> None:
    check_invariants(cell, tmp_path)
    if cell.causal:
        check_decoding(cell)


@pytest.mark.parametrize("text", [f"t5:window={WINDOW}", f"rope:window={WINDOW}:layers=1,none"])
def test_compiled_as_one_graph(text: str) -> None:
    on_disk.test_compiled_as_one_graph_for_all_lengths(Cell("llama", True, hf_posswap.parse_scheme(text), text))


@pytest.mark.parametrize("text", ["rope:window=5", "none:keep_native=true:window=5"])
def test_the_native_mechanism_stays_within_a_window(text: str) -> None:
    model, tokens = hf_posswap.swap(small_model("llama", True), text), random_tokens(2, LENGTH)
    with torch.no_grad():
        mask = window_mask(LENGTH, True).expand(2, -1, -1, -1)
        expected = small_model("llama", True)(tokens, attention_mask=mask).logits
        torch.testing.assert_close(model(tokens).logits, expected, **CLOSE)
    assert "within a window of 5 tokens" in hf_posswap.describe(model).attention


def test_what_is_out_of_the_window_is_not_seen() -> None:
    model = hf_posswap.swap(small_model("llama", True), f"alibi:window={WINDOW}")
    tokens = random_tokens(1, 40)
    other = tokens.clone()
    other[:, :8] = random_tokens(1, 8, seed=11)
    reach = 3 * (WINDOW - 1)  # through three layers
    with torch.no_grad():
        first, second = model(tokens).logits, model(other).logits
    assert torch.equal(first[:, 8 + reach :], second[:, 8 + reach :])
    assert not torch.equal(first[:, 8 + reach - 1], second[:, 8 + reach - 1])


@pytest.mark.parametrize(("window", "same"), [(8, False), (16, True), (20, True), (4096, True)])
def test_the_smaller_window_counts_in_layers_that_have_one(window: int, same: bool) -> None:
    """Layers 0 and 2 of this model have a window of 16 of their own."""
    with_window = hf_posswap.swap(small_model("gemma3_text", True), f"alibi:layers=0+2:window={window}")
    without, tokens = hf_posswap.swap(small_model("gemma3_text", True), "alibi:layers=0+2"), random_tokens(2, 40)
    with torch.no_grad():
        assert torch.equal(with_window(tokens).logits, without(tokens).logits) is same


@pytest.mark.parametrize("window", [0, -1, 2.5, True, "wide"])
def test_wrong_windows_are_refused(window: Any) -> None:
    with pytest.raises(SchemeConfigError, match="'window'"):
        hf_posswap.swap(small_model("llama", True), {"name": "alibi", "window": window})


@pytest.mark.parametrize("scheme", ["learned", "sinusoidal"])
def test_a_scheme_without_layers_has_none_to_give_a_window(scheme: str) -> None:
    with pytest.raises(SchemeConfigError, match="no layers to give a window"):
        hf_posswap.swap(small_model("gpt2", True), f"{scheme}:window=4")


def test_what_cannot_carry_a_window_says_so(tmp_path: Path) -> None:
    model = hf_posswap.swap(small_model("llama", True), "rope:window=4")
    with pytest.raises(RampError, match="sliding window of 4"):
        set_ramp(model, 0.5)
    with pytest.raises(UnsupportedError, match="sliding window of 4"):
        hf_posswap.export_native(model, tmp_path / "stock")
    with pytest.raises(PosSwapError, match="continuous batching"):
        model.init_continuous_batching()
    from hf_posswap.attention.windows import check_windows

    check_windows("flash_attention_2")
    with pytest.raises(BackendError, match="sliding window"):
        check_windows("somebodys_kernel")


def test_flash_attention_is_told_the_smaller_window(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_posswap.swapped import layer_call

    told = []

    def stock(module: Any, q: Any, k: Any, v: Any, mask: Any, **given: Any) -> Any:
        told.append(given["sliding_window"])
        return q.transpose(1, 2), None

    model = hf_posswap.swap(small_model("gemma3_text", True), "rope:window=9")
    monkeypatch.setattr(layer_call, "stock_function", lambda *given: stock)
    monkeypatch.setattr(type(model.model.layers[0].self_attn), "pos_backend", lambda *given: "flash_attention_2")
    with torch.no_grad():
        model(random_tokens(1, LENGTH))
    assert told == [9, 9, 9]
    told.clear()
    hf_posswap.swap(model, "rope:window=20", replace=True, verify=False)
    with torch.no_grad():
        model(random_tokens(1, LENGTH))
    assert told == [16, 20, 16]


def test_calibration_looks_at_pairs_within_the_window() -> None:
    model = hf_posswap.swap(small_model("llama", True), "relative_bias:window=5")
    hf_posswap.calibrate(model, [random_tokens(6, LENGTH)], measure=False)
    table = model.model.layers[0].self_attn.pos_scheme.table
    assert table[:, :5].any()
    assert (table[:, 5:] == table[:, 4:5]).all()
