"""A gpt2 model whose positional mechanism was swapped by hf_posswap.

It runs with hf_posswap only: `pip install hf_posswap`. Then `import hf_posswap` lets the Auto classes load this
checkpoint, or pass `trust_remote_code=True`, which runs this file.
"""
