"""The healing loop on Accelerate; the same code runs on a CPU, on one or several GPUs, and with sharded weights."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hf_posswap.architectures import architecture_of
from hf_posswap.results.healing import thinned
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.questions import plain_model, train_length
from hf_posswap.training.checkpoints import (
    RunState,
    save_checkpoint,
)
from hf_posswap.training.distribution import make_accelerator, settle
from hf_posswap.training.folders import require_room
from hf_posswap.training.objectives import LanguageModelling, Objective, objective_for
from hf_posswap.training.options import HealingError, HealingOptions
from hf_posswap.training.phases import plan_phases
from hf_posswap.training.precision import warn_if_slow
from hf_posswap.training.start import MEASURED_TOKENS, Start, choose_options
from hf_posswap.training.texts import Documents, Window, Windows, batches, check_padding, check_vocabulary
from hf_posswap.training.trainer import Trainer

LONGEST_BY_DEFAULT = 512
TRACKED = ("loss", "learning_rate", "gradient_norm")
"""Values of a step that are sent to trackers."""


@dataclass(frozen=True)
class HealingReport:
    """The result of a healing run.

    Attributes:
        tokens: number of tokens read, without padding.
        steps: number of optimizer steps.
        length: tokens of the longest window.
        parameters: number of trained parameters.
        supervision: what the model learnt from, each with its weight, see `Supervision`.
        learning_rate: peak learning rate of the weights.
        start: how far from the stock model the run started; None: it was not measured.
        costs: for each stage, "attention" and "outputs": tokens, seconds and microseconds_per_token.
        history: for each step: step, tokens (so far), loss (the step's mean), learning_rate (of the weights, or of the
            scheme if it is trained alone), gradient_norm, tokens_per_second and stage. The loss of the attention stage
            is the KL divergence of a query's attention, the mean over heads and layers, in nats.
    """

    tokens: int
    steps: int
    length: int
    parameters: int
    supervision: list[str]
    learning_rate: float
    start: Start | None
    costs: dict[str, dict[str, float]]
    history: list[dict[str, Any]] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values as result files keep them, with a few rows of the history, see `thinned`."""
        start = None if self.start is None else asdict(self.start) | {"missing": self.start.missing}
        return asdict(self) | {"start": start, "history": thinned(self.history)}


class HealingObserver:
    """Callbacks of a run; override the ones you need. Only the main process calls them."""

    def started(self, steps: int, done: int) -> None:
        """Called before the first step; `done` is the number of steps done before a restart."""

    def step(self, row: dict[str, Any]) -> None:
        """Called after each step with its row of the history."""

    def saved(self, step: int) -> None:
        """Called after a checkpoint was written."""


def heal(
    model: Any,
    documents: Documents,
    tokenizer: Any,
    options: HealingOptions,
    *,
    teacher: Any = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
    run: dict[str, Any] | None = None,
    column: str = "text",
    accelerator: Accelerator | None = None,
    observer: HealingObserver | None = None,
    tracked_as: str = "",
) -> HealingReport:
    """Fine-tune a model in place: a swapped one or, as its control, a stock one.

    Args:
        model: the model, or peft's wrapper of it (`hf_posswap.training.add_lora`).
        documents: texts to train on; see `Windows`.
        tokenizer: the model's tokenizer.
        options: options of healing.
        teacher: the stock model, if the model learns from it. Default: the stock model inside `model`, which exists
            until the model is healed.
        output_dir: folder for the healed model, its tokenizer and checkpoints. None: nothing is written.
        resume: resume from the newest checkpoint in `output_dir`, if there is one.
        run: the run's identity besides its options (texts, model); a checkpoint of another run is refused.
        column: column of the documents with the texts, if they are mappings.
        accelerator: the Accelerator to run on. Default: `make_accelerator(options)`.
        observer: callbacks for every step.
        tracked_as: prefix of the names of metrics in trackers, which distinguishes several runs.

    Returns:
        The losses, step by step. The model is left in evaluation mode, on the device it was trained on.

    Raises:
        HealingError: options, texts or tokenizer that do not fit the model, weights in float16, or a loss that is not
            finite.
        OutputError: the folder cannot be written to, or holds a model of another kind.
        TrainingCheckpointError: a checkpoint cannot be written, is broken, or is of another run.
    """
    if not isinstance(options, HealingOptions):
        raise HealingError(
            f"options is a {type(options).__name__}. Give HealingOptions, such as HealingOptions(tokens=224_000)."
        )
    accelerator = accelerator or make_accelerator(options)
    warn_if_slow(options.precision, accelerator.device.type)
    settle(accelerator, options, writes_checkpoints=output_dir is not None and options.checkpoint_every > 0)
    _check_types(model)
    plain = plain_model(model)
    folder = None if output_dir is None else Path(output_dir)
    present = [] if folder is None else require_room(folder, resume, adapter=model is not plain)
    lengths = healing_lengths(options, train_length(plain))
    objective_class = objective_for(plain, options.objective)
    packing = _packs(options, objective_class)
    windows = {n: Windows(documents, tokenizer, n, packing, options.seed, column) for n in lengths}
    check_vocabulary(tokenizer, plain)
    for each in windows.values():
        each.require_one()
    beginning: list[Window] = []
    if objective_class is LanguageModelling:
        beginning = _beginning(documents, tokenizer, train_length(plain), column)
    else:
        check_padding(tokenizer, plain)
    size = accelerator.num_processes
    options, start = choose_options(options, model, objective_class, beginning, teacher=teacher)
    supervision = options.supervision(objective_class.name, len(architecture_of(plain.config).blocks(core_of(plain))))
    phases = plan_phases(options, supervision, lengths, lambda length: windows[length].typical_length(), size)
    identity = {"options": options.identity(), "length": list(lengths), "processes": size, **(run or {})}
    with Trainer(model, objective_class, tokenizer, options, supervision, phases, teacher, accelerator) as trainer:
        state = trainer.load(present[-1], identity) if present else RunState(0, [], identity)
        report = _run(trainer, windows, start, state, folder, observer or HealingObserver(), tracked_as)
    if folder is not None:
        trainer.save(folder, tokenizer)
    return report


def _beginning(documents: Documents, tokenizer: Any, train_length: int, column: str) -> list[Window]:
    """Return windows to measure a model on; of one length for all options: shorter texts need positions less."""
    length = min(train_length, LONGEST_BY_DEFAULT)
    windows = Windows(documents, tokenizer, length, packing=False, column=column)
    return windows.first(max(1, MEASURED_TOKENS // length))


def healing_lengths(options: HealingOptions, train_length: int) -> tuple[int, ...]:
    """Return the tokens of a window, in turn: those given, or the model's train length but at most 512."""
    return options.lengths or (min(train_length, LONGEST_BY_DEFAULT),)


def _packs(options: HealingOptions, objective: type[Objective]) -> bool:
    """Return whether windows are packed.

    Raises:
        HealingError: the options ask for packing in an encoder.
    """
    causal = objective is LanguageModelling
    if options.packing and not causal:
        raise HealingError(
            f"packing=True does not fit objective {objective.name!r}: stock encoders, which teach and control, cannot "
            "keep packed documents apart. Leave packing out."
        )
    return causal and options.positions == "counted" if options.packing is None else options.packing


def _check_types(model: Any) -> None:
    """Refuse to train weights in float16, which cannot represent small updates nor Adam's second moments."""
    half = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.dtype == torch.float16]
    if half:
        raise HealingError(
            f"{len(half)} weights to train are float16, such as {half[0]}: small steps vanish in it, and losses are "
            'soon not finite. Load the model with dtype="float32"; precision="bf16" computes in bfloat16 all the same.'
        )


def _run(
    trainer: Trainer,
    windows: Mapping[int, Windows],
    start: Start | None,
    state: RunState,
    folder: Path | None,
    observer: HealingObserver,
    tracked_as: str,
) -> HealingReport:
    options, accelerator = trainer.options, trainer.accelerator
    history = list(state.history)
    main, steps = accelerator.is_main_process, trainer.phases[-1].end
    if main:
        observer.started(steps, state.step)
    for number, read_batch in _batches(trainer, windows, state.step):
        began = time.perf_counter()
        row = trainer.step(number, read_batch)
        seconds = time.perf_counter() - began
        read = row["tokens"]
        before = history[-1]["tokens"] if history else 0
        row |= {"step": number + 1, "tokens": before + read, "tokens_per_second": round(read / seconds, 1)}
        history.append(row)
        if main:
            observer.step(row)
        accelerator.log({tracked_as + key: row[key] for key in TRACKED}, step=number + 1)
        last = number + 1 == steps
        if folder is not None and options.checkpoint_every and ((number + 1) % options.checkpoint_every == 0 or last):
            now = RunState(number + 1, history, state.run)
            optimizer = trainer.optimizer_at(number + 1)
            save_checkpoint(folder, trainer.model, optimizer, now, options.keep_checkpoints, main)
            if main:
                observer.saved(number + 1)
            accelerator.wait_for_everyone()
    tokens = history[-1]["tokens"] if history else 0
    return HealingReport(
        tokens=tokens,
        steps=steps,
        length=trainer.length,
        parameters=trainer.parameters,
        supervision=list(trainer.supervision.words),
        learning_rate=options.peak_rate,
        start=start,
        costs=stage_costs(history),
        history=history,
    )


def _batches(trainer: Trainer, windows: Mapping[int, Windows], done: int) -> Iterator[tuple[int, list[list[Window]]]]:
    """Yield the number of each step that is not done, and the batches that this process reads in it.

    Each phase begins at the beginning of the text, except for a length that an earlier phase of its stage read.
    """
    accelerator, accumulation = trainer.accelerator, trainer.options.accumulation
    read: dict[tuple[str, int], int] = {}
    for phase in trainer.phases:
        key = (phase.stage, phase.length)
        before = read.get(key, 0)
        read[key] = before + phase.steps
        skip = (before + max(0, done - phase.first)) * accumulation
        source = batches(
            windows[phase.length], phase.batch_size, accelerator.process_index, accelerator.num_processes, skip
        )
        for number in range(max(done, phase.first), phase.end):
            yield number, [next(source) for _ in range(accumulation)]


def stage_costs(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return for each stage of a run its tokens, seconds and microseconds a token.

    Args:
        history: a row for each step, with the tokens so far.
    """
    costs: dict[str, dict[str, float]] = {}
    before = 0
    for row in history:
        cost = costs.setdefault(row["stage"], {"tokens": 0, "seconds": 0.0})
        read, before = row["tokens"] - before, row["tokens"]
        cost["tokens"] += read
        cost["seconds"] += read / max(row["tokens_per_second"], 1e-9)
    for cost in costs.values():
        cost["microseconds_per_token"] = round(1e6 * cost["seconds"] / max(1, cost["tokens"]), 1)
        cost["seconds"] = round(cost["seconds"], 1)
    return costs
