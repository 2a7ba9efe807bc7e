"""Shared by schemes, architectures and attention: positions, kinds of bias, registries of names, declared options."""
