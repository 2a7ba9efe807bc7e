"""rope with angles of each head: pairs chosen by calibration, and FoPE's sums of frequencies."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hf_posswap
from hf_posswap.calibration import calibrate, calibration_refusal
from hf_posswap.common.positions import Positions
from hf_posswap.errors import SchemeConfigError, UnsupportedError
from hf_posswap.schemes.rope_config import RopeConfig
from hf_posswap.schemes.rope_layers import ChosenPairsLayer
from hf_posswap.swapped.plan import core_of
from hf_posswap.training.adapters import add_lora, load_adapter
from tests.matrix.cells import random_tokens, randomise, small_model, traced_layers
from tests.oracles.rope import chosen_pairs
from tests.reference import (
    CALLS,
    as_array,
    assert_close_where_real,
    build,
    make_call,
    model_facts,
    run_oracle,
    run_scheme,
)

CHOSEN = "rope:frequencies=chosen"
SUMS = "rope:frequencies=fope:fourier_sums=true:base=10"
UNCALIBRATED = r"scheme 'rope' cannot run before calibration: .*not measured yet. Calibrate first: hf_posswap.calibrate"
# Scaling → our options, and what the oracle calls them. They differ in the factor, and in when keys are turned.
SCALINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({}, {}),
    "dynamic": ({"factor": 3.0}, {"factor": 3.0, "train_length": 7}),
    "yarn": (
        {"factor": 3.0, "beta_fast": 2.0, "beta_slow": 0.2},
        {"factor": 3.0, "train_length": 7, "beta_fast": 2.0, "beta_slow": 0.2, "truncate": True},
    ),
}
NATIVE = {"scaling": "none", "base": 5.0}


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("causal", "kind"), CALLS)
def test_sums_equal_the_oracle(causal: bool, kind: str, scaling: str) -> None:
    ours, theirs = SCALINGS[scaling]
    facts = model_facts(train_length=7, causal=causal)
    call = make_call(kind, facts)
    config = RopeConfig(scaling=scaling, base=5.0, frequencies="fope", fourier_sums=True, **ours)
    scheme, layer = build(config, facts)
    sums = {name: as_array(getattr(layer, name)) for name in ("cos_sums", "sin_sums")}
    assert sums["cos_sums"].shape == (2, 1, 1), "only θ = 1 turns once over 7 tokens"
    options = {"rotated": 8, "interleaved": False, "scaling_type": scaling, "base": 5.0, "cycles_within": 7}
    assert_close_where_real(
        call, run_scheme(scheme, layer, call), run_oracle("rope", call, **options, **theirs, **sums)
    )


@pytest.mark.parametrize("interleaved", [False, True])
def test_sums_of_several_frequencies_equal_the_oracle(interleaved: bool) -> None:
    facts = model_facts(train_length=16)
    call = make_call("chunk", facts)
    config = RopeConfig(
        scaling="none", base=5.0, frequencies="fope", fourier_sums=True, interleaved=interleaved,
        partial_rotary_factor=0.75,
    )  # fmt: skip
    scheme, layer = build(config, facts)
    sums = {name: as_array(getattr(layer, name)) for name in ("cos_sums", "sin_sums")}
    assert sums["cos_sums"].shape == (2, 2, 2)
    options = {"rotated": 6, "interleaved": interleaved, "scaling_type": "none", "base": 5.0, "cycles_within": 16}
    assert_close_where_real(call, run_scheme(scheme, layer, call), run_oracle("rope", call, **options, **sums))


def scores_at(config: RopeConfig, start: int) -> Tensor:
    """Scores of a text of 6 tokens at positions from `start` on."""
    torch.manual_seed(0)
    facts = model_facts(train_length=16)
    scheme, layer = build(config, facts)
    at = torch.arange(start, start + 6)[None]
    positions = Positions(at, at, 0, True)
    q, k = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    q, k = layer.transform(q, k, positions, scheme.prepare(positions))
    return q @ k.repeat_interleave(2, dim=1).mT


def test_scores_of_sums_depend_on_both_positions() -> None:
    config = RopeConfig(scaling="none", base=5.0, frequencies="fope")
    torch.testing.assert_close(scores_at(config, 0), scores_at(config, 9), atol=1e-5, rtol=1e-5)
    config = RopeConfig(scaling="none", base=5.0, frequencies="fope", fourier_sums=True)
    assert (scores_at(config, 0) - scores_at(config, 9)).abs().max() > 0.1


@pytest.mark.parametrize(("architecture", "causal"), [("gpt2", True), ("bert", False), ("llama", True)])
def test_sums_start_as_the_frequencies_alone_and_learn(architecture: str, causal: bool) -> None:
    plain = hf_posswap.swap(small_model(architecture, causal), "rope:frequencies=fope:base=10")
    model = hf_posswap.swap(small_model(architecture, causal), SUMS)
    text = random_tokens(2, 24)
    assert torch.equal(model(text).logits, plain(text).logits)
    model(text).logits.square().sum().backward()
    layers = [module.pos_scheme for module in core_of(model).pos_layers]
    assert all(weight.grad is not None and bool(weight.grad.any()) for layer in layers for weight in layer.parameters())


@pytest.mark.parametrize("kind", ["whole", "decode", "padded", "packed"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_chosen_pairs_equal_the_oracle(scaling: str, kind: str) -> None:
    ours, theirs = SCALINGS[scaling]
    facts = model_facts(train_length=7, native_rope=NATIVE)
    call = make_call(kind, facts)
    scheme, layer = build(RopeConfig(scaling=scaling, base=5.0, frequencies="chosen", kept=0.5, **ours), facts)
    assert isinstance(layer, ChosenPairsLayer)
    layer.ranks.copy_(torch.tensor([[3, 1, 0, 2], [0, 2, 3, 1]]))
    options = {"rotated": 8, "interleaved": False, "scaling_type": scaling, "base": 5.0}
    expected = run_oracle("rope", call, **options, **theirs, turning=[[1, 2], [0, 3]])
    assert_close_where_real(call, run_scheme(scheme, layer, call), expected)


@pytest.mark.parametrize("kept", [0.125, 0.25, 0.7, 1.0])
def test_the_choice_is_that_of_the_paper(kept: float) -> None:
    facts = model_facts(head_dim=16, native_rope=NATIVE)
    _, layer = build(RopeConfig(frequencies="chosen", kept=kept), facts)
    torch.manual_seed(3)
    size = torch.rand(6, 1, 16) * 3  # heads that differ in their pairs
    batches = [(torch.randn(2, 4, 3, 16) * size[:4], torch.randn(2, 2, 9, 16) * size[4:]) for _ in range(2)]
    assert isinstance(layer, ChosenPairsLayer)
    assert bool(layer.unfitted())
    assert layer.choose(batches)
    assert not layer.unfitted()
    expected = chosen_pairs(*(torch.cat(parts).numpy() for parts in zip(*batches, strict=True)), round(kept * 8))
    found = [row.argsort()[: layer.kept].tolist() for row in layer.ranks]
    assert found == expected
    assert found[0] != found[1] or kept == 1


def test_calibration_chooses_by_the_stock_models_projections() -> None:
    stock = small_model("llama", True, max_position_embeddings=64)
    projected: dict[str, list[Tensor]] = {"q": [], "k": []}
    for layer in stock.model.layers:
        for name, kept in projected.items():
            module = layer.self_attn.get_submodule(f"{name}_proj")
            module.register_forward_hook(lambda _, given, out, kept=kept: kept.append(out.detach()))
    text = random_tokens(2, 40)
    expected_logits = stock(text).logits
    heads = {name: [x.unflatten(-1, (-1, 8)).transpose(1, 2) for x in found] for name, found in projected.items()}
    model = hf_posswap.swap(stock, f"{CHOSEN}:kept=0.25")
    report = calibrate(model, [text], measure=False)
    assert len(report.explained) == 3
    layers = [layer.self_attn.pos_scheme for layer in model.model.layers]
    for layer, query, key in zip(layers, heads["q"], heads["k"], strict=True):
        expected = chosen_pairs(query[:, :, 3::4].numpy(), key.numpy(), 1)  # every fourth query is measured
        assert [row.argmin().item() for row in layer.ranks] == [pairs[0] for pairs in expected]
    assert len({tuple(layer.ranks.flatten().tolist()) for layer in layers}) > 1
    assert (model(text).logits - expected_logits).abs().max() > 0.1
    assert torch.equal(hf_posswap.restore(model)(text).logits, expected_logits)


def test_all_pairs_chosen_is_the_models_own_rotation() -> None:
    stock, text = small_model("llama", True), random_tokens(2, 24)
    expected = stock(text).logits
    model = hf_posswap.swap(stock, f"{CHOSEN}:kept=1.0")
    report = calibrate(model, [text])
    torch.testing.assert_close(model(text).logits, expected, atol=1e-5, rtol=1e-5)
    assert report.loss_after == pytest.approx(report.loss_stock, abs=1e-6)


def test_without_a_choice_a_forward_is_refused_and_all_else_works(tmp_path: Path) -> None:
    model = hf_posswap.swap(small_model("llama", True, layers=traced_layers("llama")), CHOSEN)
    text = random_tokens(2, 24)
    with pytest.raises(UnsupportedError, match=UNCALIBRATED):
        model(text)
    described = hf_posswap.describe(model)
    assert described.probe is None
    assert "2 of 4 pairs of each head turn, not chosen yet: calibrate" in str(described)
    assert described.unfitted
    assert "not run, the model has to be calibrated first" in str(described)
    model.save_pretrained(tmp_path / "unfitted")
    loaded = hf_posswap.AutoModelForCausalLM.from_pretrained(tmp_path / "unfitted")
    with pytest.raises(UnsupportedError, match=UNCALIBRATED):
        loaded.generate(text)
    with pytest.raises(RuntimeError, match="cannot run before calibration"):
        torch.compile(loaded.model, backend="eager")(text)
    torch._dynamo.reset()
    assert calibration_refusal(loaded) is None
    report = calibrate(loaded, [text])
    assert (report.loss_before, report.kept_start) == (None, False)
    assert report.loss_after is not None
    again = calibrate(loaded, [text])  # what it does is measured now, and the choice is the same
    assert again.loss_before == report.loss_after
    assert "2 of 4 pairs of each head turn, chosen by calibration" in str(hf_posswap.describe(loaded))
    loaded.save_pretrained(tmp_path / "fitted")
    other = hf_posswap.AutoModelForCausalLM.from_pretrained(tmp_path / "fitted")
    assert torch.equal(other(text).logits, loaded(text).logits)
    assert not any(weight.requires_grad and "ranks" in name for name, weight in other.named_parameters())
    swapped = hf_posswap.swap(loaded, f"{CHOSEN}:kept=0.25", replace=True)
    with pytest.raises(UnsupportedError, match=UNCALIBRATED):
        swapped(text)


def test_a_broken_calibration_leaves_no_choice() -> None:
    model = hf_posswap.swap(small_model("llama", True), CHOSEN)

    def stop(done: int, layers: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, [random_tokens(2, 24)], stop)
    with pytest.raises(UnsupportedError, match=UNCALIBRATED):
        model(random_tokens(1, 8))


def test_an_adapter_carries_the_choice(tmp_path: Path) -> None:
    text = random_tokens(2, 24)
    model = hf_posswap.swap(small_model("llama", True), CHOSEN)
    calibrate(model, [text], measure=False)
    adapted = add_lora(model, rank=2).eval()
    expected = adapted(text).logits
    adapted.save_pretrained(tmp_path)
    uncalibrated = hf_posswap.swap(small_model("llama", True), CHOSEN)
    loaded = load_adapter(str(tmp_path), base=uncalibrated)
    assert torch.equal(loaded(text).logits, expected)
    assert torch.equal(loaded.merge_and_unload()(text).logits, expected)


@pytest.mark.parametrize("scheme", [f"{CHOSEN}:kept=0.25", SUMS])
def test_compiled_as_one_graph(scheme: str) -> None:
    model = hf_posswap.swap(small_model("llama", True, layers=traced_layers("llama")), scheme)
    text = random_tokens(2, 24)
    if scheme == SUMS:
        randomise(model)
    else:
        calibrate(model, [text], measure=False)
    expected = model(text).logits
    torch._dynamo.reset()
    compiled = torch.compile(model.model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(model.lm_head(compiled(text)[0]), expected, atol=1e-4, rtol=1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kept": 0.5}, r"'kept' has no effect with frequencies='all'. It is read by frequencies='chosen'"),
        ({"frequencies": "fope", "kept": 0.5}, r"'kept' has no effect with frequencies='fope'"),
        ({"frequencies": "chosen", "kept": 0.0}, r"'kept' is 0.0; it must be greater than 0 and at most 1"),
        ({"frequencies": "chosen", "kept": 1.5}, r"'kept' is 1.5; it must be greater than 0 and at most 1"),
        ({"fourier_sums": True}, r"'fourier_sums' has no effect with frequencies='all'. It is read by .*'fope'"),
        ({"frequencies": "chosen", "fourier_sums": True}, r"'fourier_sums' has no effect with frequencies='chosen'"),
        ({"frequencies": "chosen", "interleaved": True}, r"interleaved=True turns others too. Leave interleaved out"),
        ({"frequencies": "chosen", "keep_native": True}, r"keep_native=True turns others too. Leave keep_native out"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemeConfigError, match=message):
        RopeConfig(**options)


@pytest.mark.parametrize(
    ("architecture", "scheme", "message"),
    [
        ("gpt2", CHOSEN, r"a model without RoPE has learnt to turn none. scaling='proportional'"),
        ("llama", f"{CHOSEN}:kept=0.1", r"kept=0.1 of 4 pairs is none; 0.25 keeps one"),
        ("llama", f"{CHOSEN}:partial_rotary_factor=0.5", r"leaves some out. The option 'kept' says how many turn"),
        ("llama", f"{SUMS}:original_length=6:scaling=dynamic", r"turns once over T, and none does over 6 tokens"),
        ("gemma3_text", CHOSEN, r"leave out interleaved, fourier_sums and frequencies='chosen'"),
        ("gemma3_text", SUMS, r"leave out interleaved, fourier_sums and frequencies='chosen'"),
    ],
)
def test_models_that_cannot_take_them(architecture: str, scheme: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        hf_posswap.swap(small_model(architecture, True), scheme)


@pytest.mark.parametrize("options", [{"frequencies": "chosen"}, {"frequencies": "fope", "fourier_sums": True}])
def test_neither_is_exported(options: dict[str, Any]) -> None:
    scheme, _ = build(RopeConfig(**options), model_facts(native_rope=NATIVE))
    with pytest.raises(UnsupportedError, match=r"stock models turn all pairs, not those of frequencies="):
        scheme.as_stock()


def test_sums_are_healed_where_they_cannot_be_calibrated() -> None:
    model = hf_posswap.swap(small_model("llama", True), SUMS)
    assert "cannot fit scheme 'rope': calibration fits biases by distance" in str(calibration_refusal(model))
