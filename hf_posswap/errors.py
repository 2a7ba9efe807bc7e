"""Every error hf_posswap raises on purpose: each names the value, what would be allowed, and the way out."""


class PosSwapError(ValueError):
    """Base class of all errors of hf_posswap, so that callers can catch them together."""


class UnknownNameError(PosSwapError):
    """A scheme, architecture or option name that is not registered."""


class SchemeConfigError(PosSwapError):
    """A scheme argument that is unknown, of the wrong type, out of range, or that cannot take effect."""


class UnsupportedError(PosSwapError):
    """A scheme that cannot enter this model: a cell of the capability table that does not hold."""


class BackendError(PosSwapError):
    """An attention backend that cannot carry the scheme's bias."""


class AlreadySwappedError(PosSwapError):
    """Swapping a model that is swapped already without saying `replace=True`."""


class NotSwappedError(PosSwapError):
    """Asking something of a swapped model from a model that is not swapped."""


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
