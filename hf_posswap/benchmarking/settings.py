"""The settings of a benchmark, which are checked before anything is loaded, and its cells in order."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from hf_posswap.errors import PosSwapError
from hf_posswap.schemes import as_config

DENSE = "dense-eager"
"""The baseline without this package: a bias stored as heads × length × length and added in eager attention."""
BACKENDS = ("eager", "sdpa", "flex_attention", DENSE)
MODEL_MODES = ("prefill", "training", "decode")
ATTENTION_MODES = ("attention", "attention-training")
STARTUP_MODES = ("import", "load")
MODES = (*MODEL_MODES, *ATTENTION_MODES, *STARTUP_MODES)
DTYPES = ("float32", "bfloat16", "float16")


class BenchmarkError(PosSwapError):
    """A benchmark cannot be run with these settings."""


class Cell(NamedTuple):
    """One measurement: a row of the result."""

    scheme: str
    dtype: str
    backend: str
    mode: str
    length: int


@dataclass(frozen=True)
class Settings:
    """The settings of a benchmark.

    Attributes:
        model: the name of a shape (`shapes.SHAPES`), whose weights are random, or of a model.
        schemes: specifications such as "alibi" or "rope:yarn".
        lengths: sequence lengths in tokens; in decode mode, tokens in the cache.
        modes: names in `MODES`.
        dtypes: names in `DTYPES`.
        backends: names in `BACKENDS`.
        device: "cpu" or "cuda".
        batch: texts per batch.
        layers: number of the model's layers to keep; None: all.
        repeats: number of times that stock and swapped model run in turn.
        seed: seed of the random weights and inputs.

    Raises (on construction):
        BenchmarkError: an unknown mode, dtype or backend, or a number below 1.
        SchemeConfigError, UnknownNameError: an invalid or unknown scheme.
    """

    model: str
    schemes: tuple[str, ...]
    lengths: tuple[int, ...]
    modes: tuple[str, ...] = MODEL_MODES
    dtypes: tuple[str, ...] = ("float32",)
    backends: tuple[str, ...] = ("sdpa",)
    device: str = "cpu"
    batch: int = 1
    layers: int | None = None
    repeats: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("modes", MODES), ("dtypes", DTYPES), ("backends", BACKENDS)):
            _check_names(name, getattr(self, name), allowed)
        for name in ("schemes", "lengths"):
            if not getattr(self, name):
                raise BenchmarkError(f"no {name} to measure.")
        numbers = {"lengths": min(self.lengths), "batch": self.batch, "repeats": self.repeats, "layers": self.layers}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise BenchmarkError(f"{name} must be at least 1, not {value}.")
        for scheme in self.schemes:
            as_config(scheme)

    def cells(self) -> Iterator[Cell]:
        """Yield the cells; those of one pair of models follow each other."""
        for dtype in self.dtypes:
            for backend in self.backends:
                for scheme in self.schemes:
                    for mode in self.modes:
                        lengths = (0,) if mode in STARTUP_MODES else self.lengths
                        yield from (Cell(scheme, dtype, backend, mode, length) for length in lengths)

    def conditions(self) -> dict[str, Any]:
        """Return the settings that must be equal in two runs for their cells to be combined in one table."""
        asked = ("schemes", "lengths", "modes", "dtypes", "backends")
        return {name: value for name, value in asdict(self).items() if name not in asked}


def _check_names(what: str, names: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    if not names:
        raise BenchmarkError(f"no {what} to measure. Allowed: {', '.join(allowed)}.")
    for name in names:
        if name not in allowed:
            raise BenchmarkError(f"unknown {what.removesuffix('s')} {name!r}. Allowed: {', '.join(allowed)}.")
