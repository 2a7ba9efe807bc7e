"""Prefixes of names in saved files; they must never change. This module imports nothing."""

CLASS_PREFIX = "PosSwap"
"""Prefix of a swapped class's name, before the stock class's name: PosSwapGPT2Model."""
MODEL_TYPE_PREFIX = "posswap_"
"""Prefix of a swapped config's model type, before the stock model type: posswap_gpt2."""
ADAPTER_TYPE_PREFIX = "POSSWAP_"
"""Prefix of the peft type of an adapter that carries a scheme: POSSWAP_LORA."""
