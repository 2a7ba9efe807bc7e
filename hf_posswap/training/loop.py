"""The healing loop on Accelerate; the same code runs on a CPU, on one or several GPUs, and with sharded weights."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from hf_posswap.loading.entry import is_healed
from hf_posswap.results.healing import thinned
from hf_posswap.swapped.questions import is_swapped, plain_model, train_length, without_scheme
from hf_posswap.training.checkpoints import (
    RunState,
    save_checkpoint,
)
from hf_posswap.training.distribution import make_accelerator, settle
from hf_posswap.training.folders import require_room
from hf_posswap.training.objectives import IGNORED, LanguageModelling, Objective, objective_for
from hf_posswap.training.options import HealingError, HealingOptions
from hf_posswap.training.precision import warn_if_slow
from hf_posswap.training.teacher import readable_length
from hf_posswap.training.texts import Documents, Window, Windows, batches, check_padding, check_vocabulary, collate
from hf_posswap.training.trainer import Trainer

LONGEST_BY_DEFAULT = 512
TRACKED = ("loss", "learning_rate", "gradient_norm")
"""Values of a step that are sent to trackers."""
LANGUAGE_TOKENS = 1024
"""Approximate number of tokens with which the model's knowledge of the text's language is checked."""
WORSE_THAN_GUESSING = 1.0
"""Nats above ln(vocabulary): a stock model with a larger loss does not know the language of the text."""


@dataclass(frozen=True)
class HealingReport:
    """The result of a healing run.

    Attributes:
        tokens: number of tokens read, without padding.
        steps: number of optimizer steps.
        length: tokens of a window.
        parameters: number of trained parameters.
        history: for each step: step, tokens (so far), loss (the step's mean), learning_rate (of the weights, or of the
            scheme if it is trained alone), gradient_norm and tokens_per_second.
    """

    tokens: int
    steps: int
    length: int
    parameters: int
    history: list[dict[str, Any]] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values as result files keep them, with a few rows of the history, see `thinned`."""
        return asdict(self) | {"history": thinned(self.history)}


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
        teacher: the stock model to distil from if `options.distill` is not 0. Default: the stock model inside `model`,
            which exists until the model is healed.
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
    length = healing_length(options.length, train_length(plain))
    objective_class = objective_for(plain, options.objective)
    windows = Windows(documents, tokenizer, length, _packs(options, objective_class), options.seed, column)
    check_vocabulary(tokenizer, plain)
    if objective_class is LanguageModelling:
        _check_language(plain, windows.first(max(1, LANGUAGE_TOKENS // length)))
    else:
        check_padding(tokenizer, plain)
    identity = {"options": options.identity(), "length": length, "processes": accelerator.num_processes, **(run or {})}
    with Trainer(model, objective_class, tokenizer, options, teacher, accelerator, length) as trainer:
        state = trainer.load(present[-1], identity) if present else RunState(0, [], identity)
        size = accelerator.num_processes
        skip = state.step * options.accumulation
        source = batches(windows, options.batch_size, accelerator.process_index, size, skip)
        steps = options.steps_for(windows.typical_length(), size)
        report = _run(trainer, source, steps, state, folder, observer or HealingObserver(), tracked_as)
    if folder is not None:
        trainer.save(folder, tokenizer)
    return report


def healing_length(given: int | None, train_length: int) -> int:
    """Return the tokens of a window: the given number, or the model's train length but at most 512."""
    return given or min(train_length, LONGEST_BY_DEFAULT)


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
    return causal if options.packing is None else options.packing


def _check_types(model: Any) -> None:
    """Refuse to train weights in float16, which cannot represent small updates nor Adam's second moments."""
    half = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.dtype == torch.float16]
    if half:
        raise HealingError(
            f"{len(half)} weights to train are float16, such as {half[0]}: small steps vanish in it, and losses are "
            'soon not finite. Load the model with dtype="float32"; precision="bf16" computes in bfloat16 all the same.'
        )


@torch.no_grad()
def _check_language(model: Any, windows: list[Window]) -> None:
    """Refuse texts on which the stock or healed model is worse than a uniform guess: it cannot be healed on them.

    Raises:
        HealingError: it is worse; the message gives the loss and possible reasons.
    """
    training = model.training
    model.eval()
    try:
        stock_inside = is_swapped(model) and not is_healed(model.config)
        with without_scheme(model) if stock_inside else contextlib.nullcontext():
            loss = _mean_loss(model, windows, readable_length(model))
    finally:
        model.train(training)
    guess = math.log(model.get_input_embeddings().num_embeddings)
    if loss > guess + WORSE_THAN_GUESSING:
        raise HealingError(
            f"the {'stock ' if stock_inside else ''}model cannot read this text: its loss is {loss:.2f} nats a token, "
            f"and {guess:.2f} would be guessing. Either the tokenizer is not the model's own, or the text is in a "
            "language it has not learned, of which the stock model can teach nothing. Give the model's own tokenizer, "
            "or other texts."
        )


def _mean_loss(model: Any, windows: list[Window], readable: int) -> float:
    """Return the mean loss over the beginnings of windows; documents do not attend to each other."""
    losses, scored = 0.0, 0
    for window in windows:
        cut = Window(window.ids[:readable], window.positions[:readable])
        batch = LanguageModelling.labelled(collate([cut], 0))
        labels = batch.pop("labels").to(model.device)
        logits = model(**{name: value.to(model.device) for name, value in batch.items()}, use_cache=False).logits
        losses += float(F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum"))
        scored += int((labels != IGNORED).sum())
    return losses / max(1, scored)


def _run(
    trainer: Trainer,
    source: Iterator[list[Window]],
    steps: int,
    state: RunState,
    folder: Path | None,
    observer: HealingObserver,
    tracked_as: str,
) -> HealingReport:
    options, accelerator = trainer.options, trainer.accelerator
    history = list(state.history)
    main = accelerator.is_main_process
    if main:
        observer.started(steps, state.step)
    for number in range(state.step, steps):
        began = time.perf_counter()
        row = trainer.step(number, steps, [next(source) for _ in range(options.accumulation)])
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
            save_checkpoint(folder, trainer.model, trainer.optimizer, now, options.keep_checkpoints, main)
            if main:
                observer.saved(number + 1)
            accelerator.wait_for_everyone()
    tokens = history[-1]["tokens"] if history else 0
    return HealingReport(tokens, steps, trainer.length, trainer.parameters, history)
