"""The models a benchmark runs: well-known shapes with random weights, which are as fast as trained ones, or a model."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from hf_posswap.architectures import architecture_of
from hf_posswap.benchmarking.settings import BenchmarkError, Settings
from hf_posswap.demo import SourceError, load_config, load_model
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
        "bos_token_id": 0,  # of a cut vocabulary; transformers warns of its own default
        "eos_token_id": 0,
    },
}
"""SmolLM2-135M (a Llama with grouped queries) and GPT-2 (124M): configs by name. Their vocabularies are cut: token
embeddings and their gradients cost the same whatever the scheme, and would flatter every ratio."""

TABLE_STD = 0.02
"""Parameters of a scheme that start at zero are made random, so that no zeros make anything faster."""


def check_model(settings: Settings) -> None:
    """Refuse a model that is neither a shape nor to be found, and more layers than it has.

    Raises:
        SourceError: there is no such model; names the shapes.
        UnsupportedError: its architecture is not supported.
        BenchmarkError: it has fewer layers than are to be kept.
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


def stock_model(settings: Settings, dtype: str, attention: str) -> Any:
    """Return the unswapped base model: no head, whose cost is the same whatever the scheme, in evaluation mode.

    Args:
        settings: which model, how many layers, and the longest text.
        dtype: of the weights.
        attention: transformers' name of the backend.

    Raises:
        SourceError: there is no such model.
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
    """Give a shape enough positions, which a table has rows for; their number costs no time."""
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
    """Return a copy of a stock base model with a scheme swapped in, its zero parameters made random.

    Raises:
        PosSwapError: the model cannot take the scheme.
    """
    swapped = swap(copy.deepcopy(model), scheme)
    known = {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in swapped.named_parameters():
            if name not in known and not parameter.any():
                parameter.normal_(std=TABLE_STD)
    return swapped
