"""Texts: their files, the documents in them, and the selection of masked tokens for masked language models."""
