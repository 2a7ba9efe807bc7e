"""Defines the stages of a model: stock, swapped, calibrated, healed, and the control of healing."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hf_posswap.auto import CALIBRATION_LENGTH
from hf_posswap.calibration import CalibrationReport, calibrate, tokens_to_read
from hf_posswap.experiments.observer import Observer
from hf_posswap.experiments.settings import CALIBRATION_TOKENS
from hf_posswap.results.kinds import CONTROL, STOCK
from hf_posswap.schemes import SchemeConfig
from hf_posswap.swapped.questions import train_length
from hf_posswap.swapping import swap
from hf_posswap.training.distribution import make_accelerator
from hf_posswap.training.loop import HealingObserver, HealingReport, heal
from hf_posswap.training.options import HealingOptions
from hf_posswap.training.supervision import LABELS
from hf_posswap.training.texts import Documents, Windows

CALIBRATION_WORK, HEALING_WORK = 5.0, 2.0
"""Approximate time per token of calibration and of healing, relative to measuring; used only to report progress."""
CONTROL_FOLDER = "control"
"""Name of the control's folder inside the folder of the healed model."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """The inputs for taking one model through the stages.

    Attributes:
        load: function that loads the model.
        scheme: the scheme to swap in; None: no swap, because the model stays stock or is already swapped.
        seed: seed of a scheme that starts from random numbers.
        device: device to calibrate on.
        tokenizer: the model's tokenizer.
        documents: texts to calibrate and heal on; see `Windows`.
        column: column of the documents with the texts, if they are mappings.
        calibration_tokens: number of tokens to calibrate on.
        healing: options of healing; None: the model is not healed.
        accelerator: the Accelerator to heal on; None: one for `device`.
        lora_rank: rank of the low-rank adapters to train instead of the weights; None: the weights are trained.
        folder: folder for the healed model and its checkpoints; it contains the control's folder. None: nothing is
            written.
        resume: whether to resume healing from the newest checkpoint in the folder, if there is one.
        identity: settings, other than the options, that must equal those of the run to resume.
    """

    load: Callable[[], Any]
    scheme: SchemeConfig | None
    seed: int
    device: torch.device | str
    tokenizer: Any
    documents: Documents
    column: str = "text"
    calibration_tokens: int = CALIBRATION_TOKENS
    healing: HealingOptions | None = None
    accelerator: Accelerator | None = None
    lora_rank: int | None = None
    folder: Path | None = None
    resume: bool = False
    identity: dict[str, Any] | None = None


class Subject:
    """A model that is taken through the stages.

    Args:
        plan: the inputs of the stages.
        observer: callbacks for progress.

    Attributes:
        model: the model at its current stage.
        stage: name of the current stage; None: no model is loaded yet.
        teacher: the stock model to distil from; None: the swapped model itself, with its stock mechanism.
    """

    def __init__(self, plan: StagePlan, observer: Observer) -> None:
        self.plan, self.observer = plan, observer
        self.model: Any = None
        self.stage: str | None = None
        self.teacher: Any = None

    def reach(self, name: str) -> Any:
        """Take the model to a stage, through the stages before it, and return the result of `Stage.reach`.

        Args:
            name: a key of `STAGES`.

        Raises:
            PosSwapError: the model, the scheme or the texts do not permit the stage.
        """
        stage = STAGES[name]
        if stage.starts and self.stage not in stage.starts:
            self.reach(stage.starts[0])
        if stage.event:
            self.observer.stage(stage.event)
        report = stage.reach(self)
        self.stage = name
        return report

    def load(self) -> None:
        """Load the model."""
        self.model = self.plan.load()

    def swap(self) -> None:
        """Swap the scheme in, if there is one."""
        if self.plan.scheme is not None:
            torch.manual_seed(self.plan.seed)  # a scheme may start from random numbers
            swap(self.model, self.plan.scheme, replace=True)

    def calibrate(self) -> CalibrationReport:
        """Fit the scheme to the stock model on the documents; `calibration_refusal` tells whether this is possible."""
        plan, tokens = self.plan, self.plan.calibration_tokens

        def layer_done(_: int, layers: int) -> None:
            self.observer.worked(CALIBRATION_WORK * tokens / layers)

        model = self.model.to(plan.device)
        return calibrate_on(
            model, plan.documents, plan.tokenizer, tokens=tokens, column=plan.column, progress=layer_done
        )

    def heal(self) -> HealingReport:
        """Heal the model and save it with its checkpoints in the plan's folder."""
        assert self.plan.healing is not None
        return self._heal("healed", self.plan.healing, self.plan.folder)

    def heal_control(self) -> HealingReport:
        """Train the stock model on the same tokens as the swapped model, and save it in the control's folder."""
        assert self.plan.healing is not None
        folder = None if self.plan.folder is None else self.plan.folder / CONTROL_FOLDER
        return self._heal(CONTROL, control_options(self.plan.healing), folder)

    def _heal(self, name: str, options: HealingOptions, folder: Path | None) -> HealingReport:
        plan = self.plan
        if plan.lora_rank is not None:
            from hf_posswap.training.adapters import add_lora

            self.model = add_lora(self.model, plan.lora_rank)
        accelerator = plan.accelerator or make_accelerator(options, cpu=plan.device == "cpu")
        report = heal(
            self.model,
            plan.documents,
            plan.tokenizer,
            options,
            teacher=self.teacher,
            output_dir=folder,
            resume=plan.resume,
            run=plan.identity,
            column=plan.column,
            accelerator=accelerator,
            observer=_Steps(self.observer),
            tracked_as=f"{name}/",
        )
        accelerator.free_memory()  # otherwise the optimizer stays in memory while the next model is healed
        return report


@dataclass(frozen=True)
class Stage:
    """The definition of a stage.

    After an interruption, the model goes through the stages again, and healing resumes from its checkpoints.

    Attributes:
        starts: names of the stages that this stage can start from. A model at none of them is first taken to the first
            of them.
        event: text for observers when the stage begins; empty: observers are not called, because the stage takes no
            time.
        reach: function that changes the model of a `Subject` and returns a report, or None.
    """

    starts: tuple[str, ...]
    event: str
    reach: Callable[[Subject], Any]


STAGES = {
    STOCK: Stage((), "loading", Subject.load),
    "swapped": Stage((STOCK,), "", Subject.swap),
    "calibrated": Stage(("swapped",), "calibrating", Subject.calibrate),
    "healed": Stage(("swapped", "calibrated"), "healing", Subject.heal),
    CONTROL: Stage((STOCK,), "healing the control", Subject.heal_control),
}
"""Every stage by its name in result files."""


class _Steps(HealingObserver):
    """Passes the steps of healing to an observer and reports their work."""

    def __init__(self, observer: Observer) -> None:
        self.observer, self.tokens = observer, 0

    def started(self, steps: int, done: int) -> None:
        self.observer.started(steps, done)

    def saved(self, step: int) -> None:
        self.observer.saved(step)

    def step(self, row: dict[str, Any]) -> None:
        self.observer.worked(HEALING_WORK * (row["tokens"] - self.tokens))
        self.tokens = row["tokens"]
        self.observer.step(row)


def calibrate_on(
    model: Any,
    documents: Documents,
    tokenizer: Any,
    *,
    tokens: int = CALIBRATION_TOKENS,
    column: str = "text",
    progress: Callable[[int, int], None] | None = None,
) -> CalibrationReport:
    """Calibrate a swapped model, in place, on windows of the documents.

    Args:
        model: a swapped model whose scheme calibration can fit.
        documents: texts; see `Windows`. The windows come from as many documents as `tokens` permits.
        tokenizer: the model's tokenizer.
        tokens: number of tokens to fit to; an eighth more is read to measure the model on.
        column: column of the documents with the texts, if they are mappings.
        progress: see `hf_posswap.calibrate`.

    Raises:
        HealingError: the documents together have fewer tokens than one window.
        UnsupportedError: the scheme has no parameters that calibration can fit.
    """
    length = calibration_length(train_length(model))
    count = tokens_to_read(max(tokens, length), length) // length
    windows = Windows(documents, tokenizer, length, packing=False, column=column).spread(count)
    return calibrate(model, windows, progress, tokenizer=tokenizer)


def calibration_length(train_length: int) -> int:
    """Return the number of tokens of a window in calibration."""
    return min(CALIBRATION_LENGTH, train_length)


def control_options(options: HealingOptions) -> HealingOptions:
    """Return the options of the control: the stock model, trained on the same tokens with the same schedule.

    The control learns from the text, because a model that is its own teacher has a loss of zero. It uses no ramp,
    because its mechanism is not replaced, and its positions do not skip. It uses dropout if the swapped model does.

    Args:
        options: the options of healing for the swapped model.
    """
    # Documents are cut as for the swapped model, which packs none if its positions skip.
    packing = False if options.positions == "skipped" else options.packing
    return dataclasses.replace(
        options,
        supervise=LABELS,
        distill=0.0,
        ramp=0.0,
        dropout=options.drops_out,
        positions="counted",
        target_length=None,
        packing=packing,
    )
