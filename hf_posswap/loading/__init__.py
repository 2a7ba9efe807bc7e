"""A checkpoint on disk: its config, the entry that names its scheme, what is refused in it, and where it came from."""
