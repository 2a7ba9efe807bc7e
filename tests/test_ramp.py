"""The ramp against other ways to the same model, its errors, and what it does inside of other tools."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import DynamicCache

import hf_posswap
from hf_posswap.architectures import architecture_named
from hf_posswap.architectures.rotary import RotarySeam
from hf_posswap.common.biases import Bias, DenseBias, RelativeBias
from hf_posswap.errors import NotSwappedError, PositionError
from hf_posswap.ramp import RampError, ramp_share, set_ramp
from hf_posswap.schemes.partial import blend
from tests.attention.kinds import KINDS, make_bias
from tests.common.test_biases import inputs_of
from tests.matrix.cells import random_tokens, randomise, small_model
from tests.matrix.test_decoding import decode


def logits(model: Any, tokens: torch.Tensor, **arguments: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens, **arguments).logits


def ramped(architecture: str, scheme: Any, share: float, causal: bool = True) -> Any:
    model = hf_posswap.swap(small_model(architecture, causal), scheme)
    randomise(model)
    set_ramp(model, share)
    return model


def with_blended_table(architecture: str, share: float, new: torch.Tensor | None = None, causal: bool = True) -> Any:
    """A stock model whose position table is what a ramp from it reads; `new` is the mean row if not given."""
    model = small_model(architecture, causal)
    table = architecture_named(architecture).position_table(model.base_model)
    rows = table.weight.detach().double()
    new = rows[1:].mean(0) if new is None else new.double()
    with torch.no_grad():
        table.weight.copy_(rows * (1 - share) + new * share)
    return model


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_fading_rotary_angles_is_position_interpolation(share: float) -> None:
    """Positions shrunk to 1 − share of themselves: `linear` with factor 1/(1 − share)."""
    tokens = random_tokens(2, 30)
    expected = hf_posswap.swap(
        small_model("llama", True), {"name": "rope", "scaling": "linear", "factor": 1 / (1 - share)}
    )
    assert_same(logits(ramped("llama", "none", share), tokens), logits(expected, tokens))


def test_between_two_rotary_schemes_angles_are_between_theirs() -> None:
    """θ of the way's middle from plain RoPE to a factor of 4 is (1 + 1/4)/2 of θ, a factor of 1.6."""
    tokens = random_tokens(2, 30)
    expected = hf_posswap.swap(small_model("llama", True), "rope:linear:factor=1.6")
    assert_same(logits(ramped("llama", "rope:linear:factor=4", 0.5), tokens), logits(expected, tokens))


NATIVE_SCALINGS: dict[str, dict[str, Any]] = {
    "yarn": {"factor": 4.0, "attention_factor": 1.5, "original_max_position_embeddings": 32},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 4.0},
}


def with_native_scaling(scaling: str, **extra: Any) -> Any:
    parameters = {"rope_theta": 10000.0, "rope_type": scaling} | NATIVE_SCALINGS[scaling]
    return small_model("llama", True, rope_parameters=parameters, **extra)


@pytest.mark.parametrize("scaling", NATIVE_SCALINGS)
@pytest.mark.parametrize("scheme", ["none", "alibi", "rope:none"])
def test_a_scaled_native_mechanism_fades_whole(scaling: str, scheme: str) -> None:
    tokens = random_tokens(2, 48)
    expected = logits(with_native_scaling(scaling), tokens)
    model = hf_posswap.swap(with_native_scaling(scaling), scheme)
    swapped = logits(model, tokens)
    assert (swapped - expected).abs().max() > 0.1
    set_ramp(model, 0)
    torch.testing.assert_close(logits(model, tokens), expected, atol=1e-4, rtol=1e-4)
    set_ramp(model, 1)
    assert torch.equal(logits(model, tokens), swapped)


@pytest.mark.parametrize("scheme", ["none", "transformer_xl", "rope:dynamic"])
def test_keys_under_a_native_mechanism_that_looks_at_the_length_turn_anew(scheme: str) -> None:
    """With one layer, what is cached does not depend on angles: the last token must come out as without a cache."""
    model = hf_posswap.swap(with_native_scaling("dynamic", num_hidden_layers=1), scheme)
    randomise(model)
    set_ramp(model, 0.4)
    tokens = random_tokens(2, 64)
    expected = logits(model, tokens, use_cache=False)[:, -1]
    actual = decode(model, tokens, [28, *[1] * 8, 27, 1], DynamicCache(config=model.config))[:, -1]
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("architecture", "causal"), [("gpt2", True), ("bert", True), ("bert", False)])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_the_table_is_blended_and_the_slopes_are_scaled(architecture: str, causal: bool, share: float) -> None:
    """The same model by hand: a stock one with a blended table, to which ALiBi with smaller slopes is added."""
    tokens = random_tokens(2, 24)
    expected = with_blended_table(architecture, share, causal=causal)
    hf_posswap.swap(expected, "alibi:trainable=true:keep_native=true")
    with torch.no_grad():
        expected.base_model.pos_scheme.log_slopes += torch.tensor(share).log()
    model = hf_posswap.swap(small_model(architecture, causal), "alibi")
    set_ramp(model, share)
    assert_same(logits(model, tokens), logits(expected, tokens))


def test_from_one_table_to_another_goes_the_straight_way() -> None:
    """No mean row comes in between where the scheme brings a whole table."""
    tokens = random_tokens(2, 24)
    model = ramped("gpt2", "learned:length=48", 0.5)
    expected = with_blended_table("gpt2", 0.5, model.transformer.pos_scheme.table[:32].detach())
    assert_same(logits(model, tokens), logits(expected, tokens))


def test_rotary_angles_come_in_from_nothing() -> None:
    tokens = random_tokens(2, 24)
    expected = with_blended_table("gpt2", 0.5)
    hf_posswap.swap(expected, "rope:linear:factor=2:keep_native=true")
    assert_same(logits(ramped("gpt2", "rope", 0.5), tokens), logits(expected, tokens))


@pytest.mark.parametrize("scheme", ["none", "alibi", "t5", "relative_bias", "rope:yarn", "rope:linear"])
def test_scores_depend_on_the_distance_alone_on_the_way(scheme: str) -> None:
    """Between a vector and a turned one, scores would depend on the absolute position."""
    model = ramped("llama", scheme, 0.5)
    tokens = random_tokens(1, 20)
    shifted = torch.arange(20)[None] + 1000
    torch.testing.assert_close(logits(model, tokens, position_ids=shifted), logits(model, tokens), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_scaled_bias_is_the_share_of_it(kind: str, share: float) -> None:
    bias, _ = make_bias(kind, inputs_of(5, 7), offset=2)
    scaled = bias.scaled(torch.tensor(share))
    assert type(scaled) is type(bias)
    torch.testing.assert_close(scaled.rows(1, 4), share * bias.rows(1, 4))


def test_a_bias_of_another_kind_is_scaled_by_its_rows() -> None:
    class Squares(Bias):
        def rows(self, start: int, stop: int) -> torch.Tensor:
            return (torch.arange(start, stop)[:, None] * torch.arange(4.0)).square()[None, None]

    scaled = Squares().scaled(torch.tensor(0.5))
    assert isinstance(scaled, DenseBias)
    assert torch.equal(scaled.rows(1, 3), Squares().rows(1, 3) / 2)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_hidden_key_keeps_the_rest_of_its_weight(share: float) -> None:
    """A bias of −∞ takes the share of a key's weight away, here of one of two equal keys."""
    values = torch.tensor([[0.0, float("-inf")]], requires_grad=True)
    rows = RelativeBias(values, 1, 2).scaled(torch.tensor(share)).rows(0, 1)
    weights = rows.exp() / 2
    torch.testing.assert_close(weights.flatten().sort().values, torch.tensor([(1 - share) / 2, 0.5]))
    rows[rows.isfinite()].sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()


def test_a_blend_is_exact_at_its_ends_and_computed_in_float32() -> None:
    old, new = torch.randn(2, 100).bfloat16()
    assert torch.equal(blend(old, new, torch.tensor(0.0)), old)
    assert torch.equal(blend(old, new, torch.tensor(1.0)), new)
    between = (old.double() * 0.7 + new.double() * 0.3).bfloat16()
    assert torch.equal(blend(old, new, torch.tensor(0.3)), between)
    assert blend(old, old, torch.tensor(0.3)) is old


@pytest.mark.parametrize("scheme", ["alibi", "learned:length=48"])
def test_texts_end_where_the_old_table_ends_while_it_is_read(scheme: str) -> None:
    model = hf_posswap.swap(small_model("gpt2", True), scheme)
    tokens = random_tokens(1, 40)
    longest, expected = hf_posswap.longest_position(model), logits(model, tokens)
    for share in (0, 0.5, 1):
        set_ramp(model, share)
        assert hf_posswap.longest_position(model) == 32
        with pytest.raises(
            PositionError, match=r"position 40, but while the ramp .*table .*32 rows.*set_ramp\(model, None"
        ):
            logits(model, tokens)
    set_ramp(model, None)
    assert hf_posswap.longest_position(model) == longest
    assert torch.equal(logits(model, tokens), expected)


def test_a_ramp_of_turns_has_no_end() -> None:
    model = ramped("llama", "alibi", 0.5)
    assert hf_posswap.longest_position(model) is None
    assert logits(model, random_tokens(1, 80)).isfinite().all()


@pytest.mark.parametrize("share", [-0.1, 1.0001, float("nan"), float("inf"), True, "half", torch.tensor(0.5)])
def test_a_share_that_is_none_is_refused_and_changes_nothing(share: Any) -> None:
    model = ramped("gpt2", "alibi", 0.25)
    with pytest.raises(RampError, match="share of a ramp is .*number from 0 .* to 1 .*None to end"):
        set_ramp(model, share)
    assert ramp_share(model) == 0.25


def test_a_stock_model_has_no_ramp() -> None:
    model = small_model("gpt2", True)
    for ask in (ramp_share, lambda stock: set_ramp(stock, 0.5), lambda stock: set_ramp(stock, None)):
        with pytest.raises(NotSwappedError, match=r"no swapped model in this GPT2LMHeadModel: call hf_posswap.swap"):
            ask(model)


def test_a_mechanism_that_is_neither_table_nor_turns_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    unread = RotarySeam(None, None, "it is unlike any other")
    monkeypatch.setattr(type(architecture_named("llama")), "rotary", lambda self, base: unread)
    model = hf_posswap.swap(small_model("llama", True), "alibi")
    with pytest.raises(RampError, match=r"mechanism of 'llama' \('rope'\) cannot be faded out: .*keep_native=True"):
        set_ramp(model, 0.5)
    assert ramp_share(model) is None
    hf_posswap.swap(model, "alibi:keep_native=true", replace=True)
    set_ramp(model, 0.5)


def test_another_swap_and_restore_end_a_ramp() -> None:
    tokens = random_tokens(1, 12)
    model = ramped("gpt2", "t5", 0.5)
    hf_posswap.swap(model, "alibi", replace=True)
    assert ramp_share(model) is None
    assert torch.equal(logits(model, tokens), logits(hf_posswap.swap(small_model("gpt2", True), "alibi"), tokens))
    set_ramp(model, 0.5)
    hf_posswap.restore(model)
    assert torch.equal(logits(model, tokens), logits(small_model("gpt2", True), tokens))
    assert not [name for module in model.modules() for name in vars(module) if "ramp" in name]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_without_the_scheme_a_ramp_waits(architecture: str) -> None:
    tokens = random_tokens(1, 12)
    model = ramped(architecture, "alibi", 0.5)
    half = logits(model, tokens)
    with hf_posswap.without_scheme(model):
        assert torch.equal(logits(model, tokens), logits(small_model(architecture, True), tokens))
    assert torch.equal(logits(model, tokens), half)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_copies_and_pickles_are_on_ramps_of_their_own(architecture: str) -> None:
    tokens = random_tokens(1, 12)
    model = ramped(architecture, "shaw", 0.5)
    half = logits(model, tokens)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin, tokens), half)
        set_ramp(twin, None)
        assert not torch.equal(logits(twin, tokens), half)
    assert torch.equal(logits(model, tokens), half)


@pytest.mark.parametrize(("architecture", "scheme"), [("gpt2", "alibi"), ("gpt2", "t5"), ("llama", "relative_bias")])
def test_an_adapted_model_is_on_the_ramp_as_well(architecture: str, scheme: str) -> None:
    from peft import LoraConfig, get_peft_model

    tokens = random_tokens(2, 16)
    expected = logits(ramped(architecture, scheme, 0.4), tokens)
    model = hf_posswap.swap(small_model(architecture, True), scheme)
    randomise(model)
    swapped = logits(model, tokens)
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    set_ramp(adapted, 0.4)
    torch.testing.assert_close(logits(adapted, tokens), expected, atol=1e-5, rtol=1e-5)
    set_ramp(adapted, None)
    torch.testing.assert_close(logits(adapted, tokens), swapped, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("architecture", "scheme"), [("gpt2", "shaw"), ("bert", "alibi"), ("llama", "transformer_xl")])
def test_a_compiled_model_takes_a_new_share_without_being_compiled_anew(architecture: str, scheme: str) -> None:
    tokens = random_tokens(2, 16)
    model, plain = (ramped(architecture, scheme, 0.0, causal=architecture != "bert") for _ in range(2))
    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled: Any = torch.compile(model, fullgraph=True, backend=graphs)
    for share in (0.0, 0.2, 0.7, 1.0, None):
        set_ramp(compiled, share)
        set_ramp(plain, share)
        torch.testing.assert_close(logits(compiled, tokens), logits(plain, tokens), atol=1e-4, rtol=1e-4)
        assert graphs.frame_count == (1 if share is not None else 2)


def test_no_share_is_lost_to_autocast() -> None:
    """Under autocast angles and biases stay float32, those of the old mechanism as well."""
    model = ramped("llama", "alibi", 0.0)
    tokens = random_tokens(1, 30)
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = logits(model, tokens), logits(small_model("llama", True), tokens)
    exact = logits(small_model("llama", True), tokens)
    assert (actual.float() - exact).square().mean() <= 1.25 * (expected.float() - exact).square().mean()
