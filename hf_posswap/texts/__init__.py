"""Texts: where they are, the documents in them, and which of their tokens a masked language model may not see."""
