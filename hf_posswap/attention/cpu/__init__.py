"""Attention with a relative bias on the CPU: torch's fused kernels with strided views, and their gradients."""
