"""The invariants, over every scheme × architecture cell that the registries declare."""
