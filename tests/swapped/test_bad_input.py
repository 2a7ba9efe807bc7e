"""Attention, forwards and caches that other tools put in: the right result, or an error that names them."""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import hf_posswap
from hf_posswap.errors import BackendError, PositionError, UnsupportedError
from hf_posswap.schemes import SchemeLayer
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.questions import path_of
from tests.matrix.cells import Cell, default_cells, given, one_of_each_kind, random_tokens

CELLS = one_of_each_kind()
CAUSAL = [cell for cell in default_cells() if cell.causal]
MINE = "of_the_user"
HUB = "kernels-community/flash-attn2"
"""A kernel from the Hub, under whose name transformers registers a function when it loads it."""


def of_the_user(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """A function of one's own that does what sdpa does."""
    return sdpa_attention_forward(module, q, k, v, mask, **kwargs)


@contextmanager
def registered(name: str, function: Any) -> Iterator[None]:
    """Let transformers have an attention function under a name within a `with` block."""
    functions, masks = AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping
    before = [(table, dict(table)) for table in (functions, masks)]
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)
    try:
        yield
    finally:
        for table, contents in before:
            table.clear()
            table.update(contents)


def adds_a_bias(model: Any) -> bool:
    """Whether the scheme changes scores, so that not every attention function can carry it."""
    layer = next((module for module in model.modules() if isinstance(module, SchemeLayer)), SchemeLayer())
    return not path_of(core_of(model).pos_scheme, layer, model).endswith("exactly as in the stock model")


def padded() -> dict[str, Tensor]:
    tokens = random_tokens(2, 20)
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    return {"input_ids": tokens * mask, "attention_mask": mask}


@torch.no_grad()
def shown(model: Any) -> Tensor:
    """Logits of padded texts, where the mask shows them."""
    text = padded()
    return model(**text).logits[text["attention_mask"].bool()]


@pytest.mark.parametrize("name", [MINE, HUB])
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_function_of_ones_own_runs_or_is_refused(cell: Cell, name: str) -> None:
    model = cell.swapped()
    expected = shown(model)
    with registered(name, of_the_user):
        stock = cell.stock()
        stock.config._attn_implementation = model.config._attn_implementation = name
        if not adds_a_bias(cell.swapped()):
            torch.testing.assert_close(shown(model), expected, atol=1e-5, rtol=1e-5)
            hf_posswap.swap(stock, cell.config)
            stock.load_state_dict(model.state_dict())
            torch.testing.assert_close(shown(stock), expected, atol=1e-5, rtol=1e-5)
            return
        with pytest.raises(BackendError, match=f"backend '{name}' cannot carry .*Backends that work: eager, sdpa"):
            shown(model)
        with pytest.raises(BackendError, match=f"backend '{name}' cannot carry .*Backends that work: eager, sdpa"):
            hf_posswap.swap(stock, cell.config)
        assert not hf_posswap.is_swapped(stock)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_function_of_ones_own_under_the_name_of_a_backend_is_not_left_out(cell: Cell) -> None:
    model = cell.swapped()
    model.set_attn_implementation("sdpa")
    expected = shown(model)
    with registered("sdpa", of_the_user):
        if adds_a_bias(model):
            with pytest.raises(BackendError, match=f"'sdpa' was replaced by 'of_the_user' of {__name__}"):
                shown(model)
        else:
            assert torch.equal(shown(model), expected)
    assert torch.equal(shown(model), expected)


ATTENTION = ("GPT2Attention", "LlamaAttention", "Gemma3Attention", "BertSelfAttention")


def attention_of(model: Any) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__.endswith(ATTENTION)]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_forward_replaced_after_the_swap_is_noticed_where_the_scheme_acts(cell: Cell) -> None:
    model = cell.swapped()
    expected = shown(model)
    module = attention_of(model)[1]
    mine, stock = module.forward, getattr(type(module), "stock_class", type(module)).forward
    module.forward = lambda *args, **kwargs: mine(*args, **kwargs)  # a tool that looks on
    assert torch.equal(shown(model), expected)
    module.forward = lambda *args, **kwargs: stock(module, *args, **kwargs)  # a tool that puts its own in
    if module in core_of(model).pos_layers:
        with pytest.raises(UnsupportedError, match="replaced (on the instance|its forward) after the swap"):
            shown(model)
    else:
        assert torch.equal(shown(model), expected)
    del module.forward
    assert torch.equal(shown(model), expected)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_attention_that_no_longer_comes_to_the_interface_is_noticed(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class whose forward is replaced for all models, before the swap and after it."""
    model, stock = cell.swapped(), cell.stock()
    module = attention_of(model)[0]
    kind = getattr(type(module), "stock_class", type(module))

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return hidden_states, None

    monkeypatch.setattr(kind, "forward", forward)
    with pytest.raises(UnsupportedError, match="chooses its attention function from transformers' AttentionInterface"):
        hf_posswap.swap(stock, cell.config)
    if module in core_of(model).pos_layers:
        with pytest.raises(
            UnsupportedError, match=f"forward of {kind.__name__} was replaced on the class after the swap"
        ):
            shown(model)


def on_the_way(model: Any) -> list[type]:
    """The classes whose forwards lead to a layer's attention: of core, block and attention, swapped and stock."""
    core, module = core_of(model), attention_of(model)[0]
    path = next(name for name, other in core.named_modules() if other is module)
    above = [core.get_submodule(path.rsplit(".", depth)[0]) for depth in range(1, path.count(".") + 1)]
    kinds = [type(part) for part in (core, module, *above) if not isinstance(part, torch.nn.ModuleList)]
    return kinds + [kind.stock_class for kind in kinds if hasattr(kind, "stock_class")]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_forward_replaced_on_a_class_after_the_swap_is_refused(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cell.swapped()
    copied, expected = copy.deepcopy(model), shown(model)
    for kind in on_the_way(model):
        concerned = kind in {type(core_of(model)), type(core_of(model)).stock_class} or core_of(model).pos_layers
        if not concerned:
            continue
        proved = kind.forward
        with monkeypatch.context() as replaced:
            replaced.setattr(kind, "forward", looking_on(proved))
            for each in (model, copied):
                with pytest.raises(
                    UnsupportedError, match=f"forward of {kind.__name__} was replaced on the class after"
                ):
                    shown(each)
            again = hf_posswap.swap(cell.stock(), cell.config)  # the forward is seen to come to the scheme
            again.load_state_dict(model.state_dict())
            assert torch.equal(shown(again), expected)
        assert torch.equal(shown(model), expected)


def looking_on(forward: Any) -> Any:
    """A tool that looks on."""

    @functools.wraps(forward)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return wrapper


LEFT_OUT = [cell for cell in CELLS if hasattr(cell.stock().base_model, "rotary_emb") and cell.config.name != "rope"]
"""Cells whose own angles a scheme takes out."""


@pytest.mark.parametrize("cell", LEFT_OUT, ids=str)
def test_attention_that_makes_its_own_angles_is_refused(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward that reads nothing of the angles that a scheme puts in, or takes out, among its arguments."""
    stock = cell.stock()
    kind, rotary = type(attention_of(stock)[0]), core_of(stock).rotary_emb
    attention = kind.forward

    @functools.wraps(attention)
    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        kinds = [self.layer_type] if hasattr(self, "layer_type") else []
        own = rotary(hidden_states, torch.arange(hidden_states.shape[1])[None], *kinds)
        if "position_embeddings" in kwargs:
            return attention(self, hidden_states, *args, **kwargs | {"position_embeddings": own})
        return attention(self, hidden_states, own, *args[1:], **kwargs)

    monkeypatch.setattr(kind, "forward", forward)
    with pytest.raises(UnsupportedError, match="rotary angles that its attention is given change nothing"):
        hf_posswap.swap(stock, cell.config)
    assert not hf_posswap.is_swapped(stock)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_forward_replaced_before_the_swap_is_refused(cell: Cell) -> None:
    model = cell.stock()
    core = core_of(model)
    core.forward = core.forward
    with pytest.raises(UnsupportedError, match=f"forward of {type(core).__name__} was replaced on the instance"):
        hf_posswap.swap(model, cell.config)
    assert not hf_posswap.is_swapped(model)


EVICTED = [0, 1, 2, 9, 10, 11]
"""Keys of 12 that stay."""


@pytest.mark.parametrize("layers", [[1], [1, 2]], ids=str)
@pytest.mark.parametrize("cell", CAUSAL, ids=str)
def test_keys_evicted_from_some_layers_are_noticed(cell: Cell, layers: list[int]) -> None:
    model, tokens = cell.swapped(), random_tokens(2, 14)
    cache = DynamicCache(config=model.config)
    cached = given(model, cache)
    with torch.no_grad():
        model(tokens[:, :12], use_cache=True, **cached)
        for layer in layers:
            kept = cache.layers[layer]
            kept.keys, kept.values = kept.keys[:, :, EVICTED], kept.values[:, :, EVICTED]
        with pytest.raises(PositionError, match=r"layers of the cache hold \[6, 12\] tokens: keys were evicted"):
            model(tokens[:, 12:], use_cache=True, **cached)


class Forgetful(DynamicCache):
    """Keeps the last eight keys of a layer, and says that it has seen all."""

    def update(self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
        self.seen = getattr(self, "seen", 0) + (key.shape[2] if layer == 0 else 0)
        super().update(key, value, layer, *args, **kwargs)
        kept = self.layers[layer]
        kept.keys, kept.values = kept.keys[:, :, -8:], kept.values[:, :, -8:]
        return kept.keys, kept.values

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        return getattr(self, "seen", 0)

    def get_mask_sizes(self, length: int, layer: int = 0) -> tuple[int, int]:
        return min(self.seen + length if hasattr(self, "seen") else length, 8), 0


@pytest.mark.parametrize("cell", CAUSAL, ids=str)
def test_a_cache_that_evicts_by_itself_is_noticed(cell: Cell) -> None:
    model, tokens = cell.swapped(), random_tokens(2, 10)
    cached = given(model, Forgetful(config=model.config))
    with torch.no_grad():
        model(tokens[:, :8], use_cache=True, **cached)
        with pytest.raises(PositionError, match=r"of which layers \[.*\] will not return all: keys were evicted"):
            model(tokens[:, 8:], use_cache=True, **cached)


@pytest.mark.parametrize("scheme", ["none", "alibi", "rope", "sinusoidal"])
@pytest.mark.parametrize("kind", ["T5", "Mamba", "Vit"])
def test_a_model_type_that_is_not_understood_is_refused_with_its_reason(kind: str, scheme: str) -> None:
    small: dict[str, dict[str, Any]] = {
        "T5": {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_kv": 16, "d_ff": 32, "vocab_size": 97},
        "Mamba": {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 97, "state_size": 4},
        "Vit": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    }
    model = {
        "T5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**small["T5"])),
        "Mamba": lambda: transformers.MambaForCausalLM(transformers.MambaConfig(**small["Mamba"])),
        "Vit": lambda: transformers.ViTModel(transformers.ViTConfig(**small["Vit"])),
    }[kind]()
    before = type(model), model.config.to_dict()
    with pytest.raises(UnsupportedError, match="is not supported: |AttentionInterface, so a scheme has no way"):
        hf_posswap.swap(model, scheme)
    assert (type(model), model.config.to_dict()) == before
