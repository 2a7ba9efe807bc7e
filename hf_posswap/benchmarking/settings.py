"""The settings of a benchmark, which are checked before anything is loaded, and its cells in order."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from hf_posswap.common.options import REQUIRED, check_options, option
from hf_posswap.errors import PosSwapError
from hf_posswap.loading.settings import SCHEMES_HELP

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


class BenchmarkCell(NamedTuple):
    """One measurement: a row of the result."""

    scheme: str
    dtype: str
    backend: str
    mode: str
    length: int


def cell_of(row: Mapping[str, Any]) -> BenchmarkCell:
    """Return the cell that a row belongs to."""
    return BenchmarkCell(*(row[name] for name in BenchmarkCell._fields))


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """The settings of a benchmark.

    Raises (on construction):
        BenchmarkError: a value that is not allowed; the message gives the allowed ones.
        SchemeConfigError, UnknownNameError: an invalid or unknown scheme.
    """

    model: str = option(
        REQUIRED,
        "A shape with random weights, which are as fast as trained ones: smollm2, gpt2. Or a folder, a Hub name, a "
        "GGUF file, demo:gpt2, demo:bert, demo:llama.",
        metavar="MODEL",
    )
    schemes: tuple[str, ...] = option(REQUIRED, SCHEMES_HELP, metavar="S,S,…")
    lengths: tuple[int, ...] = option(
        (512, 2048), "Lengths in tokens; for decode, tokens in the cache.", minimum=1, metavar="N,N,…"
    )
    modes: tuple[str, ...] = option(
        MODEL_MODES,
        "prefill, training (forward and backward pass), decode (a token, N cached); attention and attention-training "
        "(one layer's attention alone); import and load (from_pretrained).",
        choices=MODES,
        metavar="M,M,…",
    )
    dtypes: tuple[str, ...] = option(
        ("float32",), "Dtypes: float32, bfloat16, float16.", choices=DTYPES, metavar="D,D,…"
    )
    backends: tuple[str, ...] = option(
        ("sdpa",),
        "eager, sdpa, flex_attention, each against the stock model with the same; dense-eager: a bias held as heads × "
        "length × length and added in eager attention, against the stock model with sdpa.",
        choices=BACKENDS,
        metavar="B,B,…",
    )
    device: str = option("cpu", "cpu or cuda.", metavar="DEVICE")
    batch: int = option(1, "Texts in a batch.", minimum=1)
    layers: int | None = option(
        None, "Number of layers to keep, for long texts; ratios change little. Default: all.", minimum=1
    )
    repeats: int = option(5, "Number of times that the stock and the swapped model run in turn.", minimum=1)
    seed: int = option(0, "Seed of random weights and inputs.", minimum=0)

    def __post_init__(self) -> None:
        from hf_posswap.schemes import as_config

        check_options(self, BenchmarkError)
        for name in ("schemes", "lengths", "modes", "dtypes", "backends"):
            if not getattr(self, name):
                raise BenchmarkError(f"no {name} to measure. Give one or more, separated by commas.")
        for scheme in self.schemes:
            as_config(scheme)

    def cells(self) -> Iterator[BenchmarkCell]:
        """Yield the cells; those of one pair of models follow each other."""
        for dtype in self.dtypes:
            for backend in self.backends:
                for scheme in self.schemes:
                    for mode in self.modes:
                        lengths = (0,) if mode in STARTUP_MODES else self.lengths
                        yield from (BenchmarkCell(scheme, dtype, backend, mode, length) for length in lengths)

    def conditions(self) -> dict[str, Any]:
        """Return the settings that must be equal in two runs for their cells to be combined in one table."""
        asked = ("schemes", "lengths", "modes", "dtypes", "backends")
        return {name: value for name, value in asdict(self).items() if name not in asked}
