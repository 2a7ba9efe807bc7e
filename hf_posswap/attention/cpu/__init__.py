"""Attention with a relative bias on the CPU: torch's fused kernels over strided views, and their gradients."""
