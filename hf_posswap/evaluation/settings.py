"""The settings of measurements. This module does not import torch, so that the command line starts quickly."""

from dataclasses import dataclass
from typing import Literal

from hf_posswap.common.options import REQUIRED, check_options, option
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.ruler_tasks import TASKS
from hf_posswap.loading.settings import MODEL_HELP, SCHEME_HELP, SCHEMES_HELP
from hf_posswap.results.kinds import STAGES, SWAPPED_STAGES

Dtype = Literal["float32", "bfloat16", "float16"]
CAUSAL = ("loss", "key-tokens", "positions", "passkey", "sliding", "ruler")
ENCODER = ("masked", "retrieval", "needles")
MEASUREMENTS = (*CAUSAL, *ENCODER)
ONLY_NAMED = ("sliding", "ruler", "needles")
RULER_TASKS = tuple(TASKS)
"""Measurements that take several times as long as the others; they are made only if they are named."""
POOLINGS = ("mean", "first")
BINS, TRIALS, MOST_DOCUMENTS = 16, 10, 100
GAIN = 2.0
"""Default least log p(long) − log p(short) of a key token, in nats: α of LongPPL (2410.23771)."""
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
WHAT, HOW, RUN = "What to measure", "How to measure it", "The run"
TEXTS_HELP = "A UTF-8 text, or demo:books; repeatable."
DOCUMENTS_HELP = "What is a document: a whole file, each line, or each paragraph between blank lines. Default: file."
SPLITS = "file|lines|blank-lines"
STAGE_HELP = "The model's stage. Default: the one in its config or in the records beside it."


@dataclass(frozen=True, kw_only=True)
class MeasuringSettings:
    """The settings of every measurement by length.

    Raises (on construction):
        EvaluationError: a value that is not allowed; the message gives the allowed ones.
    """

    model: str = option(REQUIRED, MODEL_HELP, metavar="MODEL", group=WHAT)
    texts: tuple[str, ...] = option(REQUIRED, TEXTS_HELP, flag="--text", metavar="FILE", repeated=True, group=WHAT)
    lengths: tuple[int, ...] = option(REQUIRED, "Context lengths in tokens.", metavar="N,N,…", group=WHAT)
    documents: str | None = option(None, DOCUMENTS_HELP, metavar=SPLITS, group=WHAT)
    tokens: int = option(
        8192, "Approximate number of tokens to read for each length and protocol.", minimum=1, group=HOW
    )
    seed: int = option(0, "Seed of all random numbers.", minimum=0, group=RUN)
    dtype: Dtype = option("float32", "Dtype of the weights.", group=RUN)
    device: str | None = option(
        None, "Device, such as cpu or cuda. Default: cuda if it is available.", metavar="DEVICE", group=RUN
    )

    def __post_init__(self) -> None:
        from hf_posswap.evaluation.windows import check_lengths

        check_options(self, EvaluationError)
        if not self.texts:
            raise EvaluationError("no text given. Give a UTF-8 text file or demo:books.")
        object.__setattr__(self, "lengths", tuple(check_lengths(self.lengths)))


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(MeasuringSettings):
    """The settings of an evaluation of one model, stock or swapped.

    If `measurements` is empty, the evaluation runs all measurements that the model supports, except `ONLY_NAMED`.

    Raises (on construction):
        EvaluationError: see `MeasuringSettings`.
        PosSwapError: the scheme is unknown, or one of its options is invalid.
    """

    pos_scheme: str | None = option(None, SCHEME_HELP, metavar="SCHEME", group=WHAT)
    measurements: tuple[str, ...] = option(
        (),
        f"Measurements: {', '.join(CAUSAL)}; for encoders {', '.join(ENCODER)}. Default: all that the model supports, "
        f"except {', '.join(ONLY_NAMED)}.",
        choices=MEASUREMENTS,
        flag="--measure",
        metavar="M,M,…",
        group=WHAT,
    )
    stage: str | None = option(None, STAGE_HELP, choices=STAGES, group=WHAT)
    stock: str | None = option(
        None,
        "key-tokens: the stock model that chooses them, for a swapped checkpoint. Default: the one it was made from.",
        metavar="NAME",
        group=WHAT,
    )
    key_gain: float = option(
        GAIN,
        "key-tokens: a key token's log p is higher from long context than from short by more than this, in nats.",
        minimum=0,
        group=HOW,
    )
    stride: int | None = option(
        None, "sliding: tokens by which a window moves. Default: half of the shortest length.", minimum=1, group=HOW
    )
    bins: int = option(BINS, "positions: number of bins that a window is divided into.", minimum=1, group=HOW)
    depths: tuple[float, ...] = option(
        DEPTHS, "passkey: depths of the key, from 0 (beginning) to 1 (end).", metavar="D,D,…", group=HOW
    )
    trials: int = option(
        TRIALS,
        "passkey: number of keys for each depth and length, preferably a multiple of 10. ruler: number of prompts for "
        "each task and length.",
        group=HOW,
    )
    tasks: tuple[str, ...] = option(
        RULER_TASKS, "ruler: the tasks.", choices=RULER_TASKS, flag="--ruler-tasks", metavar="T,T,…", group=HOW
    )
    most_documents: int = option(
        MOST_DOCUMENTS, "retrieval: maximum number of documents. needles: their number.", minimum=1, group=HOW
    )
    document_tokens: int | None = option(
        None, "retrieval: tokens of a document. Default: the longest length.", group=HOW
    )
    pooling: str = option(
        "mean", "retrieval, needles: pooling that gives a text's embedding.", choices=POOLINGS, group=HOW
    )

    def __post_init__(self) -> None:
        from hf_posswap.schemes import parse_scheme
        from hf_posswap.texts.files import checked_split

        super().__post_init__()
        checked_split(self.documents)
        if self.pos_scheme is not None:
            parse_scheme(self.pos_scheme)


@dataclass(frozen=True, kw_only=True)
class BiasSettings:
    """The settings of the measurement of the bias by distance.

    Raises (on construction):
        EvaluationError: a value that is not allowed; the message gives the allowed ones.
    """

    schemes: tuple[str, ...] = option((), f"{SCHEMES_HELP} Not needed for a swapped model.", metavar="S,S,…")
    longest: int = option(1024, "Largest distance to measure.", minimum=1, metavar="N")
    stage: str | None = option(None, f"For a model that is already swapped. {STAGE_HELP}", choices=SWAPPED_STAGES)
    seed: int = option(0, "Seed of schemes that start from random numbers.", minimum=0)

    def __post_init__(self) -> None:
        check_options(self, EvaluationError)
