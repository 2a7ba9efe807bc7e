"""Tiny random models of every text model type transformers has, made from the defaults of the type itself."""

import functools
import inspect
import itertools
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

VOCABULARY = 99
# What a field is at most: a smaller default stays, and so does one that is None, a bool or a string.
SIZES: dict[int, str] = {
    VOCABULARY: """vocab_size vocab_size_per_layer_input unpadded_vocab_size entity_vocab_size shape_vocab_size
        pronunciation_vocab_size encoder_hash_byte_group_vocab""",
    64: """hidden_size n_embd d_model dim embedding_size embed_dim word_embed_proj_dim emb_dim embedding_dim lru_width
        hidden_size_global attention_hidden_size entity_emb_size input_embedding_size output_embedding_size d_latents
        true_hidden_size intra_bottleneck_size prediction_head_size feed_forward_size router_hidden_size embedding_rank
        max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length model_max_length context_length
        max_source_positions max_target_positions max_2d_position_embeddings rel_extent""",
    96: """intermediate_size ffn_dim n_inner hidden_dim ffn_hidden_size mlp_dim dff dim_ff encoder_ffn_dim
        decoder_ffn_dim d_inner intermediate_size_mlp dense_intermediate_size""",
    128: "mamba_d_ssm",
    32: """moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size
        shared_experts_intermediate_size moe_shared_expert_intermediate_size q_lora_rank hc_lowrank image_size
        pronunciation_embed_dim shape_embed_dim""",
    16: """head_dim global_head_dim kv_channels attention_head_size d_kv d_head dim_head v_head_dim swa_head_dim
        linear_head_dim linear_key_head_dim linear_value_head_dim mamba_d_head mamba_head_dim mamba_d_state
        ssm_state_size state_size kv_lora_rank o_lora_rank index_head_dim index_topk hidden_size_per_layer_input
        sliding_window sliding_window_size local_attention window_size attention_window attention_window_size
        local_attention_window_len attention_chunk_size num_latents chunk_size mamba_chunk_size block_multiple_of""",
    8: """qk_rope_head_dim qk_nope_head_dim rotary_dim patch_size laurel_rank mamba_n_heads mamba_num_heads
        index_block_size""",
    4: """num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads decoder_attention_heads
        num_encoder_attention_heads num_decoder_attention_heads num_self_attention_heads num_cross_attention_heads
        num_attention_heads_per_layer swa_num_attention_heads linear_num_heads linear_num_value_heads index_n_heads
        num_experts num_local_experts n_routed_experts moe_num_experts zero_expert_num""",
    2: """num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers
        num_decoder_layers num_layers_per_stack num_self_attends_per_block depth linear_num_key_heads n_groups
        num_experts_per_tok num_experts_per_token moe_k moe_topk n_group num_expert_group index_topk_blocks
        swa_num_key_value_heads""",
    1: "first_k_dense_replace topk_group num_dense_layers",
}
LIMITS = {name: size for size, names in SIZES.items() for name in names.split()}
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
KV_HEADS = ("num_key_value_heads", "num_kv_heads")
DROPOUTS = ("dropout", "_pdrop", "dropout_prob", "dropout_p", "layerdrop", "drop_rate", "dropout_rate", "jitter_noise")
TOKENS = ("_token_id", "_token_index", "_index")
SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# What the limits do not make runnable, by the model type of the config or of a config inside it.
SPECIAL: dict[str, dict[str, Any]] = {
    # The defaults leave out what the model needs.
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 98},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
            "full_attention": None,
        },
    },
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "xmod": {"default_language": "en_XX"},
    # The kinds of layers follow from a rule which two layers do not reach.
    "bamba": {"attn_layer_indices": [1]},
    "funnel": {"block_sizes": [1, 1, 1]},
    "gemma3n_text": {"num_kv_shared_layers": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    # Its attention layers share their weights, which takes two of them.
    "zamba": {"num_hidden_layers": 4, "mamba_dt_rank": 8},
    # The sizes must fit each other, or are large by a rule of their own.
    "dots3_note_text": {
        "sliding_window": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 32,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 16,
    },
    "flint": {"mlp_only_layers": [0]},
    "gemma4_text": {"global_head_dim": 32},
    "gemma4_unified_text": {"global_head_dim": 32},
    "longcat_flash": {"head_dim": 8},
    "mamba2": {"num_heads": 8},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 48],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "hash_seed": 0,
    },
}

# Entries which text alone does not run, and why.
CANNOT: dict[str, str] = {
    "gemma3n": "its vision tower needs timm",
    "gemma4_assistant": "drafts for another model, from whose hidden states and keys it computes",
    "gemma4_unified_assistant": "drafts for another model, from whose hidden states and keys it computes",
    "musicgen": "reads four streams of audio codes, not text",
    "musicgen_melody": "reads four streams of audio codes, not text",
}


@functools.cache
def model_types() -> list[tuple[str, bool, str]]:
    """Lists model type, whether it is causal, and class of every entry for causal and masked language models."""
    tables = (
        (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, True),
        (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, False),
    )
    return [
        (model_type, causal, names if isinstance(names, str) else names[0])
        for table, causal in tables
        for model_type, names in table.items()
    ]


def _model_class(model_type: str, causal: bool) -> type[PreTrainedModel]:
    name = next(name for known, mode, name in model_types() if (known, mode) == (model_type, causal))
    return getattr(transformers, name)


def _ascending(values: list[Any] | tuple[Any, ...]) -> bool:
    """Tells whether a list counts up, as one of layer numbers does."""
    return all(isinstance(value, int) for value in values) and all(a < b for a, b in itertools.pairwise(values))


def _tiny_value(name: str, value: Any, derived: bool, new_tokens: list[int]) -> Any:
    """Gives the small value of one field, or the value itself where it may stay."""
    if isinstance(value, PretrainedConfig):
        return _tiny(type(value), {})
    if isinstance(value, float) and name.endswith(DROPOUTS):
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | list):
        return value
    if name.endswith(TOKENS):
        if isinstance(value, int) and value < VOCABULARY:
            return value
        return SPECIAL_TOKENS[name] if name in SPECIAL_TOKENS else new_tokens.pop()
    if name == "vocab_size":
        return VOCABULARY
    # A field which the config derives from the others follows them.
    return min(value, LIMITS[name]) if name in LIMITS and isinstance(value, int) and not derived else value


def _tiny_layers(values: dict[str, Any], count: str, wanted: int | None) -> dict[str, Any]:
    """Picks which of the default layers stay, the first of each kind and then those again, in every list of layers."""
    per_layer = {
        name: value
        for name, value in values.items()
        if isinstance(value, list | tuple) and len(value) == values[count] > 4 and not _ascending(value)
    }
    kinds = [str([value[index] for value in per_layer.values()]) for index in range(values[count])]
    first = sorted(kinds.index(kind) for kind in set(kinds))
    picked = [first[index % len(first)] for index in range(wanted or max(2, len(first)))]
    lists = {
        name: [min(value[index], LIMITS[name]) if name in LIMITS else value[index] for index in picked]
        for name, value in per_layer.items()
    }
    return {count: len(picked), **lists}


def _tiny(config_class: type[PretrainedConfig], changes: dict[str, Any], causal: bool = False) -> PretrainedConfig:
    """Makes the tiny config of one class, and of the configs inside it."""
    overrides = SPECIAL.get(config_class.model_type, {}) | changes
    fields = inspect.signature(config_class.__init__).parameters
    # A field which the class has under another name is stored there; vars does not ask the layers as getattr would.
    base = vars(config_class())
    stored = {name: (config_class.attribute_map or {}).get(name, name) for name in fields}
    values = {name: base[stored[name]] for name in fields if stored[name] in base}
    derived = {name for name in values if fields[name].default is None}
    # Ids from 3 to 89 are ordinary text in every config.
    new_tokens = list(range(90, VOCABULARY))
    tiny = {name: _tiny_value(name, value, name in derived, new_tokens) for name, value in values.items()}

    heads = next((base[name] for name in HEADS if name in base), None)
    for name in KV_HEADS:
        if isinstance(values.get(name), int) and name not in derived:
            tiny[name] = 4 if values[name] == heads else min(values[name], 2)
    for count in LAYERS:
        if count in values:
            wanted = overrides.get(count) or len(overrides.get("layer_types") or ())
            tiny |= _tiny_layers(values, count, wanted)
    if "is_decoder" in fields:
        tiny["is_decoder"] = causal
    changed = {name: value for name, value in tiny.items() if value is not values.get(name)}
    return config_class(**changed | overrides)


def tiny_config(model_type: str, causal: bool, **changes: Any) -> PretrainedConfig:
    """Makes a tiny config with the defaults of the model type in everything but size, and with the changes."""
    return _tiny(_model_class(model_type, causal).config_class, changes, causal)


def tiny_model(model_type: str, causal: bool, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Builds the tiny model with weights large enough for positions to show in what it computes."""
    config = tiny_config(model_type, causal, **changes)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = _model_class(model_type, causal)(config).float().eval()
    for name, parameter in model.named_parameters():
        # A frozen table of positions is calculated: it holds sinusoids.
        sinusoids = name.endswith("embed_positions.weight") and not parameter.requires_grad
        if parameter.dim() > 1 and not sinusoids:
            nn.init.normal_(parameter, std=0.3)
    return model
