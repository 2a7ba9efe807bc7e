"""The settings of experiments. The command line reads them at once, so this module imports no torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_posswap.common.options import REQUIRED, check_options, option
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.settings import DOCUMENTS_HELP, SPLITS, TEXTS_HELP, WHAT, MeasuringSettings
from hf_posswap.loading.settings import MODEL_HELP, SCHEME_HELP, StoredDtype, SwapSettings
from hf_posswap.results.kinds import STOCK
from hf_posswap.training.options import HEALING, RECIPE, RUN, TEXTS, HealingError, HealingOptions

CALIBRATION_TOKENS = 8192
EVALUATION_TOKENS = 16384
"""Tokens that `finetune` reads at each length to measure a stage."""
GROWING = ("schemes", "seeds", "control")
"""Settings that a later run in the same folder may extend; it keeps the cells that were measured before."""
LEARNING, MEASURING = "What else to measure", "Measuring"


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions(SwapSettings):
    """The options of calibration.

    Raises (on construction):
        PosSwapError: a value that is not allowed; the message gives the allowed ones.
    """

    dtype: StoredDtype = option("float32", "Type of the weights; auto: as stored.")
    texts: tuple[str, ...] = option(
        REQUIRED, "Text to calibrate on; repeatable.", flag="--text", metavar="FILE", repeated=True
    )
    documents: str | None = option(None, DOCUMENTS_HELP, metavar=SPLITS)
    tokens: int = option(CALIBRATION_TOKENS, "Tokens to fit to; an eighth more is read to measure on.", minimum=2)
    length: int = option(512, "Tokens read at once; at most the train length.", minimum=2)
    refine_tokens: int = option(
        0,
        "Then train the scheme's parameters alone on this many tokens, against the stock model's outputs.",
        minimum=0,
    )


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings(MeasuringSettings):
    """The settings of a comparison.

    Attributes:
        healing: options of healing for each swapped model; None: no healing. Its seed is set for each run.

    Raises (on construction):
        EvaluationError: a value that is not allowed, or settings that cannot be combined; the message names them.
    """

    schemes: tuple[str, ...] = option(
        REQUIRED, f"Schemes, separated by commas. {SCHEME_HELP}", metavar="S,S,…", group=WHAT
    )
    calibrate: bool = option(False, "Also fit each scheme to the old weights.", group=LEARNING)
    healing: HealingOptions | None = None
    control: bool = option(False, "Also heal the stock model on the same tokens.", group=LEARNING)
    train_texts: tuple[str, ...] = option(
        (),
        "A text to calibrate and heal on, or demo:books/train; repeatable.",
        flag="--train-file",
        metavar="FILE",
        repeated=True,
        group=LEARNING,
    )
    seeds: int = option(1, "How many seeds, counted up from --seed.", minimum=1, metavar="N", group=LEARNING)
    calibration_tokens: int = option(
        CALIBRATION_TOKENS, "Tokens to calibrate on.", minimum=2, metavar="N", group=LEARNING
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.schemes and not self.control:
            raise EvaluationError("no scheme given to compare stock with. `hf-posswap schemes` lists them.")
        for scheme in self.schemes:
            if scheme == STOCK:
                raise EvaluationError("'stock' is measured beside every comparison; leave it out of the schemes.")
            if self.schemes.count(scheme) > 1:
                raise EvaluationError(f"scheme {scheme!r} is given twice.")
        self._check_training()

    def _check_training(self) -> None:
        learns = [name for name, on in (("calibrate", self.calibrate), ("heal", self.healing is not None)) if on]
        if learns and not self.train_texts:
            raise EvaluationError(
                f"there is no text to {' and '.join(learns)} on. Give one that is not measured on, with --train-file, "
                "such as demo:books/train."
            )
        if self.train_texts and not learns:
            raise EvaluationError(
                "nothing would read the training text: give --calibrate or --heal-tokens, or leave it out."
            )
        if self.control and self.healing is None:
            raise EvaluationError("the control is the stock model healed on the same tokens: give --heal-tokens too.")
        if self.healing is not None and self.dtype != "float32":
            raise EvaluationError(
                f"a model healed in {self.dtype} weights learns nothing from small steps. Heal float32 weights, which "
                "--precision bf16 computes with in bfloat16, or compare without --heal-tokens."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, as they come back from a file."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def all_seeds(self) -> range:
        """Return the seeds."""
        return range(self.seed, self.seed + self.seeds)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The settings of healing one model from end to end.

    Attributes:
        healing: options of healing.

    Raises (on construction):
        HealingError: a value that is not allowed, or settings that cannot be combined; the message names them.
    """

    model: str = option(REQUIRED, MODEL_HELP, metavar="MODEL")
    pos_scheme: str | None = option(None, f"{SCHEME_HELP} Not needed for a swapped model.", metavar="SCHEME")
    stock: str | None = option(
        None, "Where --model was healed before: the stock model, to teach and to compare.", metavar="NAME"
    )
    healing: HealingOptions
    train_texts: tuple[str, ...] = option(
        (), "A UTF-8 text; repeatable.", flag="--train-file", metavar="FILE", repeated=True, group=TEXTS
    )
    documents: str | None = option(None, DOCUMENTS_HELP, metavar=SPLITS, group=TEXTS)
    dataset: str | None = option(None, "A datasets dataset or folder, streamed.", metavar="NAME", group=TEXTS)
    dataset_split: str | None = option(None, "Its split. Default: train.", group=TEXTS)
    text_column: str | None = option(None, "Its column of texts. Default: text.", group=TEXTS)
    lora_rank: int | None = option(
        None, "Train adapters of this rank, and the scheme, not the weights.", minimum=1, group=HEALING
    )
    calibrate: bool = option(True, "Fit the scheme to the old weights first, if it can be.", group=HEALING)
    calibration_tokens: int | None = option(
        None, f"Tokens to calibrate on. Default: {CALIBRATION_TOKENS}.", minimum=2, group=HEALING
    )
    resume: bool = option(False, "Go on from the newest checkpoint in DIR.", group=RUN)
    history: Path | None = option(
        None, "JSON with every step; healing.json has a few of them.", metavar="FILE", group=RUN
    )
    log_with: str | None = option(None, "tensorboard, wandb, …", metavar="TRACKER", group=RUN)
    control: bool = option(False, "Heal the unswapped model in the same way.", group=MEASURING)
    texts: tuple[str, ...] = option(
        (),
        f"To measure on: {TEXTS_HELP[0].lower()}{TEXTS_HELP[1:]}",
        flag="--eval-file",
        metavar="FILE",
        repeated=True,
        group=MEASURING,
    )
    lengths: tuple[int, ...] = option(
        (), "Tokens to read at once then.", flag="--eval-lengths", metavar="N,N,…", group=MEASURING
    )
    tokens: int | None = option(
        None,
        f"About how many tokens to read at each length. Default: {EVALUATION_TOKENS}.",
        flag="--eval-tokens",
        minimum=1,
        group=MEASURING,
    )

    def __post_init__(self) -> None:
        check_options(self, HealingError)
        if (self.dataset is None) == (not self.train_texts):
            raise HealingError("give the text to heal on: either --train-file FILE or --dataset NAME.")
        lengths = ",".join(map(str, self.lengths)) or None
        for name, value in (("--eval-lengths", lengths), ("--eval-tokens", self.tokens)):
            if value is not None and not self.texts:
                raise HealingError(f"{name} {value} says how to measure: give a text for it too, --eval-file FILE.")
        for name, value in (("--dataset-split", self.dataset_split), ("--text-column", self.text_column)):
            if value is not None and self.dataset is None:
                raise HealingError(f"{name} {value} is of a dataset: give --dataset NAME, or leave it out.")


def recipe(tokens: int, **changes: Any) -> HealingOptions:
    """Return the default options of healing with a number of tokens: those that were best for small models.

    The target is the stock model's outputs, and the precision is bfloat16 on devices that have instructions for it.
    `changes` replace single options of `HealingOptions`.
    """
    import torch

    from hf_posswap.training.precision import fast_precision

    chosen: dict[str, Any] = {
        **RECIPE,
        "precision": fast_precision("cuda" if torch.cuda.is_available() else "cpu"),
        "checkpoint_every": 0,
    }
    return HealingOptions(tokens=tokens, **(chosen | changes))
