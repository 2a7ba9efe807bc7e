"""What is checked of every family: the scheme's bias is exact, a cache changes nothing, checkpoints, and restoring."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

import hf_posswap
from hf_posswap.architectures import architecture_of
from hf_posswap.architectures.discovery import LENGTH_FIELD, length_field
from hf_posswap.common.biases import Bias
from hf_posswap.common.positions import Positions
from hf_posswap.errors import UnsupportedError
from hf_posswap.schemes import SchemeLayer
from hf_posswap.swapped.modules import SwappedAttention
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.stated_length import NO_LIMIT
from hf_posswap.swapped.written import named
from tests.families.configs import tiny_model
from tests.reference import layer_bias

SCHEMES = ("none", "alibi", "t5", "rope", "sinusoidal")
LENGTH = 24


def tokens(length: int = LENGTH, seed: int = 2) -> Tensor:
    """Two texts of ordinary tokens."""
    return torch.randint(3, 90, (2, length), generator=torch.Generator().manual_seed(seed))


def randomise(model: Any) -> None:
    """Move the scheme's parameters away from zero."""
    generator = torch.Generator().manual_seed(1)
    modules = [core_of(model).pos_scheme, *(m for m in model.modules() if isinstance(m, SchemeLayer))]
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter += 0.5 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def logits(model: Any, text: Tensor, **arguments: Any) -> Tensor:
    """Logits without a cache."""
    causal = architecture_of(model.config).is_causal(model.config)
    return model(text, **({"use_cache": False} if causal else {}) | arguments).logits


@torch.no_grad()
def check_bias(model: Any) -> None:
    """A swapped model equals its stock layers, without their own mechanism, whose mask has the bias added to it."""
    core = core_of(model)
    facts, text = core.pos_scheme.facts, tokens()
    steps = torch.arange(LENGTH).unsqueeze(0)
    positions = Positions(steps, steps, 0, facts.causal)
    query = torch.zeros(1, facts.num_heads, LENGTH, facts.head_dim)
    bias = layer_bias(core.pos_scheme.make_layer(0), query, positions, core.pos_scheme.prepare(positions))
    if not isinstance(bias, Bias) and core.pos_scheme.name != "none":
        return  # rotations and vectors at the embeddings have oracles of their own
    actual = logits(model, text)
    written = core.architecture.writes_attention
    core.pos_mode = "bare"
    try:
        without = logits(model, text)
        expected = without
        if bias is not None:
            core.pos_mode = "idle" if written else "bare"
            with (in_place_of_their_own if written else added_to_masks)(model, bias.rows(0, LENGTH)):
                expected = logits(model, text)
            assert (actual - without).abs().max() > 1e-3, "the bias changes something"
    finally:
        del core.pos_mode
    assert_close(actual, expected)


@contextmanager
def added_to_masks(model: Any, rows: Tensor) -> Iterator[None]:
    """Let a family's own eager attention find a bias in the mask it is given."""
    module = next(module for module in model.modules() if isinstance(module, SwappedAttention))
    family = module.pos_family
    stock = family.eager_function(module)

    def with_bias(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, *args: Any, **kwargs: Any) -> Any:
        if mask is None:
            mask = torch.zeros(1, 1, LENGTH, LENGTH)
        return stock(module, q, k, v, mask + rows, *args, **kwargs)

    family.eager_function = lambda module: with_bias  # type: ignore[method-assign]
    try:
        yield
    finally:
        del family.eager_function


NATIVE_SCORES = {"bloom": "alibi", "mpnet": "position_bias"}
"""Under which name a family that is written here hands its own bias to its stock attention."""


@contextmanager
def in_place_of_their_own(model: Any, rows: Tensor) -> Iterator[None]:
    """Let the stock attention of a family that is written here find a bias where its own would be."""
    core = core_of(model)

    def replace(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        arguments = named(module.stock_class, args, kwargs)
        whole = rows.expand(2, core.pos_scheme.facts.num_heads, -1, -1)
        arguments[NATIVE_SCORES[core.architecture.name]] = whole.flatten(0, 1) if "alibi" in arguments else whole
        return (), arguments

    handles = [
        module.register_forward_pre_hook(replace, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, SwappedAttention)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Assert that float32 logits agree: to some ten-thousandths of the largest, after sums in another order."""
    torch.testing.assert_close(actual, expected, atol=3e-4 * float(expected.abs().max()), rtol=1e-4)


@torch.no_grad()
def check_cached(model: Any, chunks: tuple[int, ...] = (18, 1, 1, 1, 1, 1, 1)) -> None:
    """A text read in parts, through a cache, gives what it gives at once."""
    text = tokens(sum(chunks))
    expected = logits(model, text)
    parts, start, given = [], 0, {}
    for chunk in chunks:
        out = model(text[:, start : start + chunk], use_cache=True, **given)
        given = {name: value for name, value in out.items() if isinstance(value, Cache)}
        assert given, "the model returns a cache"
        parts.append(out.logits)
        start += chunk
    assert_close(torch.cat(parts, dim=1), expected)


def check_stated(model: Any, stock: Any) -> None:
    """The config states how many positions the model represents, and its file what the stock model's stated."""
    longest = hf_posswap.longest_position(model)
    stated = getattr(model.config, LENGTH_FIELD, NO_LIMIT)
    assert stated == (NO_LIMIT if longest is None else longest)
    name = length_field(model.config)
    assert model.config.to_dict().get(name) == stock.to_dict().get(name)
    if core_of(model).pos_scheme.facts.causal:
        made = model.generate(tokens(20), do_sample=False, eos_token_id=None, disable_compile=True)
        assert made.shape[1] == (40 if longest is None else min(40, longest))


def from_checkpoint(model: Any, folder: Path) -> Any:
    """The stock model as users have it: loaded, when transformers renames and joins weights of some families."""
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, attn_implementation=model.config._attn_implementation).eval()


def check_saved(model: Any, folder: Path) -> None:
    """A checkpoint loads through the Auto class: the same weights bit for bit, and the same logits to rounding.

    Kernels of experts sum in an order that depends on how weights lie in memory, so that stock models differ by it too.
    """
    model.save_pretrained(folder)
    auto = (
        hf_posswap.AutoModelForCausalLM if core_of(model).pos_scheme.facts.causal else hf_posswap.AutoModelForMaskedLM
    )
    loaded = auto.from_pretrained(folder, attn_implementation=model.config._attn_implementation).eval()
    saved = model.state_dict()
    assert loaded.state_dict().keys() == saved.keys()
    assert all(torch.equal(weight, saved[name]) for name, weight in loaded.state_dict().items())
    assert_close(logits(loaded, tokens()), logits(model, tokens()))


def check_restored(model: Any, stock: Tensor, config: Any, **arguments: Any) -> None:
    """The stock model comes back bit for bit, and its config states what it stated."""
    hf_posswap.restore(model)
    assert getattr(model.config, LENGTH_FIELD, None) == getattr(config, LENGTH_FIELD, None)
    with torch.no_grad():
        assert torch.equal(model(tokens(), **arguments).logits, stock)


@dataclass(frozen=True)
class Outcome:
    """What a scheme did in a family: it passed every check, was refused, or a check failed.

    Attributes:
        kind: "ok", "refused" or "failed".
        reason: why, if not ok.
    """

    kind: str
    reason: str = ""


def outcome(model_type: str, causal: bool, scheme: str, folder: Path) -> Outcome:
    """Swap a scheme into a small model of a family and run every check on it."""
    arguments = {"use_cache": False} if causal else {}
    model = from_checkpoint(tiny_model(model_type, causal), folder / "stock")
    config = copy.deepcopy(model.config)
    with torch.no_grad():
        stock = model(tokens(), **arguments).logits
    try:
        hf_posswap.swap(model, scheme)
    except UnsupportedError as error:
        return Outcome("refused", str(error))
    randomise(model)
    check = "bias"
    try:
        check_bias(model)
        if causal:
            check = "cached"
            check_cached(model)
        check = "stated"
        check_stated(model, config)
        check = "saved"
        check_saved(model, folder / "swapped")
        check = "restored"
        check_restored(model, stock, config, **arguments)
    except UnsupportedError as error:  # a checkpoint is proved when it is loaded
        return Outcome("refused", str(error))
    except AssertionError:
        too = ", in the stock model too" if check == "cached" and stock_decodes_otherwise(model_type) else ""
        return Outcome("failed", FAILURES[check] + too)
    except Exception as error:  # an outcome to record: the run of the families goes on
        return Outcome("failed", f"{check}: {type(error).__name__}: {' '.join(str(error).split())}")
    return Outcome("ok")


FAILURES = {
    "bias": "outputs differ from its own attention given the same bias in its mask",
    "cached": "a text read in parts, through a cache, differs from the same read at once",
    "stated": "its config, or generate without lengths, stops elsewhere than the model",
    "saved": "a saved checkpoint gives other outputs when it is loaded",
    "restored": "the restored model differs from the stock model",
}


def stock_decodes_otherwise(model_type: str) -> bool:
    """Whether a family's stock model decodes otherwise than it reads."""
    try:
        check_cached(tiny_model(model_type, True))
    except AssertionError:
        return True
    return False
