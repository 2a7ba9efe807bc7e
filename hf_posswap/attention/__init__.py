"""How attention with a bias is computed: one entry, `attend`, over the backends."""

from hf_posswap.attention.dispatch import BACKENDS, attend, explain_path

__all__ = ["BACKENDS", "attend", "explain_path"]
