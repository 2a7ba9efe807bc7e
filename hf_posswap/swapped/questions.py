"""Questions about one model, swapped or stock: its scheme, its limits and the path of its attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hf_posswap.architectures import architecture_of
from hf_posswap.attention import explain_path
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.attention.windows import check_windows
from hf_posswap.common.positions import Positions
from hf_posswap.errors import NotSwappedError, UnsupportedError
from hf_posswap.schemes import Scheme, SchemeLayer, ScoreInputs
from hf_posswap.swapped.applying import natively
from hf_posswap.swapped.modules import SwappedBaseModel, is_unfitted, longest_position_of, unfitted_words
from hf_posswap.swapped.offloading import device_of
from hf_posswap.swapped.plan import Plan, core_of
from hf_posswap.swapped.proof import Proof


def plain_model(model: Any) -> Any:
    """Return the transformers model inside a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def config_of(model: Any) -> Any:
    """Return a transformers model's config, also if peft's adapters wrap the model.

    Raises:
        UnsupportedError: it is not a transformers model; the message states how to load one.
    """
    config = getattr(model, "config", None)
    if not hasattr(config, "model_type"):
        name = repr(model) if isinstance(model, str) else "name"
        raise UnsupportedError(
            f"a {type(model).__name__} is no transformers model. Load one first: "
            f"hf_posswap.AutoModelForCausalLM.from_pretrained({name})."
        )
    return config


def is_swapped(model: Any) -> bool:
    """Return whether a model is swapped by hf_posswap, also if peft's adapters wrap it."""
    plain = plain_model(model)
    return isinstance(plain, torch.nn.Module) and any(isinstance(m, SwappedBaseModel) for m in plain.modules())


def proof_of(model: Any) -> Proof | None:
    """Return the proof of a swapped model, or None if it was not run."""
    return vars(core_of(plain_model(model))).get("pos_proof")


def unfitted_reason(model: Any) -> str | None:
    """Return why a model cannot run before calibration, and what to do; None if it can run, as a stock model can."""
    core = core_of(plain_model(model))
    return unfitted_words(core) if is_swapped(model) and is_unfitted(core) else None


@contextmanager
def without_scheme(model: Any) -> Iterator[Any]:
    """Run a swapped model with its stock scheme within a `with` block.

    peft's adapters and all weights stay unchanged: a healed model does not become the stock model.

    Raises:
        NotSwappedError: the model is not swapped.
    """
    if not is_swapped(model):
        raise NotSwappedError(f"the model is a stock {type(model).__name__}; it has no scheme to leave out.")
    with natively(core_of(plain_model(model)), architecture_of(config_of(model))):
        yield model


def longest_position(model: Any) -> int | None:
    """Return how many positions the model can represent, or None if its scheme has no limit.

    A stock model with RoPE has no limit either: rotary angles exist for all positions, whatever the train length.
    """
    if is_swapped(model):
        return longest_position_of(core_of(plain_model(model)))
    return stock_longest_position(model)


def stock_longest_position(model: Any) -> int | None:
    """Return how many positions the stock scheme of a model, swapped or not, can represent; None if it has no limit."""
    architecture, core = architecture_of(config_of(model)), core_of(plain_model(model))
    return architecture.train_length(core) if architecture.table_path(core) is not None else None


def train_length(model: Any) -> int:
    """Return the train length: the longest text that the stock model was trained to read."""
    return architecture_of(config_of(model)).train_length(core_of(plain_model(model)))


def native_scheme(model: Any) -> str:
    """Return the name of the stock model's scheme."""
    return architecture_of(config_of(model)).native(core_of(plain_model(model)))


def planned_path(plan: Plan, model: Any) -> str:
    """Return a description of the attention path of a planned or completed swap.

    Raises:
        BackendError: the model's attention backend does not support the scheme.
    """
    first = {entry.part: entry.layer for entry in reversed(plan.layers)}
    paths = [path_of(part, first.get(number, SchemeLayer()), model) for number, part in enumerate(plan.scheme.parts)]
    return "; ".join(dict.fromkeys(paths))


def path_of(scheme: Scheme, layer: SchemeLayer, model: Any) -> str:
    """Return a description of the attention path of a scheme in a model.

    Raises:
        BackendError: the model's attention backend does not support the scheme.
    """
    embeddings = model.get_input_embeddings().weight
    device = device_of(model.get_input_embeddings())
    dtype = embeddings.dtype if embeddings.is_floating_point() else torch.float32
    return path_in_words(scheme, layer, model.config._attn_implementation, device, dtype)


@torch.no_grad()
def path_in_words(
    scheme: Scheme, layer: SchemeLayer, backend: str, device: torch.device, dtype: torch.dtype, runs_on: str = ""
) -> str:
    """Return a description of the attention path of a scheme for a text of two tokens in inference.

    Args:
        scheme: the scheme.
        layer: the scheme's part in a layer.
        backend: attention backend.
        device: device of the scheme's tensors.
        dtype: dtype of queries and keys.
        runs_on: type of the device that will compute attention, such as "cuda"; default: that of `device`.

    Raises:
        BackendError: the backend does not support the scheme.
    """
    facts = scheme.facts
    bias = None
    if device.type != "meta":
        steps = torch.arange(2, device=device).unsqueeze(0)
        positions = Positions(steps, steps, 0, facts.causal)
        query = torch.zeros(1, facts.num_heads, 2, facts.head_dim, device=device)
        key = query[:, : facts.num_key_value_heads]
        bias = layer.bias(ScoreInputs(query, key, positions, scheme.prepare(positions), 1.0, (query, key)))
    heads = torch.zeros(1, facts.num_heads, 2, facts.head_dim, device=device, dtype=dtype)
    mask = None
    if layer.window is not None:
        check_windows(backend)
        if backend == "sdpa" and device.type != "meta":
            mask = torch.ones(1, 1, 2, 2, dtype=torch.bool, device=device).tril()
    inputs = AttentionInputs(heads, heads, heads, mask, facts.causal, 1.0)
    mix: Any = layer.mix if layer.mixes_values else None  # not called
    words = explain_path(inputs, bias, mix, backend, runs_on or device.type)
    return words if layer.window is None else f"{words}, within a window of {layer.window} tokens"
