"""The proof of a swap: a few short forwards that verify the swap, run when a model is swapped or loaded.

Discovery finds the places of the swap by types and names. The proof verifies them with numbers, on the model itself and
with the installed transformers. If positions enter a model in another way, the swap is refused and the error states the
measured value.
"""

import inspect
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from hf_posswap.architectures.base import Architecture
from hf_posswap.architectures.tables import RetiredTable
from hf_posswap.errors import UnsupportedError
from hf_posswap.swapped.cache_view import cache_keyword
from hf_posswap.swapped.config_view import show_config, show_view
from hf_posswap.swapped.modules import SwappedAttention, SwappedBaseModel, is_unfitted, unfitted_too
from hf_posswap.swapped.offloading import device_of, is_offloaded

logger = logging.getLogger(__name__)

BATCH, LENGTH = 2, 16
"""Number of texts, and tokens per text."""
WITHIN_WINDOW = 8
"""Tokens of a text in which each token of an encoder sees all others, despite sliding windows."""
STRETCH = 3
"""Factor by which distances are stretched in outputs that must not depend on distances."""
PLAIN_BACKENDS = ("eager", "sdpa")
SEED = 0
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1
"""Largest root mean square of a difference, relative to that of the outputs. In half precision, another order of
summation and experts with nearly equal scores cause a few per cent. If a text is decoded without its cache, the
difference is as large as the outputs."""


@dataclass(frozen=True)
class Proof:
    """The results of the checks; None for a check that was not run.

    Attributes:
        untouched: with the swapped modules in place but inactive, outputs equal the stock model's bit for bit.
        removed: without the stock scheme, outputs do not depend on positions.
        layers: number of layers that attend with the scheme; each does so once per forward.
        cached: if the last token of a text is read with a cache, the outputs equal those of the whole text.
    """

    untouched: bool | None = None
    removed: bool | None = None
    layers: int | None = None
    cached: bool | None = None

    def __str__(self) -> str:
        said = (
            (self.untouched, "stock bit for bit while nothing acts"),
            (self.removed, "the old mechanism is gone"),
            (self.layers, f"{self.layers} layers attend with the scheme"),
            (self.cached, "cached as read at once"),
        )
        return "; ".join(words for held, words in said if held) or "nothing could be checked"


class _Texts:
    """Random tokens for one model, and forwards of the model on them."""

    def __init__(self, core: Any, limit: int | None) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.core = core
        self.length = LENGTH if limit is None else min(LENGTH, limit)
        vocabulary = core.get_input_embeddings().num_embeddings
        tokens = torch.randint(min(3, vocabulary - 1), vocabulary, (BATCH, self.length), generator=generator)
        self.tokens = tokens.to(device_of(core.get_input_embeddings()))
        self.names = core.stock_arguments

    def read(self, tokens: Tensor | None = None, **arguments: Any) -> Any:
        """Return the outputs of the core for tokens; without a cache, unless `use_cache` is passed."""
        if "use_cache" in self.names:
            arguments.setdefault("use_cache", False)
        return self.core(input_ids=self.tokens if tokens is None else tokens, **arguments)

    def hidden(self, **arguments: Any) -> Tensor:
        """Return the hidden states (B, L, D) for all tokens."""
        return self.read(**arguments)[0].float()


@contextmanager
def quietly(model: Any) -> Iterator[None]:
    """Run a model in evaluation mode, without gradients and with a plain backend; then reset it.

    FlexAttention would be compiled for a few tokens, and flash kernels may be missing. The checks concern the places
    where positions enter, and not the kernel.
    """
    training = [module for module in model.modules() if module.training]
    config, backend = model.config, model.config._attn_implementation
    model.eval()
    try:
        if backend not in PLAIN_BACKENDS:
            config._attn_implementation = "eager"
        with torch.no_grad():
            yield
    finally:
        if backend not in PLAIN_BACKENDS:
            config._attn_implementation = backend
        for module in training:
            module.training = True


def can_run(model: Any, core: Any) -> bool:
    """Return whether all weights of a model are in memory, so that it can run."""
    return not any(weight.is_meta for weight in core.parameters()) and not is_offloaded(model)


def stock_outputs(model: Any, core: Any, limit: int | None) -> Tensor | None:
    """Return the hidden states of a stock core for the proof's tokens; None if the stock model cannot run.

    A stock model cannot run if its attention backend is not installed, for example. The model itself raises that error
    when it is used.
    """
    core.stock_arguments = tuple(inspect.signature(core.forward).parameters)
    try:
        with quietly(model):
            return _Texts(core, limit).hidden()
    except Exception as error:  # any error of the stock model; `describe` reports that the swap is not verified
        logger.warning("the swap is not verified, since the stock model does not run here: %s", error)
        return None
    finally:
        del core.stock_arguments


def prove(model: Any, architecture: Architecture, stock: Tensor | None, limit: int | None) -> Proof:
    """Prove a swap that has been carried out.

    Args:
        model: the swapped model; it is not changed.
        architecture: its architecture.
        stock: hidden states of the stock model, see `stock_outputs`; None: not available.
        limit: number of positions that both the stock and the swapped model can represent, or None for no limit.

    Raises:
        UnsupportedError: a check failed; the message states the measured value and the version of transformers.
    """
    core = next(module for module in model.modules() if isinstance(module, SwappedBaseModel))
    texts = _Texts(core, limit)
    with quietly(model), unfitted_too(core), _failures_refused(core):
        untouched = None if stock is None else _prove_untouched(core, architecture, texts, stock)
        config = core.pos_scheme.config
        stays = config.keep_native or config.layers is not None
        stays = stays or any(part.is_native() for part in core.pos_scheme.parts)
        # Attention that hf_posswap implements does not contain the stock scheme, and may take no position_ids.
        stays = stays or (architecture.writes_attention and core.pos_scheme.facts.causal)
        removed = None if stays else _prove_removed(texts)
        if not stays and core.pos_scheme.facts.native_rope is not None:
            _prove_angles_read(texts, stock)
        hidden, layers = _prove_layers(core, texts)
        cached = _prove_cached(texts, hidden) if core.pos_scheme.facts.causal else None
    core.pos_fitted = not is_unfitted(core)
    return Proof(untouched, removed, layers, cached)


def prove_loaded(model: Any) -> Proof | None:
    """Prove a swapped model that was loaded from a checkpoint, for `describe`; return None without weights in memory.

    Raises:
        UnsupportedError: see `prove`.
    """
    from hf_posswap.swapped.modules import longest_position_of

    check_undivided(model)
    core = next(module for module in model.modules() if isinstance(module, SwappedBaseModel))
    if not can_run(model, core):
        return None
    proof = prove(model, core.architecture, None, longest_position_of(core))
    vars(core)["pos_proof"] = proof
    return proof


def check_undivided(model: Any) -> None:
    """Refuse a model whose layers are divided among processes: each has some heads, but a scheme has weights for all.

    Raises:
        UnsupportedError: the model was loaded with tensor parallelism.
    """
    parts = getattr(model, "tp_size", None) or 1
    if parts > 1:
        raise UnsupportedError(
            f"the heads of each layer are divided among {parts} processes (tensor parallelism), and a scheme's weights "
            "are for all heads of a layer: each process would compute and learn with another part of them. Load the "
            "model whole, without distributed_config, tp_plan and tp_size. Layers on several devices "
            "(device_map='auto'), DistributedDataParallel and FSDP work."
        )


def refused(what: str, core: Any) -> UnsupportedError:
    """Return the error for a swap whose proof failed."""
    return UnsupportedError(
        f"the swap does not take effect as it should in {type(core).stock_class.__name__} of transformers "
        f"{transformers.__version__}: {what}. The model is unchanged. hf_posswap.inspect(model) shows where positions "
        "enter it; verify=False swaps without this check."
    )


@contextmanager
def _failures_refused(core: Any) -> Iterator[None]:
    """Convert any error of a swapped model, except import errors, into the error for a failed proof."""
    try:
        yield
    except (UnsupportedError, ImportError):
        raise
    except Exception as error:  # any error; the stock model did not raise it
        raise refused(f"running it fails with {type(error).__name__}: {error}", core) from error


@contextmanager
def in_mode(core: Any, mode: str) -> Iterator[None]:
    """Run a swapped core in a mode, see `ForwardContext.mode`, within a `with` block."""
    core.pos_mode = mode
    try:
        yield
    finally:
        del core.pos_mode


def _share(difference: Tensor, reference: Tensor) -> float:
    """Return the root mean square of a difference, relative to that of a reference."""
    size = reference.double().square().mean().sqrt().clamp(min=1e-30)
    return float(difference.double().square().mean().sqrt() / size)


def _tolerance(core: Any) -> float:
    """Return the largest relative difference by rounding; it is larger in half precision and with quantised weights."""
    whole = all(weight.dtype in (torch.float32, torch.float64) for weight in core.parameters())
    return TOLERANCE if whole else HALF_TOLERANCE


def _prove_untouched(core: Any, architecture: Architecture, texts: _Texts, stock: Tensor) -> bool:
    path = architecture.table_path(core)
    table = None if path is None else core.get_submodule(path)
    try:
        if isinstance(table, RetiredTable) and path is not None:
            core.set_submodule(path, table.revive())
        with in_mode(core, "idle"):
            idle = texts.hidden()
    finally:
        if isinstance(table, RetiredTable) and path is not None:
            core.set_submodule(path, table)
    if not torch.equal(idle, stock):
        share = _share(idle - stock, stock)
        raise refused(
            f"with nothing changed by the scheme, outputs differ from stock's by {share:.2g} of their size", core
        )
    return True


def _prove_removed(texts: _Texts) -> bool:
    """Check that without the stock scheme outputs do not depend on positions or, in an encoder, on the token order."""
    core = texts.core
    steps = torch.arange(texts.length, device=texts.tokens.device).unsqueeze(0)
    with in_mode(core, "bare"):
        if not core.pos_scheme.facts.causal:
            tokens = texts.tokens[:, :WITHIN_WINDOW]
            order = torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(SEED))
            bare = texts.read(tokens)[0].float()
            difference = texts.read(tokens[:, order])[0].float() - bare[:, order]
            what = "the order of the tokens changes"
        elif "position_ids" in texts.names:
            bare = texts.hidden()
            stretched = {"position_ids": steps * STRETCH, "attention_mask": torch.ones_like(texts.tokens)}
            difference, what = texts.hidden(**stretched) - bare, f"positions {STRETCH} times as far apart change"
        else:
            raise refused("its forward takes no position_ids, so that what positions change cannot be measured", core)
    share = _share(difference, bare)
    if not share <= _tolerance(core):
        raise refused(
            f"with its own positional mechanism taken out, {what} its outputs by {share:.2g} of their size. Positions "
            "enter it in a way that was not found",
            core,
        )
    return True


def _prove_angles_read(texts: _Texts, stock: Tensor | None) -> None:
    """Check that attention modules use the rotary angles in their arguments, because the swap changes them there."""
    core = texts.core
    if stock is None:
        with in_mode(core, "idle"):
            stock = texts.hidden()
    with in_mode(core, "bare"):
        bare = texts.hidden()
    if not torch.equal(bare, stock):
        return
    # In half precision or with scores close to 0, outputs may be equal although the queries differ.
    turned, unturned = _queries(texts, "idle"), _queries(texts, "bare")
    if any(q.any() for q in turned) and all(map(torch.equal, turned, unturned)):
        raise refused("the rotary angles that its attention is given change nothing: it makes its own", core)


def _queries(texts: _Texts, mode: str) -> list[Tensor]:
    """Return the queries (B, H, L, D) that reach the attention function in each layer, in a mode of the core."""
    queries: list[Tensor] = []

    def record(call: Any, pair: tuple[Tensor, Tensor], scaling: float, projected: Any) -> None:
        queries.append(projected[0])

    with in_mode(texts.core, mode), _recorded(texts.core, record):
        texts.hidden()
    return queries


@contextmanager
def _recorded(core: Any, record: Any) -> Iterator[None]:
    """Call `record` in every layer with a scheme, within a `with` block; all layers then run our attention function."""
    plain = [m for m in core.modules() if isinstance(m, SwappedAttention) and not m.pos_scheme.enters_attention]
    core.pos_record = record
    try:
        for module in plain:  # these run the stock attention function otherwise
            show_view(module)
        yield
    finally:
        del core.pos_record
        for module in plain:
            show_config(module)


def _prove_layers(core: Any, texts: _Texts) -> tuple[Tensor, int]:
    """Check that each layer attends with the scheme, once, and with the number and size of heads in the config."""
    facts = core.pos_scheme.facts
    attended: list[Any] = []  # calls, kept alive so that no two have the same identity and each is counted once
    shapes: set[tuple[int, ...]] = set()

    def record(call: Any, pair: tuple[Tensor, Tensor], scaling: float, projected: Any) -> None:
        q, k = projected
        attended.extend([call] if all(call is not other for other in attended) else [])
        shapes.add((q.shape[1], q.shape[3], k.shape[3]))

    modules = [module for module in core.modules() if isinstance(module, SwappedAttention)]
    entered: Counter[nn.Module] = Counter()
    handles = [module.register_forward_pre_hook(lambda module, _: entered.update([module])) for module in modules]
    try:
        with _recorded(core, record):
            hidden = texts.hidden()
    finally:
        for handle in handles:
            handle.remove()
    counts = Counter(call.module for call in attended)
    for module in modules:
        if entered[module] == 0 or counts[module] != entered[module]:
            raise refused(
                f"a layer's {type(module).stock_class.__name__} ran {entered[module]} times in a forward, and attended "
                f"with the scheme {counts[module]} times",
                core,
            )
    known = (facts.num_heads, facts.head_dim, facts.head_dim)
    if shapes - {known} and any(module.pos_scheme.enters_attention for module in modules):
        raise refused(
            f"its layers attend with {sorted(shapes)} (heads, dimensions of queries and of keys), and its config says "
            f"{known}",
            core,
        )
    return hidden, len(modules)


def _prove_cached(texts: _Texts, hidden: Tensor) -> bool | None:
    first = texts.length - 1
    if first < 1 or "use_cache" not in texts.names:
        return None
    core = texts.core
    outputs = texts.read(texts.tokens[:, :first], use_cache=True)
    name = cache_keyword(outputs)
    if name is None:
        return None
    rest = texts.read(texts.tokens[:, first:], use_cache=True, **{name: outputs[name]})
    decoded = torch.cat((outputs[0], rest[0]), dim=1).float()
    share = _share(decoded - hidden, hidden)
    if not share <= _tolerance(core):
        raise refused(
            f"a text whose last token is read through a cache differs by {share:.2g} of its size from the same read "
            "at once",
            core,
        )
    return True
