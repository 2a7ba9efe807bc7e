"""Checks all settings of a comparison before any long computation."""

import copy
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_posswap.architectures import architecture_of
from hf_posswap.auto import auto_class
from hf_posswap.errors import UnsupportedError
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.preparation import chosen_device
from hf_posswap.evaluation.texts import MeasuredText, tokenise_files
from hf_posswap.evaluation.windows import USUAL_PROTOCOLS, Protocol
from hf_posswap.experiments.cells import Cell, Lane
from hf_posswap.experiments.measuring import AUTO_CLASSES, Measure, objective_of
from hf_posswap.experiments.settings import ComparisonSettings
from hf_posswap.experiments.stages import CALIBRATION_WORK, HEALING_WORK, StagePlan, calibration_length
from hf_posswap.results.kinds import STOCK
from hf_posswap.schemes import SchemeConfig, parse_scheme, schemes
from hf_posswap.sources import load_config, load_model, load_tokenizer
from hf_posswap.swapped.capabilities import capability
from hf_posswap.texts.files import read_files
from hf_posswap.training.documents import from_files, require_apart
from hf_posswap.training.loop import healing_lengths
from hf_posswap.training.options import HealingOptions
from hf_posswap.training.texts import Windows

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Refusal:
    """A scheme that the model cannot use.

    Attributes:
        scheme: the scheme as the user wrote it.
        reason: why the model cannot use it.
    """

    scheme: str
    reason: str


@dataclass(frozen=True)
class Prepared:
    """The checked inputs of `run`.

    Attributes:
        settings: the settings, with lengths in ascending order and the chosen device.
        config: the model's configuration.
        tokenizer: the model's tokenizer.
        texts: the texts to measure on.
        documents: the documents to calibrate and heal on.
        training_facts: identity of each text in `documents`.
        refusals: schemes that the model cannot use; their rows have no loss.
        measure: the measure that all cells share.
    """

    settings: ComparisonSettings
    config: "PretrainedConfig"
    tokenizer: "PreTrainedTokenizerBase"
    texts: tuple[MeasuredText, ...]
    documents: list[str]
    training_facts: list[dict[str, Any]]
    refusals: tuple[Refusal, ...]
    measure: Measure = field(repr=False)

    @property
    def train_length(self) -> int:
        """Length of the longest texts that the stock model was trained on."""
        return int(self.config.max_position_embeddings)

    @property
    def number_of_seeds(self) -> int:
        """Number of seeds."""
        return self.settings.seeds

    @property
    def healing_length(self) -> int:
        """Number of tokens of the longest window in healing."""
        return max(healing_lengths(self.settings.healing or HealingOptions(steps=1), self.train_length))

    def learning_lengths(self) -> tuple[list[int], int | None]:
        """Return the lengths of a sample of the training documents, and the number of documents; None: unknown."""
        return Windows(self.documents, self.tokenizer, 1, packing=False).document_lengths()

    def load(self) -> Any:
        """Load the stock model with the head that is measured."""
        settings, head = self.settings, auto_class(AUTO_CLASSES[self.measure.objective])
        # Copy the configuration, because a swap changes it.
        model = load_model(settings.model, head, config=copy.deepcopy(self.config), dtype=settings.dtype)
        model.to(settings.device)
        self.measure.remember(model)
        return model

    def plan(self, lane: Lane) -> StagePlan:
        """Return the plan of a lane's stages."""
        settings = self.settings
        return StagePlan(
            load=self.load,
            scheme=None if lane.scheme == STOCK else parse_scheme(lane.scheme),
            seed=lane.seed,
            device=settings.device or "cpu",
            tokenizer=self.tokenizer,
            documents=self.documents,
            calibration_tokens=settings.calibration_tokens,
            healing=None if settings.healing is None else dataclasses.replace(settings.healing, seed=lane.seed),
        )

    def work(self, cell: Cell) -> float:
        """Return the approximate work for a cell; measuring one token is a work of 1."""
        settings = self.settings
        if cell.scheme in {refusal.scheme for refusal in self.refusals}:
            return 0.0
        if cell.stage == "calibrated":
            return self.measure.tokens + CALIBRATION_WORK * settings.calibration_tokens
        if cell.stage in ("healed", "control") and settings.healing is not None:
            step = self.healing_length * settings.healing.batch_size * settings.healing.accumulation
            return self.measure.tokens + HEALING_WORK * step * settings.healing.steps_for(self.healing_length, 1)
        return self.measure.tokens


def prepare(settings: ComparisonSettings, losses: Sequence[Protocol] = USUAL_PROTOCOLS, keys: bool = True) -> Prepared:
    """Check the settings against the model and the texts, and tokenise the texts.

    Args:
        settings: the settings.
        losses: protocols of the loss of causal models.
        keys: whether the loss of key tokens of causal models is measured too.

    Raises:
        PosSwapError: a scheme or the model is unknown; the model is swapped or not supported; a text is missing, too
            short, or used both for measuring and for training; settings cannot be combined; or the model can use none
            of the schemes.
    """
    _require_one_process()
    device = chosen_device(settings.device)
    settings = dataclasses.replace(settings, device=settings.device or device.type)
    configs = {scheme: parse_scheme(scheme) for scheme in settings.schemes}
    files, training = (
        read_files(settings.texts, settings.documents),
        from_files(settings.train_texts, settings.documents),
    )
    require_apart(([text for file in files for text in file.documents], [file.to_dict() for file in files]), training)
    config = load_config(settings.model)
    if getattr(config, "pos_scheme", None) is not None:
        raise EvaluationError(
            f"model {settings.model!r} is swapped already ({config.pos_scheme['name']!r}), so there is no stock model "
            "to compare with. Give the model it was made from."
        )
    objective = objective_of(config)
    if settings.control and objective == "embedding":
        raise EvaluationError(
            f"a control says nothing for {settings.model!r}, which embeds texts: the stock model is its own teacher, "
            "and its cosine to itself is 1. Leave out --control."
        )
    refusals = _refusals(settings, config, configs)
    tokenizer = load_tokenizer(settings.model)
    texts = tokenise_files(tokenizer, files)
    ids = [ids for text in texts for ids in text.ids]
    how: dict[str, Any] = {"budget": settings.tokens, "seed": settings.seed, "losses": losses, "keys": keys}
    measure = Measure(objective, tokenizer, ids, settings.lengths, **how)
    prepared = Prepared(settings, config, tokenizer, texts, *training, refusals, measure)
    _check_training_texts(prepared)
    return prepared


def _require_one_process() -> None:
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1:
        raise EvaluationError(
            f"a comparison or a search runs in one process, and {started} were started. Start it without accelerate "
            "launch; hf-posswap finetune heals on several."
        )


def _check_training_texts(prepared: Prepared) -> None:
    """Refuse too little text before a model is loaded.

    Raises:
        HealingError: there is too little text; the message gives its number of tokens.
    """
    settings = prepared.settings
    if settings.calibrate:
        length = calibration_length(prepared.train_length)
        Windows(prepared.documents, prepared.tokenizer, length, packing=False).spread(1)
    if settings.healing is not None:
        packing = settings.healing.packing is not False and prepared.measure.objective == "lm"
        Windows(prepared.documents, prepared.tokenizer, prepared.healing_length, packing).require_one()


def _refusals(
    settings: ComparisonSettings, config: "PretrainedConfig", configs: dict[str, SchemeConfig]
) -> tuple[Refusal, ...]:
    """Return the schemes that the model cannot use, by the capability table; a composition needs all its schemes.

    Raises:
        UnsupportedError: the model can use none of the schemes.
    """
    architecture = architecture_of(config)
    cells = [capability(architecture, architecture.is_causal(config), scheme) for scheme in schemes]
    reasons: dict[str, Any] = {found.scheme: found.reason or "" for found in cells if not found.supported}
    found = {spec: [part.name for part in config.parts if part.name in reasons] for spec, config in configs.items()}
    refusals = tuple(Refusal(spec, reasons[names[0]]) for spec, names in found.items() if names)
    if configs and len(refusals) == len(configs):
        listed = "\n".join(f"  {refusal.scheme}: {refusal.reason}" for refusal in refusals)
        raise UnsupportedError(f"model {settings.model!r} can take none of the schemes:\n{listed}")
    return refusals
