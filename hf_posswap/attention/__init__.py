"""Attention with a bias: `attend` computes it with one of several backends."""

from hf_posswap.attention.dispatch import BACKENDS, attend, explain_path

__all__ = ["BACKENDS", "attend", "explain_path"]
