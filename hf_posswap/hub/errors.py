"""Errors of publishing: what is refused before anything is sent, and what went wrong on the way."""

from hf_posswap.errors import PosSwapError


class HubError(PosSwapError):
    """Something that is not published: no swapped checkpoint, an unsafe file, a card that cannot be written."""


class UploadError(PosSwapError):
    """The Hub, or the way to it, failed; says what is there now and how to go on."""
