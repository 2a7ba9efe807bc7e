"""The settings of experiments. This module does not import torch, so that the command line starts quickly."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_posswap.common.options import REQUIRED, check_options, option
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.settings import DOCUMENTS_HELP, SPLITS, TEXTS_HELP, WHAT, MeasuringSettings
from hf_posswap.loading.settings import MODEL_HELP, SCHEME_HELP, SCHEMES_HELP, StoredDtype, SwapSettings
from hf_posswap.results.kinds import STOCK
from hf_posswap.training.options import HEALING, RECIPE, RUN, TEXTS, HealingError, HealingOptions

CALIBRATION_TOKENS = 8192
EVALUATION_TOKENS = 16384
"""Tokens that `finetune` and `search` read at each length to measure a model."""
TRAIN_TEXTS_HELP = "A text to calibrate and heal on, or demo:books/train; repeatable."
GROWING = ("schemes", "seeds", "control")
"""Settings that a later run in the same folder may extend; the later run keeps the cells that are already measured."""
LEARNING, MEASURING, CANDIDATES = "What else to measure", "Measuring", "What to try"


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions(SwapSettings):
    """The options of calibration.

    Raises (on construction):
        PosSwapError: a value that is not allowed; the message gives the allowed ones.
    """

    dtype: StoredDtype = option("float32", "Dtype of the weights; auto: as stored.")
    texts: tuple[str, ...] = option(
        REQUIRED, "Text to calibrate on; repeatable.", flag="--text", metavar="FILE", repeated=True
    )
    documents: str | None = option(None, DOCUMENTS_HELP, metavar=SPLITS)
    tokens: int = option(
        CALIBRATION_TOKENS, "Number of tokens to fit to; an eighth more is held back to measure on.", minimum=2
    )
    length: int = option(512, "Tokens of a window; at most the train length.", minimum=2)
    refine_tokens: int = option(
        0,
        "After the fit, train only the scheme's parameters on this many tokens, with the stock model as the teacher.",
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

    schemes: tuple[str, ...] = option(REQUIRED, SCHEMES_HELP, metavar="S,S,…", group=WHAT)
    calibrate: bool = option(False, "Also calibrate each scheme, and measure that stage.", group=LEARNING)
    healing: HealingOptions | None = None
    control: bool = option(False, "Also heal the stock model, on the same tokens.", group=LEARNING)
    train_texts: tuple[str, ...] = option(
        (),
        TRAIN_TEXTS_HELP,
        flag="--train-file",
        metavar="FILE",
        repeated=True,
        group=LEARNING,
    )
    seeds: int = option(1, "Number of seeds, counted up from --seed.", minimum=1, metavar="N", group=LEARNING)
    calibration_tokens: int = option(
        CALIBRATION_TOKENS, "Number of tokens to calibrate on.", minimum=2, metavar="N", group=LEARNING
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
        """Return the settings as JSON-ready values, equal to those read from a result file."""
        values = asdict(self) | {"healing": None if self.healing is None else self.healing.to_dict()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def all_seeds(self) -> range:
        """Return all seeds of the comparison."""
        return range(self.seed, self.seed + self.seeds)


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """The settings of a search for the best scheme of a model.

    Attributes:
        healing: options of healing; its tokens are those of all candidates together. Its seed is set for each round.

    Raises (on construction):
        EvaluationError: a value that is not allowed; the message gives the allowed ones.
    """

    model: str = option(REQUIRED, MODEL_HELP, metavar="MODEL", group=WHAT)
    texts: tuple[str, ...] = option(REQUIRED, TEXTS_HELP, flag="--text", metavar="FILE", repeated=True, group=WHAT)
    train_texts: tuple[str, ...] = option(
        (),
        TRAIN_TEXTS_HELP,
        flag="--train-file",
        metavar="FILE",
        repeated=True,
        group=WHAT,
    )
    length: int = option(REQUIRED, "Target length in tokens, longer than the train length.", minimum=2, group=WHAT)
    lost: float = option(
        0.05, "Nats a token that may be lost at the train length against stock.", minimum=0, metavar="X", group=WHAT
    )
    schemes: tuple[str, ...] = option(
        (),
        f"{SCHEMES_HELP} Default: every scheme that the model can take and that reads the target length, in the form "
        "with the most parameters.",
        metavar="S,S,…",
        group=CANDIDATES,
    )
    hybrids: bool = option(
        False,
        "Also measure what each layer costs, and try the best scheme in all layers but the most costly ones, which "
        "keep the model's own mechanism.",
        group=CANDIDATES,
    )
    healing: HealingOptions
    documents: str | None = option(None, DOCUMENTS_HELP, metavar=SPLITS, group=WHAT)
    calibration_tokens: int = option(
        CALIBRATION_TOKENS, "Number of tokens to calibrate on.", minimum=2, metavar="N", group=HEALING
    )
    eval_tokens: int = option(
        EVALUATION_TOKENS,
        "Approximate number of tokens to read at each length to measure a candidate.",
        minimum=1,
        group=MEASURING,
    )
    seed: int = option(0, "Seed of all random numbers.", minimum=0, group=RUN)
    device: str | None = option(
        None, "Device, such as cpu or cuda. Default: cuda if it is available.", metavar="DEVICE", group=RUN
    )

    def __post_init__(self) -> None:
        check_options(self, EvaluationError)

    @property
    def tokens(self) -> int:
        """Number of healing tokens of all candidates together."""
        assert self.healing.tokens is not None
        return self.healing.tokens

    def comparison(self, schemes: tuple[str, ...], train_length: int) -> ComparisonSettings:
        """Return the settings of a comparison of the candidates, which has the same models, texts and measure.

        Raises:
            EvaluationError: settings that cannot be combined.
        """
        return ComparisonSettings(
            model=self.model,
            schemes=schemes,
            texts=self.texts,
            lengths=(train_length, self.length),
            documents=self.documents,
            tokens=self.eval_tokens,
            seed=self.seed,
            device=self.device,
            calibrate=True,
            healing=self.healing,
            train_texts=self.train_texts,
            calibration_tokens=self.calibration_tokens,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values, equal to those read from a result file."""
        values = asdict(self) | {"healing": self.healing.to_dict()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


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
        None, "The stock model, as teacher and for comparison; needed if --model was healed before.", metavar="NAME"
    )
    healing: HealingOptions
    train_texts: tuple[str, ...] = option(
        (), "A UTF-8 text to heal on; repeatable.", flag="--train-file", metavar="FILE", repeated=True, group=TEXTS
    )
    documents: str | None = option(None, DOCUMENTS_HELP, metavar=SPLITS, group=TEXTS)
    dataset: str | None = option(
        None, "A dataset or folder for the package datasets, streamed.", metavar="NAME", group=TEXTS
    )
    dataset_split: str | None = option(None, "Split of the dataset. Default: train.", group=TEXTS)
    text_column: str | None = option(None, "Column of the dataset with the texts. Default: text.", group=TEXTS)
    lora_rank: int | None = option(
        None, "Train low-rank adapters of this rank and the scheme in place of the weights.", minimum=1, group=HEALING
    )
    calibrate: bool = option(True, "Calibrate the scheme before healing, if it has parameters to fit.", group=HEALING)
    calibration_tokens: int | None = option(
        None, f"Number of tokens to calibrate on. Default: {CALIBRATION_TOKENS}.", minimum=2, group=HEALING
    )
    resume: bool = option(False, "Resume from the newest checkpoint in DIR.", group=RUN)
    history: Path | None = option(
        None, "JSON file for every step; healing.json has a few of them.", metavar="FILE", group=RUN
    )
    log_with: str | None = option(
        None, "Tracker of Accelerate, such as tensorboard or wandb.", metavar="TRACKER", group=RUN
    )
    control: bool = option(False, "Also heal the stock model, on the same tokens.", group=MEASURING)
    texts: tuple[str, ...] = option(
        (),
        "A UTF-8 text to measure on, or demo:books; repeatable.",
        flag="--eval-file",
        metavar="FILE",
        repeated=True,
        group=MEASURING,
    )
    lengths: tuple[int, ...] = option(
        (),
        "Context lengths to measure at, in tokens. Default: the healing length.",
        flag="--eval-lengths",
        metavar="N,N,…",
        group=MEASURING,
    )
    tokens: int | None = option(
        None,
        f"Approximate number of tokens to read at each length. Default: {EVALUATION_TOKENS}.",
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
                raise HealingError(f"{name} {value} is for measuring: give a text to measure on too, --eval-file FILE.")
        for name, value in (("--dataset-split", self.dataset_split), ("--text-column", self.text_column)):
            if value is not None and self.dataset is None:
                raise HealingError(f"{name} {value} is of a dataset: give --dataset NAME, or leave it out.")


def recipe(tokens: int, **changes: Any) -> HealingOptions:
    """Return the default options of healing, which gave the best results for small models.

    The target is the stock model's outputs. The precision is bfloat16 on devices with instructions for it.

    Args:
        tokens: number of tokens to heal on.
        changes: options of `HealingOptions` that replace the defaults.
    """
    import torch

    from hf_posswap.training.precision import fast_precision

    chosen: dict[str, Any] = {
        **RECIPE,
        "precision": fast_precision("cuda" if torch.cuda.is_available() else "cpu"),
        "checkpoint_every": 0,
    }
    return HealingOptions(tokens=tokens, **(chosen | changes))
