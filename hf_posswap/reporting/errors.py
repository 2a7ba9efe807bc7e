"""Errors of reporting that several of its files raise."""

from hf_posswap.errors import PosSwapError


class MissingPackageError(PosSwapError):
    """A package that the report needs and that is not installed."""
