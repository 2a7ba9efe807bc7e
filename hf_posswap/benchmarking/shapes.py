"""The models of a benchmark: known shapes with random weights, which are as fast as trained ones, or a named model."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from hf_posswap.architectures import architecture_of
from hf_posswap.benchmarking.settings import BenchmarkError, BenchmarkSettings
from hf_posswap.errors import SourceError
from hf_posswap.sources import load_config, load_model
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapping import swap

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 1024,
        "max_position_embeddings": 8192,
    },
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "vocab_size": 1024,
        "bos_token_id": 0,  # within the reduced vocabulary; transformers logs a warning for its default
        "eos_token_id": 0,
    },
}
"""SmolLM2-135M (a Llama with grouped queries) and GPT-2 (124M): configs by name. Their vocabularies are reduced: the
cost of token embeddings and their gradients does not depend on the scheme and would move every ratio towards 1."""

TABLE_STD = 0.02
"""Standard deviation of random values for scheme parameters that start at zero, as zeros could make kernels faster."""


def check_model(settings: BenchmarkSettings) -> None:
    """Refuse a model that is not a shape and cannot be found, and more layers than it has.

    Raises:
        SourceError: the model does not exist; the message names the shapes.
        UnsupportedError: its architecture is not supported.
        BenchmarkError: it has fewer layers than `settings.layers`.
    """
    config = _config(settings.model)
    if settings.layers is not None and settings.layers > config.num_hidden_layers:
        raise BenchmarkError(
            f"{settings.layers} layers are to be kept, and {settings.model!r} has {config.num_hidden_layers}. Give "
            "fewer, or leave layers (--layers) out to keep all."
        )


def _config(name: str) -> Any:
    if name in SHAPES:
        options = dict(SHAPES[name])
        return AutoConfig.for_model(options.pop("model_type"), **options)
    try:
        config = load_config(name)
    except SourceError as error:
        raise SourceError(f"{error} Or one of the shapes with random weights: {', '.join(SHAPES)}.") from error
    architecture_of(config)
    return config


def stock_model(settings: BenchmarkSettings, dtype: str, attention: str) -> Any:
    """Return the unswapped base model in evaluation mode, without a head, whose cost does not depend on the scheme.

    Args:
        settings: settings with the model, its number of layers and the lengths.
        dtype: dtype of the weights.
        attention: transformers' name of the backend.

    Raises:
        SourceError: the model does not exist.
    """
    torch.manual_seed(settings.seed)
    if settings.model in SHAPES:
        config = _config(settings.model)
        _make_room(config, max(settings.lengths) + settings.repeats)
        if settings.layers is not None:
            config.num_hidden_layers = settings.layers
        model = AutoModel.from_config(config, dtype=getattr(torch, dtype), attn_implementation=attention)
    else:
        model = load_model(settings.model, dtype=dtype, attn_implementation=attention).base_model
        if settings.layers is not None:
            _keep_layers(model, settings.layers)
    return model.eval().to(settings.device)


def _make_room(config: Any, length: int) -> None:
    """Raise a shape's number of positions to the length; the size of a position table does not affect the time."""
    config.max_position_embeddings = max(config.max_position_embeddings, length)


def _keep_layers(model: Any, layers: int) -> None:
    """Drop a model's last layers."""
    blocks = architecture_of(model.config).blocks(core_of(model))
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == len(blocks) and module[0] is blocks[0][0]:
            model.set_submodule(name, module[:layers])
            model.config.num_hidden_layers = layers
            return


def swapped_copy(model: Any, scheme: str) -> Any:
    """Return a copy of a stock base model with a scheme swapped in and random values for its zero parameters.

    Raises:
        PosSwapError: the model cannot use the scheme.
    """
    swapped = swap(copy.deepcopy(model), scheme)
    known = {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in swapped.named_parameters():
            if name not in known and not parameter.any():
                parameter.normal_(std=TABLE_STD)
    return swapped
