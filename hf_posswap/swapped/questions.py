"""Questions about one model, swapped or not: what is in it, how far it can read, which path its attention takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hf_posswap.architectures import architecture_of
from hf_posswap.attention import explain_path
from hf_posswap.attention.inputs import AttentionInputs
from hf_posswap.common.positions import Positions
from hf_posswap.errors import NotSwappedError, UnsupportedError
from hf_posswap.schemes import Scheme, SchemeLayer
from hf_posswap.swapped.modules import SwappedBaseModel, longest_position_of
from hf_posswap.swapped.offloading import device_of
from hf_posswap.swapped.plan import Plan, core_of, natively
from hf_posswap.swapped.proof import Proof


def plain_model(model: Any) -> Any:
    """Return the transformers model inside peft's, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def config_of(model: Any) -> Any:
    """Return a transformers model's config, through peft's adapters too.

    Raises:
        UnsupportedError: it is no transformers model; says how to load one.
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
    """Return whether the model's positional mechanism was swapped by hf_posswap; peft's adapters may be around it."""
    plain = plain_model(model)
    return isinstance(plain, torch.nn.Module) and any(isinstance(m, SwappedBaseModel) for m in plain.modules())


def proof_of(model: Any) -> Proof | None:
    """Return what the proof of a swapped model showed, or None if it was not run."""
    return vars(core_of(plain_model(model))).get("pos_proof")


@contextmanager
def without_scheme(model: Any) -> Iterator[Any]:
    """Let a swapped model run its stock mechanism within a `with` block; its scheme is back afterwards.

    Adapters of peft stay where they are, and so do the weights: a healed model is not the stock model in there.

    Raises:
        NotSwappedError: the model is not swapped.
    """
    if not is_swapped(model):
        raise NotSwappedError(f"the model is a stock {type(model).__name__}; it has no scheme to leave out.")
    with natively(core_of(plain_model(model)), architecture_of(config_of(model))):
        yield model


def longest_position(model: Any) -> int | None:
    """Return how many positions the model can represent, or None if its scheme has no limit.

    For a stock model with RoPE that is None too: its angles have no end, whatever it was trained to read.
    """
    if is_swapped(model):
        return longest_position_of(core_of(plain_model(model)))
    return stock_longest_position(model)


def stock_longest_position(model: Any) -> int | None:
    """Return how many positions the stock mechanism of a model, swapped or not, can represent; None if any number."""
    architecture, core = architecture_of(config_of(model)), core_of(plain_model(model))
    return architecture.train_length(core) if architecture.table_path(core) is not None else None


def train_length(model: Any) -> int:
    """Return the longest text that the stock model was trained to read."""
    return architecture_of(config_of(model)).train_length(core_of(plain_model(model)))


def native_scheme(model: Any) -> str:
    """Return the name of the stock model's scheme."""
    return architecture_of(config_of(model)).native(core_of(plain_model(model)))


def planned_path(plan: Plan, model: Any) -> str:
    """Say which attention path a planned or carried-out swap takes.

    Raises:
        BackendError: the model's attention backend cannot carry the scheme.
    """
    layer = plan.layers[0].layer if plan.layers else SchemeLayer()
    return path_of(plan.scheme, layer, model)


def path_of(scheme: Scheme, layer: SchemeLayer, model: Any) -> str:
    """Say which attention path a scheme takes in a model.

    Raises:
        BackendError: the model's attention backend cannot carry the scheme.
    """
    embeddings = model.get_input_embeddings().weight
    device = device_of(model.get_input_embeddings())
    dtype = embeddings.dtype if embeddings.is_floating_point() else torch.float32
    return path_in_words(scheme, layer, model.config._attn_implementation, device, dtype)


@torch.no_grad()
def path_in_words(
    scheme: Scheme, layer: SchemeLayer, backend: str, device: torch.device, dtype: torch.dtype, runs_on: str = ""
) -> str:
    """Say which attention path a scheme takes with a text of two tokens in inference.

    Args:
        scheme: the scheme.
        layer: its part in a layer.
        backend: attention backend.
        device: where the scheme's tensors are.
        dtype: of queries and keys.
        runs_on: type of the device that attention is to be explained for, such as "cuda"; default: that of `device`.

    Raises:
        BackendError: the backend cannot carry the scheme.
    """
    facts = scheme.facts
    bias = None
    if device.type != "meta":
        steps = torch.arange(2, device=device).unsqueeze(0)
        positions = Positions(steps, steps, 0, facts.causal)
        query = torch.zeros(1, facts.num_heads, 2, facts.head_dim, device=device)
        bias = layer.bias(query, positions, scheme.prepare(positions), 1.0)
    heads = torch.zeros(1, facts.num_heads, 2, facts.head_dim, device=device, dtype=dtype)
    inputs = AttentionInputs(heads, heads, heads, None, facts.causal, 1.0)
    mix: Any = layer.mix if layer.mixes_values else None  # not called
    return explain_path(inputs, bias, mix, backend, runs_on or device.type)
