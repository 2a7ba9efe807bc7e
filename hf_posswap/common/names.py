"""Prefixes of names that stand in saved files: they may never change. This module imports nothing."""

CLASS_PREFIX = "PosSwap"
"""Of a swapped class, before the stock class's name: PosSwapGPT2Model."""
MODEL_TYPE_PREFIX = "posswap_"
"""Of a swapped config's model type, before the stock one: posswap_gpt2."""
ADAPTER_TYPE_PREFIX = "POSSWAP_"
"""Of the peft type of an adapter that carries a scheme: POSSWAP_LORA."""
