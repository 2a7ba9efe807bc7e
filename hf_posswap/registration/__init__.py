"""Registrations with other packages, made by `import hf_posswap` when those packages are imported, and not before."""
