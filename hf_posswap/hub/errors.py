"""Errors of publishing: refusals before anything is sent, and failures of the upload."""

from hf_posswap.errors import PosSwapError


class HubError(PosSwapError):
    """Publishing is refused: not a swapped checkpoint, an unsafe file, or a card that cannot be written."""


class UploadError(PosSwapError):
    """The Hub or the connection to it failed; the message gives the repository's present state and how to continue."""
