"""The settings of a comparison, and its default options of healing."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.windows import check_lengths
from hf_posswap.results.kinds import STOCK
from hf_posswap.training.options import RECIPE, HealingOptions
from hf_posswap.training.precision import fast_precision

CALIBRATION_TOKENS = 8192
GROWING = ("schemes", "seeds", "control")
"""Settings that a later run in the same folder may extend; it keeps the cells that were measured before."""


@dataclass(frozen=True)
class Settings:
    """The settings of a comparison.

    Attributes:
        model: a folder, a Hub name, a GGUF file or a `demo:` name.
        schemes: scheme specifications such as "alibi" or "rope:yarn:factor=4".
        texts: files or `demo:` names to measure on.
        lengths: context lengths in tokens.
        documents: how texts, both for measuring and for training, are split into documents; see
            `hf_posswap.texts.files.read_files`.
        tokens: approximate number of tokens to read for each length, protocol and cell.
        seed: seed of the bootstrap, and the first seed of the random numbers of schemes and healing.
        seeds: number of seeds, counted up from `seed`.
        dtype: dtype in which models are measured.
        device: device such as "cpu" or "cuda"; None: CUDA if it is available.
        train_texts: files or `demo:` names to calibrate and heal on; none of them may be measured on.
        calibrate: calibrate each scheme that has parameters to fit, and measure that stage, too.
        calibration_tokens: tokens to calibrate on.
        healing: options of healing for each swapped model; None: no healing. Its seed is set for each run.
        control: also heal the stock model, on the same tokens in the same order and schedule.
    """

    model: str
    schemes: tuple[str, ...]
    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    documents: str | None = None
    tokens: int = 8192
    seed: int = 0
    seeds: int = 1
    dtype: str = "float32"
    device: str | None = None
    train_texts: tuple[str, ...] = ()
    calibrate: bool = False
    calibration_tokens: int = CALIBRATION_TOKENS
    healing: HealingOptions | None = None
    control: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, as they come back from a file."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def all_seeds(self) -> range:
        """Return the seeds."""
        return range(self.seed, self.seed + self.seeds)


def recipe(tokens: int, **changes: Any) -> HealingOptions:
    """Return the default options of healing with a number of tokens: those that were best for small models.

    The target is the stock model's outputs, and the precision is bfloat16 on devices that have instructions for it.
    `changes` replace single options of `HealingOptions`.
    """
    chosen: dict[str, Any] = {
        **RECIPE,
        "precision": fast_precision("cuda" if torch.cuda.is_available() else "cpu"),
        "checkpoint_every": 0,
    }
    return HealingOptions(tokens=tokens, **(chosen | changes))


def normalised(settings: Settings) -> Settings:
    """Sort the lengths and refuse settings that cannot be combined with any model and texts.

    Raises:
        EvaluationError: there are such settings; the message names them.
    """
    if not settings.texts:
        raise EvaluationError("no text given. Give a UTF-8 text file or demo:books.")
    if not settings.schemes and not settings.control:
        raise EvaluationError("no scheme given to compare stock with. `hf-posswap schemes` lists them.")
    if settings.tokens < 1:
        raise EvaluationError(f"the budget is {settings.tokens} tokens. Give at least 1.")
    if settings.seeds < 1:
        raise EvaluationError(f"{settings.seeds} seeds measure nothing. Give at least 1.")
    for scheme in settings.schemes:
        if scheme == STOCK:
            raise EvaluationError("'stock' is measured beside every comparison; leave it out of the schemes.")
        if settings.schemes.count(scheme) > 1:
            raise EvaluationError(f"scheme {scheme!r} is given twice.")
    _check_training(settings)
    return Settings(**{**vars(settings), "lengths": tuple(check_lengths(settings.lengths))})


def _check_training(settings: Settings) -> None:
    learns = [name for name, on in (("calibrate", settings.calibrate), ("heal", settings.healing is not None)) if on]
    if learns and not settings.train_texts:
        raise EvaluationError(
            f"there is no text to {' and '.join(learns)} on. Give one that is not measured on, with --train-file, such "
            "as demo:books/train."
        )
    if settings.train_texts and not learns:
        raise EvaluationError(
            "nothing would read the training text: give --calibrate or --heal-tokens, or leave it out."
        )
    if settings.control and settings.healing is None:
        raise EvaluationError("the control is the stock model healed on the same tokens: give --heal-tokens too.")
    if settings.calibrate and settings.calibration_tokens < 2:
        raise EvaluationError(f"{settings.calibration_tokens} tokens are too few to calibrate on. Give thousands.")
    if settings.healing is not None and settings.dtype != "float32":
        raise EvaluationError(
            f"a model healed in {settings.dtype} weights learns nothing from small steps. Heal float32 weights, which "
            "--precision bf16 computes with in bfloat16, or compare without --heal-tokens."
        )
