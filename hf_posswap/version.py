"""The version of hf_posswap."""

__version__ = "0.1.0"
