"""Swap, restore, describe and their errors, on small models."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

import hf_posswap
from hf_posswap import AlibiConfig, RopeConfig, T5Config
from hf_posswap.architectures import architecture_named
from hf_posswap.errors import (
    AlreadySwappedError,
    NotSwappedError,
    PositionError,
    PosSwapError,
    SchemeConfigError,
    UnknownNameError,
    UnsupportedError,
)
from hf_posswap.loading.entry import mark_healed
from hf_posswap.schemes import SchemeLayer
from hf_posswap.swapped.cache_view import cache_among, cache_keyword
from tests.matrix.cells import Cell, default_cells, random_tokens, randomise, small_model


@pytest.fixture
def gpt2() -> Any:
    return small_model("gpt2", causal=True)


@pytest.fixture
def llama() -> Any:
    return small_model("llama", causal=True)


@pytest.fixture
def bert() -> Any:
    return small_model("bert", causal=False)


BAD_SCHEMES: list[tuple[Any, type[PosSwapError], str]] = [
    ("alibbi", UnknownNameError, r"'alibbi'.*Did you mean 'alibi'.*Allowed: .*transformer_xl"),
    ("", UnknownNameError, r"positional scheme ''"),
    (3, SchemeConfigError, r"pos_scheme is 3 \(int\).*a scheme's name, a dict"),
    ({"num_buckets": 8}, SchemeConfigError, r"has no 'name'.*Allowed names: alibi"),
    ({"name": "t5", "num_bucket": 8}, SchemeConfigError, r"'num_bucket'.*Did you mean 'num_buckets'"),
    ({"name": "t5", "num_buckets": "many"}, SchemeConfigError, r"is 'many' \(str\); it must be an integer"),
    ({"name": "t5", "num_buckets": 2}, SchemeConfigError, r"'num_buckets' is 2; it must be at least 4"),
    ({"name": "t5", "num_buckets": True}, SchemeConfigError, r"is True \(bool\)"),
    ({"name": "rope", "base": float("nan")}, SchemeConfigError, r"'base' is nan"),
    ({"name": "rope", "scaling": "yran"}, SchemeConfigError, r"'yran'.*Did you mean 'yarn'.*Allowed: .*dynamic"),
    ({"name": "rope", "factor": 2.0}, SchemeConfigError, r"'factor' has no effect with scaling='native'.*linear"),
    ({"name": "rope", "scaling": "linear", "factor": 1}, SchemeConfigError, r"needs factor > 1"),
    ({"name": "rope", "partial_rotary_factor": 1.5}, SchemeConfigError, r"must be greater than 0 and at most 1"),
    ({"name": "alibi", "layers": [7]}, SchemeConfigError, r"names layers \[7\], but the model has layers 0 to 2"),
    ({"name": "alibi", "layers": []}, SchemeConfigError, r"'layers' is empty"),
    ({"name": "alibi", "layers": [-1]}, SchemeConfigError, r"must be at least 0"),
    ({"name": "none", "keep_native": True}, SchemeConfigError, r"changes nothing"),
    ({"name": "learned", "length": 8}, UnsupportedError, r"length=8 would cut the model's table of 32"),
    ({"name": "none", "layers": [1]}, UnsupportedError, r"enter once, at the embeddings"),
    ({"name": "alibi", "form": "symmetric"}, UnsupportedError, r"form 'symmetric' is for encoders"),
    ("rope:yarn:8", SchemeConfigError, r"cannot read '8'.*option=value"),
    ("t5:fast", SchemeConfigError, r"cannot read 'fast'"),
]


@pytest.mark.parametrize(("scheme", "error", "message"), BAD_SCHEMES, ids=[str(row[0]) for row in BAD_SCHEMES])
def test_a_bad_scheme_says_what_is_wrong_and_changes_nothing(
    gpt2: Any, scheme: Any, error: type[PosSwapError], message: str
) -> None:
    tokens = random_tokens(1, 8)
    before, classes = gpt2(tokens).logits, [type(module) for module in gpt2.modules()]
    with pytest.raises(error, match=message):
        hf_posswap.swap(gpt2, scheme)
    assert [type(module) for module in gpt2.modules()] == classes
    assert torch.equal(gpt2(tokens).logits, before)
    assert not hf_posswap.is_swapped(gpt2)


def test_odd_head_dimensions_cannot_turn() -> None:
    config = transformers.GPT2Config(vocab_size=97, n_embd=28, n_layer=1, n_head=4, n_positions=32)
    with pytest.raises(UnsupportedError, match="dimensions turn in pairs, but 7 of the head dimension 7 would turn"):
        hf_posswap.swap(transformers.GPT2LMHeadModel(config), "rope")


def test_an_unsupported_architecture_lists_the_supported_ones() -> None:
    config = transformers.T5Config(vocab_size=97, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    model = transformers.T5ForConditionalGeneration(config)
    for function in (lambda: hf_posswap.swap(model, "alibi"), lambda: hf_posswap.describe(model)):
        with pytest.raises(
            UnsupportedError, match="'t5' is not supported: transformers maps it to no causal or masked"
        ):
            function()


def test_swapping_twice_must_be_said(gpt2: Any) -> None:
    tokens = random_tokens(1, 8)
    stock = gpt2(tokens).logits
    hf_posswap.swap(gpt2, "t5")
    randomise(gpt2)
    before = gpt2(tokens).logits
    with pytest.raises(AlreadySwappedError, match="has scheme 't5' already, swapped in for 'learned'.*replace=True"):
        hf_posswap.swap(gpt2, "alibi")
    with pytest.raises(UnsupportedError):
        hf_posswap.swap(gpt2, AlibiConfig(form="offset"), replace=True)
    assert torch.equal(gpt2(tokens).logits, before)
    hf_posswap.swap(gpt2, "alibi", replace=True)
    expected = hf_posswap.swap(small_model("gpt2", True), "alibi")(tokens).logits
    assert torch.equal(gpt2(tokens).logits, expected)
    assert not any(isinstance(m, SchemeLayer) and "T5" in type(m).__name__ for m in gpt2.modules())
    assert torch.equal(hf_posswap.restore(gpt2)(tokens).logits, stock)


@pytest.mark.parametrize("scheme", ["t5", "alibi"])
def test_a_scheme_in_place_of_another_keeps_the_healed_mean_row(gpt2: Any, scheme: str) -> None:
    hf_posswap.swap(gpt2, "rope")
    with torch.no_grad():
        gpt2.transformer.wpe.weight += 1
    healed = gpt2.transformer.wpe.weight.clone()
    hf_posswap.swap(gpt2, scheme, replace=True)
    assert torch.equal(gpt2.transformer.wpe.weight, healed)
    hf_posswap.swap(gpt2, "learned", replace=True)  # it brings the whole table
    assert not gpt2.transformer.wpe.weight.any()


def test_restoring_a_stock_model_is_an_error(gpt2: Any) -> None:
    with pytest.raises(NotSwappedError, match="stock GPT2LMHeadModel: there is nothing to restore"):
        hf_posswap.restore(gpt2)
    with pytest.raises(NotSwappedError), hf_posswap.without_scheme(gpt2):
        pass


def test_restore_keeps_trained_weights(llama: Any) -> None:
    hf_posswap.swap(llama, "alibi")
    with torch.no_grad():
        llama.model.embed_tokens.weight += 1
    expected = small_model("llama", True)
    with torch.no_grad():
        expected.model.embed_tokens.weight += 1
    tokens = random_tokens(1, 8)
    assert torch.equal(hf_posswap.restore(llama)(tokens).logits, expected(tokens).logits)


def test_without_scheme_runs_the_stock_model_for_a_while(gpt2: Any) -> None:
    tokens = random_tokens(1, 8)
    stock = gpt2(tokens).logits
    hf_posswap.swap(gpt2, "alibi")
    swapped = gpt2(tokens).logits
    with hf_posswap.without_scheme(gpt2):
        assert torch.equal(gpt2(tokens).logits, stock)
    with pytest.raises(IndexError), hf_posswap.without_scheme(gpt2):
        gpt2(random_tokens(1, 40))
    assert torch.equal(gpt2(tokens).logits, swapped)


def test_layers_leave_the_native_mechanism_elsewhere(llama: Any) -> None:
    tokens = random_tokens(1, 12)
    stock = llama(tokens, output_hidden_states=True).hidden_states
    hf_posswap.swap(llama, {"name": "none", "layers": [2]})
    assert [type(layer.self_attn).__name__ for layer in llama.model.layers] == [
        "LlamaAttention", "LlamaAttention", "PosSwapLlamaAttention",
    ]  # fmt: skip
    mixed = llama(tokens, output_hidden_states=True).hidden_states
    assert torch.equal(mixed[2], stock[2])
    assert not torch.equal(mixed[3], stock[3])
    hf_posswap.swap(llama, {"name": "none", "layers": [0, 1, 2]}, replace=True)
    everywhere = llama(tokens).logits
    assert torch.equal(everywhere, hf_posswap.swap(small_model("llama", True), "none")(tokens).logits)


def test_the_scale_of_a_layer_comes_before_its_bias() -> None:
    """GPT-2's scale_attn_by_inverse_layer_idx divides the scores, not the bias."""
    model = small_model("gpt2", True, scale_attn_by_inverse_layer_idx=True, attn_implementation="eager")
    hf_posswap.swap(model, "alibi")
    attention = model.transformer.h[2].attn
    hidden = torch.randn(1, 6, 32)
    q, k, _ = attention.c_attn(hidden).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
    expected = q @ k.transpose(-1, -2) / (8**0.5 * 3)
    distance = torch.arange(6)[:, None] - torch.arange(6)[None, :]
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])
    expected = (expected - slopes[:, None, None] * distance).masked_fill(distance < 0, float("-inf")).softmax(-1)
    captured = {}
    attention.register_forward_hook(lambda module, args, output: captured.update(weights=output[1]))
    model.transformer.h[2].ln_1 = torch.nn.Identity()
    model.transformer.h[1].register_forward_hook(lambda *_: hidden)
    model(random_tokens(1, 6))
    torch.testing.assert_close(captured["weights"], expected, atol=1e-6, rtol=1e-5)


def test_the_bias_falls_with_distance(gpt2: Any) -> None:
    """Two public ports add +m·Δ: with equal keys, weights must rise towards the query."""
    gpt2.set_attn_implementation("eager")
    hf_posswap.swap(gpt2, "alibi")
    weights = gpt2(torch.full((1, 10), 5), output_attentions=True).attentions[0][0]
    assert (weights[:, 9].diff(dim=-1) > 0).all()


def test_a_retired_table_leaves_its_mean_row(gpt2: Any) -> None:
    table = gpt2.transformer.wpe.weight.detach().clone()
    hf_posswap.swap(gpt2, "none")
    torch.testing.assert_close(gpt2.transformer.wpe(torch.arange(3))[0, 0], table[1:].mean(0))
    assert gpt2.transformer.wpe.weight.requires_grad


def test_tools_that_replaced_a_forward_are_not_overruled_silently(gpt2: Any) -> None:
    module = gpt2.transformer.h[1].attn
    module.forward = module.forward
    with pytest.raises(UnsupportedError, match="forward of GPT2Attention was replaced on the instance"):
        hf_posswap.swap(gpt2, "alibi")
    assert not hf_posswap.is_swapped(gpt2)


def test_wrappers_and_strangers_are_refused_whole(gpt2: Any) -> None:
    from peft import LoraConfig, get_peft_model

    class Mine(transformers.GPT2LMHeadModel):
        pass

    mine = Mine(gpt2.config)
    with pytest.raises(UnsupportedError, match="Mine is no class of transformers' own"):
        hf_posswap.swap(mine, "alibi")
    assert not hf_posswap.is_swapped(mine)
    assert type(mine.transformer) is transformers.GPT2Model
    adapted = get_peft_model(gpt2, LoraConfig(r=2, target_modules=["c_attn"]))
    with pytest.raises(UnsupportedError, match="PeftModel is no transformers model but wraps one. Swap the"):
        hf_posswap.swap(adapted, "alibi")


def test_accelerates_hooks_are_followed(gpt2: Any) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    tokens = random_tokens(1, 8)
    stock = gpt2(tokens).logits
    for module in (gpt2.transformer, *(block.attn for block in gpt2.transformer.h)):
        add_hook_to_module(module, ModelHook())
    hf_posswap.swap(gpt2, "alibi")
    expected = hf_posswap.swap(small_model("gpt2", True), "alibi")(tokens).logits
    assert torch.equal(gpt2(tokens).logits, expected)
    assert torch.equal(hf_posswap.restore(gpt2)(tokens).logits, stock)


def test_positions_that_do_not_continue_the_cache_are_refused(gpt2: Any) -> None:
    hf_posswap.swap(gpt2, "alibi")
    outputs = gpt2(random_tokens(1, 6), use_cache=True)
    cached = {cache_keyword(outputs): cache_among(outputs.values())}
    with pytest.raises(PositionError, match="position_ids do not continue the cached tokens"):
        gpt2(random_tokens(1, 2), **cached, position_ids=torch.tensor([[9, 10]]))


def test_describe_tells_what_was_swapped(gpt2: Any, llama: Any, bert: Any) -> None:
    plain = hf_posswap.describe(gpt2)
    assert plain.scheme is None
    assert plain.longest_after == 32
    assert "nothing was swapped" in str(plain)

    state = gpt2.state_dict()
    report = hf_posswap.describe(hf_posswap.swap(gpt2, "alibi"))
    assert report.parameters_before - report.parameters_after == 31 * 32
    assert report.probe is not None
    assert report.probe.largest > 0
    assert report.longest_before == 32
    assert report.longest_after is None
    swapped = "ALiBi (alibi, form=causal) in the place of learned"
    for words in (swapped, "table of 32 rows (its mean row stays)", "any number of"):
        assert words in str(report)
    assert set(report.to_dict()) >= {"scheme", "probe", "attention"}
    assert gpt2.state_dict().keys() != state.keys()
    assert hf_posswap.is_swapped(gpt2)

    same = hf_posswap.describe(hf_posswap.swap(llama, "rope"))
    assert same.probe is not None
    assert same.probe.largest == 0
    assert "logits equal the stock model's" in str(same)
    added = hf_posswap.describe(hf_posswap.swap(bert, T5Config(keep_native=True)))
    assert "added to learned" in str(added)
    assert "all zero: no position until trained" in added.added
    assert added.longest_after == 32


def test_describe_does_not_call_a_healed_models_weights_stock(gpt2: Any) -> None:
    hf_posswap.swap(gpt2, "alibi")
    assert not hf_posswap.describe(gpt2).healed
    assert "healed" not in str(hf_posswap.describe(gpt2))
    mark_healed(gpt2.config)
    report = hf_posswap.describe(gpt2)
    assert report.healed
    assert "from these healed weights' under the stock mechanism" in str(report)
    assert "the stock model's" not in str(report)


def test_describe_leaves_the_mode_alone(gpt2: Any) -> None:
    hf_posswap.swap(gpt2, "alibi").train()
    hf_posswap.describe(gpt2)
    assert gpt2.training


def test_two_schemes_and_a_stock_model_live_side_by_side() -> None:
    tokens = random_tokens(1, 12)
    models = {name: small_model("gpt2", True) for name in ("stock", "alibi", "rope")}
    expected = {"stock": models["stock"](tokens).logits}
    for name in ("alibi", "rope"):
        expected[name] = hf_posswap.swap(models[name], name)(tokens).logits
    for name, model in models.items():
        assert torch.equal(model(tokens).logits, expected[name])


def test_a_swap_of_the_base_model_alone() -> None:
    base = small_model("gpt2", True).transformer
    tokens = random_tokens(1, 8)
    stock = base(tokens)[0]
    assert not torch.equal(hf_posswap.swap(base, "alibi")(tokens)[0], stock)
    assert type(base).__name__ == "PosSwapGPT2Model"
    assert torch.equal(hf_posswap.restore(base)(tokens)[0], stock)


@pytest.mark.parametrize("make", [lambda: "rope:linear:factor=2", lambda: RopeConfig(scaling="linear", factor=2.0),
                                  lambda: {"name": "rope", "scaling": "linear", "factor": 2}])  # fmt: skip
def test_three_ways_to_say_a_scheme(llama: Any, make: Callable[[], Any]) -> None:
    hf_posswap.swap(llama, make())
    options = llama.config.pos_scheme["options"]
    assert (llama.config.pos_scheme["name"], options["scaling"], options["factor"]) == ("rope", "linear", 2.0)


@pytest.mark.parametrize("scheme", ["alibi", "rope:linear", "transformer_xl"])
def test_schemes_run_outside_of_autocast(llama: Any, scheme: str) -> None:
    """Under autocast a product of float32 angles or biases would come out in bfloat16."""
    hf_posswap.swap(llama, scheme)
    seen = []

    def watch(owner: Any, name: str) -> None:
        hook = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            seen.append((name, torch.is_autocast_enabled("cpu")))
            return hook(*arguments)

        setattr(owner, name, watched)

    layer = llama.model.layers[0].self_attn.pos_scheme
    watch(llama.model.pos_scheme, "prepare")
    hooks = ["transform_query", "transform_cached"] if layer.transforms else []
    hooks += ["bias"] if layer.enters_attention else []
    for name in hooks:
        watch(layer, name)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = llama(random_tokens(1, 40)).logits
    assert logits.dtype == torch.bfloat16
    assert set(seen) == {(name, False) for name in ("prepare", *hooks)}


@pytest.mark.parametrize(
    "ask", [hf_posswap.describe, hf_posswap.restore, hf_posswap.longest_position, hf_posswap.train_length]
)
@pytest.mark.parametrize("thing", ["gpt2", None, torch.nn.Linear(1, 1)])
def test_what_is_no_model_is_refused_with_how_to_load_one(ask: Any, thing: Any) -> None:
    with pytest.raises(UnsupportedError, match="is no transformers model. Load one first"):
        ask(thing)
    with pytest.raises(UnsupportedError, match="is no transformers model. Load one first"):
        hf_posswap.swap(thing, "alibi")


@pytest.mark.parametrize("scheme", ["alibi", "none", "t5", "sinusoidal", "learned"])
def test_a_table_that_was_frozen_stays_frozen(scheme: str) -> None:
    model = small_model("gpt2", True)
    model.requires_grad_(False)
    hf_posswap.swap(model, scheme)
    assert not model.transformer.wpe.weight.requires_grad
    assert not hf_posswap.restore(model).transformer.wpe.weight.requires_grad


WITH_A_TABLE = [cell for cell in default_cells() if "learned" in str(cell.swapped().config.pos_scheme["native"])]


@pytest.mark.parametrize("learns", [False, True], ids=["frozen", "unfrozen"])
@pytest.mark.parametrize("cell", WITH_A_TABLE, ids=str)
def test_a_table_comes_back_as_frozen_as_the_rest_is(cell: Cell, learns: bool) -> None:
    for then in (None, "kerple", "learned"):
        model = hf_posswap.swap(cell.stock().requires_grad_(not learns), cell.config)
        model.requires_grad_(learns)
        if then is not None:
            hf_posswap.swap(model, then, replace=True)
        hf_posswap.restore(model)
        assert {weight.requires_grad for weight in model.parameters()} == {learns}, then


@pytest.mark.parametrize("cell", WITH_A_TABLE, ids=str)
def test_a_table_that_alone_learned_or_was_frozen_comes_back_so(cell: Cell) -> None:
    for learns in (False, True):
        model = cell.stock().requires_grad_(not learns)
        table = architecture_named(cell.architecture).position_table(model.base_model)
        assert table is not None
        table.requires_grad_(learns)
        before = {name: weight.requires_grad for name, weight in model.named_parameters()}
        hf_posswap.restore(hf_posswap.swap(model, cell.config))
        assert {name: weight.requires_grad for name, weight in model.named_parameters()} == before
