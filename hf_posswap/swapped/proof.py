"""The proof of a swap: a few short forwards that show that it took effect, run when a model is swapped or loaded.

What was found from types and names is verified here by numbers, on the model itself and on the transformers that is
installed. A family or a release in which positions enter another way is refused, with what was measured.
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
from hf_posswap.swapped.modules import SwappedAttention, SwappedBaseModel
from hf_posswap.swapped.offloading import device_of, is_offloaded

logger = logging.getLogger(__name__)

BATCH, LENGTH = 2, 16
"""Texts, and their tokens."""
WITHIN_WINDOW = 8
"""Tokens of a text in which every token of an encoder sees every other, its sliding windows notwithstanding."""
STRETCH = 3
"""Distances are stretched by this factor where nothing may depend on them."""
PLAIN_BACKENDS = ("eager", "sdpa")
SEED = 0
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1
"""Root mean square of a difference over that of the outputs. In half precision other orders of summing, and experts
chosen by a hair, make some per cent; a text decoded without its cache differs by all of its size."""


@dataclass(frozen=True)
class Proof:
    """What the forwards showed; a check that was not run is None.

    Attributes:
        untouched: with the swap in place but changing nothing, outputs equal the stock model's, bit for bit.
        removed: without the old mechanism, outputs do not depend on positions.
        layers: how many layers attended with the scheme, each once.
        cached: a text whose last token is read through a cache gives what it gives at once.
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
    """Random tokens for one model, and its forwards on them."""

    def __init__(self, core: Any, limit: int | None) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.core = core
        self.length = LENGTH if limit is None else min(LENGTH, limit)
        vocabulary = core.get_input_embeddings().num_embeddings
        tokens = torch.randint(min(3, vocabulary - 1), vocabulary, (BATCH, self.length), generator=generator)
        self.tokens = tokens.to(device_of(core.get_input_embeddings()))
        self.names = core.stock_arguments

    def read(self, tokens: Tensor | None = None, **arguments: Any) -> Any:
        """Return the outputs of the core for tokens, without a cache unless one is asked for."""
        if "use_cache" in self.names:
            arguments.setdefault("use_cache", False)
        return self.core(input_ids=self.tokens if tokens is None else tokens, **arguments)

    def hidden(self, **arguments: Any) -> Tensor:
        """Return the hidden states (B, L, D) for all tokens."""
        return self.read(**arguments)[0].float()


@contextmanager
def quietly(model: Any) -> Iterator[None]:
    """Run a model in evaluation mode, without gradients and with a plain backend; afterwards it is as it was.

    FlexAttention would be compiled for a few tokens, and flash kernels may be missing: what is looked at here is where
    positions enter, not which kernel runs.
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
    """Return whether a model's weights are here, so that it can run at once."""
    return not any(weight.is_meta for weight in core.parameters()) and not is_offloaded(model)


def stock_outputs(model: Any, core: Any, limit: int | None) -> Tensor | None:
    """Return the hidden states of a stock core for the proof's tokens; None if the stock model does not run here.

    An attention backend that is not installed, for one, is for the stock model to complain of when it is used.
    """
    core.stock_arguments = tuple(inspect.signature(core.forward).parameters)
    try:
        with quietly(model):
            return _Texts(core, limit).hidden()
    except Exception as error:  # whatever the stock model dies of; `describe` says that the swap is not verified
        logger.warning("the swap is not verified, since the stock model does not run here: %s", error)
        return None
    finally:
        del core.stock_arguments


def prove(model: Any, architecture: Architecture, stock: Tensor | None, limit: int | None) -> Proof:
    """Prove a swap that has been carried out.

    Args:
        model: the swapped model; unchanged.
        architecture: its architecture.
        stock: what the stock model gave, see `stock_outputs`; None: it is not at hand.
        limit: how many positions stock and swapped model can represent, or None for no limit.

    Raises:
        UnsupportedError: a check failed; says what was measured, and with which transformers.
    """
    core = next(module for module in model.modules() if isinstance(module, SwappedBaseModel))
    texts = _Texts(core, limit)
    with quietly(model), _failures_refused(core):
        untouched = None if stock is None else _prove_untouched(core, architecture, texts, stock)
        config = core.pos_scheme.config
        stays = config.keep_native or config.layers is not None or core.pos_scheme.is_native()
        # Attention that is written anew has nothing of the old one, and need not take positions.
        stays = stays or (architecture.writes_attention and core.pos_scheme.facts.causal)
        removed = None if stays else _prove_removed(texts)
        if not stays and core.pos_scheme.facts.native_rope is not None:
            _prove_angles_read(texts, stock)
        hidden, layers = _prove_layers(core, texts)
        cached = _prove_cached(texts, hidden) if core.pos_scheme.facts.causal else None
    return Proof(untouched, removed, layers, cached)


def prove_loaded(model: Any) -> Proof | None:
    """Prove a swapped model that was loaded from a checkpoint; None if its weights are not at hand.

    Raises:
        UnsupportedError: see `prove`.
    """
    from hf_posswap.swapped.modules import longest_position_of

    check_undivided(model)
    core = next(module for module in model.modules() if isinstance(module, SwappedBaseModel))
    if not can_run(model, core):
        return None
    return prove(model, core.architecture, None, longest_position_of(core))


def check_undivided(model: Any) -> None:
    """Refuse a model whose layers are divided among processes: each has some heads, and a scheme's weights have all.

    Raises:
        UnsupportedError: it was loaded by tensor parallelism.
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
    """Return the refusal of a swap that did not prove true."""
    return UnsupportedError(
        f"the swap does not take effect as it should in {type(core).stock_class.__name__} of transformers "
        f"{transformers.__version__}: {what}. The model is unchanged. hf_posswap.inspect(model) shows where positions "
        "enter it; verify=False swaps without this check."
    )


@contextmanager
def _failures_refused(core: Any) -> Iterator[None]:
    """Turn whatever a model that was swapped in a wrong way raises into the refusal of the swap."""
    try:
        yield
    except (UnsupportedError, ImportError):
        raise
    except Exception as error:  # whatever the swapped model dies of, the stock model did not
        raise refused(f"running it fails with {type(error).__name__}: {error}", core) from error


@contextmanager
def _mode(core: Any, mode: str) -> Iterator[None]:
    core.pos_mode = mode
    try:
        yield
    finally:
        del core.pos_mode


def _share(difference: Tensor, reference: Tensor) -> float:
    """Return the root mean square of a difference over that of what it differs from."""
    size = reference.double().square().mean().sqrt().clamp(min=1e-30)
    return float(difference.double().square().mean().sqrt() / size)


def _tolerance(core: Any) -> float:
    """Return what rounding may change: more in half precision, and where weights are quantised."""
    whole = all(weight.dtype in (torch.float32, torch.float64) for weight in core.parameters())
    return TOLERANCE if whole else HALF_TOLERANCE


def _prove_untouched(core: Any, architecture: Architecture, texts: _Texts, stock: Tensor) -> bool:
    path = architecture.table_path(core)
    table = None if path is None else core.get_submodule(path)
    try:
        if isinstance(table, RetiredTable) and path is not None:
            core.set_submodule(path, table.revive())
        with _mode(core, "idle"):
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
    """Without the old mechanism: stretched positions change nothing, and an encoder does not see the order."""
    core = texts.core
    steps = torch.arange(texts.length, device=texts.tokens.device).unsqueeze(0)
    with _mode(core, "bare"):
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
    """Angles are changed among the arguments of attention modules: what they are given there matters."""
    core = texts.core
    if stock is None:
        with _mode(core, "idle"):
            stock = texts.hidden()
    with _mode(core, "bare"):
        bare = texts.hidden()
    if not torch.equal(bare, stock):
        return
    # Half precision, or scores close to 0, may hide it in the outputs: not in the queries.
    turned, unturned = _queries(texts, "idle"), _queries(texts, "bare")
    if any(q.any() for q in turned) and all(map(torch.equal, turned, unturned)):
        raise refused("the rotary angles that its attention is given change nothing: it makes its own", core)


def _queries(texts: _Texts, mode: str) -> list[Tensor]:
    """Return the queries (B, H, L, d) that come to the attention function in each layer, in a mode of the core."""
    queries: list[Tensor] = []

    def record(call: Any, pair: tuple[Tensor, Tensor], scaling: float, projected: Any) -> None:
        queries.append(projected[0])

    with _mode(texts.core, mode), _recorded(texts.core, record):
        texts.hidden()
    return queries


@contextmanager
def _recorded(core: Any, record: Any) -> Iterator[None]:
    """Let every layer with a scheme come through our attention function, and tell `record`, within a `with` block."""
    plain = [m for m in core.modules() if isinstance(m, SwappedAttention) and not m.pos_scheme.enters_attention]
    core.pos_record = record
    try:
        for module in plain:  # they run the stock attention function; for once they come through ours
            show_view(module)
        yield
    finally:
        del core.pos_record
        for module in plain:
            show_config(module)


def _prove_layers(core: Any, texts: _Texts) -> tuple[Tensor, int]:
    """Each layer that should attend with the scheme does, once, and with heads as the config says."""
    facts = core.pos_scheme.facts
    attended: list[Any] = []  # calls, kept alive so that each is counted once
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
