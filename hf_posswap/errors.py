"""The errors that hf_posswap raises; each message gives the value, the allowed values and a solution."""


class PosSwapError(ValueError):
    """Base class of all errors of hf_posswap, so that callers can catch them together."""


class UnknownNameError(PosSwapError):
    """A scheme, architecture or option name that is not registered."""


class SchemeConfigError(PosSwapError):
    """A scheme argument that is unknown, of the wrong type, out of range, or that cannot take effect."""


class UnsupportedError(PosSwapError):
    """A scheme that this model cannot take: the capability table says no."""


class BackendError(PosSwapError):
    """An attention backend that cannot compute attention with the scheme's bias."""


class AlreadySwappedError(PosSwapError):
    """A swap of a model that is already swapped, without `replace=True`."""


class NotSwappedError(PosSwapError):
    """An operation that needs a swapped model, on a model that is not swapped."""


class PositionError(PosSwapError):
    """Positions the scheme cannot represent: past its longest position, or skipping while a cache is in use."""


class SourceError(PosSwapError):
    """A model, tokenizer or text that cannot be found or read."""


class CheckpointError(PosSwapError):
    """A checkpoint whose `pos_scheme` entry is malformed or of a newer format."""


class AdapterError(PosSwapError):
    """An adapter that does not fit the model's positional scheme, or cannot be made or loaded as asked."""


class MissingPackageError(PosSwapError):
    """An optional package that is needed here and is not installed."""
