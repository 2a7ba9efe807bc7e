"""What to compare, and how a swapped model is healed unless one says otherwise."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.windows import check_lengths
from hf_posswap.results.kinds import STOCK
from hf_posswap.training.options import RECIPE, HealingOptions
from hf_posswap.training.precision import fast_precision
from hf_posswap.training.stages import CALIBRATION_TOKENS

GROWING = ("schemes", "seeds", "control")
"""Settings that may grow from one run to the next in the same folder: what was measured before is kept."""


@dataclass(frozen=True)
class Settings:
    """What to compare.

    Attributes:
        model: a folder, a Hub name, a GGUF file or a `demo:` name.
        schemes: scheme specifications such as "alibi" or "rope:yarn:factor=4".
        texts: files or `demo:` names to measure on.
        lengths: tokens to read at once.
        documents: what is a document of the texts, of those that are measured on and of those that are learned from;
            see `hf_posswap.text_files.read_files`.
        tokens: about how many tokens are read for each length, protocol and measured point.
        seed: of the bootstrap, and the first of the seeds of what schemes and healing draw at random.
        seeds: how many seeds, counted up from `seed`.
        dtype: in which the model computes when it is measured.
        device: on which it computes, such as "cpu" or "cuda"; None picks CUDA where there is one.
        train_texts: files or `demo:` names to calibrate and heal on; none of them may be measured on.
        calibrate: fit each scheme to the old weights, if it has parameters that can be, and measure that too.
        calibration_tokens: tokens to read for that.
        healing: how each swapped model is healed; None: not at all. Its seed is set for each run.
        control: heal the stock model too, on the same tokens in the same order and schedule.
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
    """Return how a swapped model is healed with so many tokens: what healed small models best.

    The stock model's outputs are the target, and it computes in bfloat16 where there are instructions for it.
    `changes` replace single options of `HealingOptions`.
    """
    chosen: dict[str, Any] = {
        **RECIPE,
        "precision": fast_precision("cuda" if torch.cuda.is_available() else "cpu"),
        "checkpoint_every": 0,
    }
    return HealingOptions(tokens=tokens, **(chosen | changes))


def normalised(settings: Settings) -> Settings:
    """Put the lengths in order and refuse what does not go together, whatever the model and the texts.

    Raises:
        EvaluationError: says which settings.
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
