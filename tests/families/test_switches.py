"""Every switch of a config that a stock attention reads is honoured: outputs equal the stock layers' with it set."""

import inspect
import re
import sys
from functools import cache
from typing import Any

import pytest
import torch
import transformers

import hf_posswap
from hf_posswap.architectures import architecture_of
from hf_posswap.architectures.discovery import self_attention
from hf_posswap.errors import PosSwapError
from hf_posswap.swapped.capabilities import families
from hf_posswap.swapped.plan import core_of
from tests.families.checks import check_bias, randomise, tokens
from tests.families.configs import model_types, tiny_model
from tests.matrix.cells import random_tokens, small_model

READ = re.compile(r"config\.(\w+)|getattr\(config, \"(\w+)\"")
SHAPES = re.compile(r"bias|eps|dropout|drop$|is_decoder|dim$|rank$|sliding_window|multi_query")
"""Fields that shape projections and norms, which a swap leaves alone, kinds of layers, or what is tested beside."""


def switches_of(model_type: str, causal: bool) -> list[tuple[str, Any]]:
    """Switches and factors that a family's attention reads from its config, each with another value than its own."""
    model = tiny_model(model_type, causal)
    core = core_of(model)
    modules = [seam.module for seam in self_attention(core, architecture_of(model.config).is_attention)]
    if not modules:  # a release in which the family does not attend through the interface
        return []
    source = inspect.getsource(type(modules[0]))
    eager = getattr(sys.modules[type(modules[0]).__module__], "eager_attention_forward", None)
    source += inspect.getsource(eager) if eager is not None else ""
    names = {name for pair in READ.findall(source) for name in pair if name and not SHAPES.search(name)}
    known = {name: getattr(model.config, name, "") for name in sorted(names)}
    flipped = {name: not value for name, value in known.items() if isinstance(value, bool)}
    scaled = {name: value / 2 or 0.5 for name, value in known.items() if isinstance(value, float)}
    given = {name: 0.5 if name not in YES_OR_NO else True for name, value in known.items() if value is None}
    return sorted((flipped | scaled | given).items())


YES_OR_NO = ("use_bidirectional_attention",)
"""Switches whose default is neither."""


@cache
def switches() -> list[tuple[str, bool, str, Any]]:
    known = {(model_type, causal) for model_type, causal, _ in model_types()}
    supported = [(f.model_type, f.mode == "causal") for f in families() if f.supported]
    return [(*family, *switch) for family in supported if family in known for switch in switches_of(*family)]


@pytest.mark.parametrize("scheme", ["alibi", "t5"])
@pytest.mark.parametrize(("model_type", "causal", "name", "value"), switches(), ids=str)
def test_a_switch_is_honoured_or_refused(model_type: str, causal: bool, name: str, value: Any, scheme: str) -> None:
    try:
        model = tiny_model(model_type, causal, **{name: value})
        with torch.no_grad():
            model(tokens())
    except Exception as error:  # the stock model does not run with it
        pytest.skip(f"stock {model_type} does not take {name}={value}: {type(error).__name__}")
    try:
        hf_posswap.swap(model, scheme)
    except PosSwapError:
        return
    randomise(model)
    check_bias(model)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gpt_neox", "opt", "gemma2", "gpt_oss", "qwen3"])
def test_attention_dropout_is_that_of_the_stock_layers(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "attn_pdrop" if model_type == "gpt2" else "attention_dropout"
    model = hf_posswap.swap(tiny_model(model_type, True, **{name: 0.5}), "alibi").train()
    original = type(model).forward

    def seeded(*args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(5)
        return original(*args, **kwargs)

    monkeypatch.setattr(type(model), "forward", seeded)
    check_bias(model)
    text = tokens()
    with torch.no_grad():
        assert (model(text).logits - model.eval()(text).logits).abs().max() > 1e-2, "dropout is on"


@pytest.mark.parametrize("scheme", ["alibi", "t5", "rope", "shaw", "transformer_xl", "none", "sinusoidal"])
def test_upcast_attention_of_gpt2_stays_finite_in_float16(scheme: str) -> None:
    def enlarged() -> Any:
        model = small_model("gpt2", True, attn_implementation="eager", reorder_and_upcast_attn=True)
        for block in model.transformer.h:
            block.attn.c_attn.weight.data *= 300  # products of queries and keys beyond 65504
        return model

    text = random_tokens(2, 16)
    with torch.no_grad():
        assert enlarged().half()(text).logits.isfinite().all()
        model = hf_posswap.swap(enlarged(), scheme, verify=False).half()
        assert model(text).logits.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scheme", ["alibi", "rope"])
def test_upcast_attention_makes_scores_in_float32(scheme: str, dtype: torch.dtype) -> None:
    model = hf_posswap.swap(
        small_model("gpt2", True, attn_implementation="eager", reorder_and_upcast_attn=True), scheme
    ).to(dtype)
    made: list[torch.dtype] = []

    def watched(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        made.append(x.dtype)
        return x.softmax(dim)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for module in (torch, torch.nn.functional):
            patch.setattr(module, "softmax", watched)
        model(random_tokens(1, 8))
    assert made == [torch.float32] * 3


def test_the_switches_of_the_families_are_found() -> None:
    names = {name for _, _, name, _ in switches()}
    wanted = {"reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx"}
    if transformers.__version__ >= "5.24":
        wanted |= {"attn_logit_softcapping", "attention_multiplier", "use_qk_norm", "clip_qkv"}
    assert wanted <= names
