"""Checkpoints on disk: the config, its `pos_scheme` entry, checks of its fields, and the origin of the stock model."""
