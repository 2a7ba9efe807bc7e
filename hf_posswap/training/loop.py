"""The healing loop on Accelerate: one CPU, one GPU, many, sharded or not, by the same lines."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch.nn import functional as F

from hf_posswap.checkpoint import healed_before, is_healed, mark_healed
from hf_posswap.ramp import set_ramp
from hf_posswap.swapping import is_swapped, plain_model, train_length, without_scheme
from hf_posswap.tokenizer_limit import fit_tokenizer
from hf_posswap.training.checkpoints import (
    CheckpointError,
    RunState,
    checkpoints_in,
    load_checkpoint,
    save_checkpoint,
    tied_names,
)
from hf_posswap.training.distribution import SHARDED, make_accelerator, settle
from hf_posswap.training.dropout import Dropouts
from hf_posswap.training.lengths import Lengths
from hf_posswap.training.objectives import Inputs, LanguageModelling, Objective, objective_for
from hf_posswap.training.optimization import choose_trained, make_optimizer, rate_factor, set_learning_rate
from hf_posswap.training.options import HealingError, HealingOptions
from hf_posswap.training.precision import warn_if_slow
from hf_posswap.training.teacher import readable_length, stock_copy
from hf_posswap.training.texts import Documents, Window, Windows, batches, check_padding, check_vocabulary

DEFAULT_LENGTH = 512
TRACKED = ("loss", "learning_rate", "gradient_norm")
"""Numbers of a step that go to trackers."""
WORSE_THAN_GUESSING = 1.0
"""Nats above ln(vocabulary) from which a stock model cannot know the language of its tokens."""


@dataclass(frozen=True)
class HealingReport:
    """What a healing run did.

    Attributes:
        tokens: tokens read, padding not counted.
        steps: optimizer steps.
        length: tokens read at once.
        parameters: number of parameters that learned.
        history: for each step: step, tokens (so far), loss (the step's mean), learning_rate (of the weights, or of the
            scheme if it learns alone), gradient_norm and tokens_per_second.
    """

    tokens: int
    steps: int
    length: int
    parameters: int
    history: list[dict[str, Any]] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


class HealingObserver:
    """Hears how a run goes on; override what is of interest. Only the main process calls it."""

    def started(self, steps: int, done: int) -> None:
        """Called before the first step; `done` steps were done before a restart."""

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
        model: the model, or peft's around it (`hf_posswap.training.add_lora`).
        documents: texts to read; see `Windows`.
        tokenizer: the model's tokenizer.
        options: how to heal.
        teacher: the stock model to learn from if `options.distill` is not 0; by default the one inside `model`, which
            is there until the model is healed.
        output_dir: where the healed model, its tokenizer and checkpoints go; nothing is written without it.
        resume: go on from the newest checkpoint in `output_dir`, if there is one.
        run: what else identifies the run (texts, model); a checkpoint of another run is refused.
        column: column of the documents with the texts, if they are mappings.
        accelerator: made here by default.
        observer: hears of every step.
        tracked_as: stands before the names under which trackers keep the numbers, to tell several runs apart.

    Returns:
        The losses, step by step. The model is left in evaluation mode, on the device it was trained on.

    Raises:
        HealingError: options, texts or tokenizer that do not fit the model, weights in float16, or a loss that is not
            finite.
        CheckpointError: a checkpoint that cannot be written, is broken, or belongs to another run.
    """
    accelerator = accelerator or make_accelerator(options)
    warn_if_slow(options.precision, accelerator.device.type)
    settle(accelerator, options, writes_checkpoints=output_dir is not None and options.checkpoint_every > 0)
    _check_types(model)
    plain = plain_model(model)
    length = options.length or min(train_length(plain), DEFAULT_LENGTH)
    objective_class = objective_for(plain, options.objective)
    windows = Windows(documents, tokenizer, length, _packs(options, objective_class), options.seed, column)
    check_vocabulary(tokenizer, plain)
    if objective_class is LanguageModelling:
        _check_language(plain, next(iter(windows)))
    else:
        check_padding(tokenizer, plain)
    trainer = _Trainer(model, objective_class, tokenizer, options, teacher, accelerator, length)
    identity = {"options": options.identity(), "length": length, "processes": accelerator.num_processes, **(run or {})}
    folder = None if output_dir is None else Path(output_dir)
    state = RunState(0, [], identity)
    present = [] if folder is None else checkpoints_in(folder)
    if present and not resume:
        raise CheckpointError(
            f"{str(folder)!r} holds checkpoints of an earlier run, up to {present[-1].name}. Go on from it with "
            "resume=True (--resume), or give another folder."
        )
    if present:
        state = load_checkpoint(present[-1], trainer.model, trainer.optimizer, identity)
    batch_size, size = options.batch_size, accelerator.num_processes
    source = batches(windows, batch_size, accelerator.process_index, size, state.step * options.accumulation)
    try:
        report = _run(trainer, source, state, folder, observer or HealingObserver(), tracked_as)
    finally:
        trainer.finish()
    if folder is not None:
        trainer.save(folder, tokenizer)
    return report


def _packs(options: HealingOptions, objective: type[Objective]) -> bool:
    """Return whether windows are packed.

    Raises:
        HealingError: packing is asked for in an encoder.
    """
    causal = objective is LanguageModelling
    if options.packing and not causal:
        raise HealingError(
            f"packing=True does not fit objective {objective.name!r}: stock encoders, which teach and control, cannot "
            "keep packed documents apart. Leave packing out."
        )
    return causal if options.packing is None else options.packing


def _shortest_length(options: HealingOptions, objective: type[Objective], length: int) -> int:
    """Return the tokens of the shortest texts to learn from.

    Raises:
        HealingError: a shortest length is given for a causal model.
    """
    if options.shortest_length is None:
        return min(objective.shortest_length or length, length)
    if objective is LanguageModelling:
        raise HealingError(
            f"shortest_length={options.shortest_length} does not fit objective {objective.name!r}: a causal model "
            "reads a text of every length at the beginning of each window. Leave it out."
        )
    return options.shortest_length


def _check_types(model: Any) -> None:
    """Refuse to train weights in float16, which has no room for small steps nor for Adam's second moments."""
    half = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.dtype == torch.float16]
    if half:
        raise HealingError(
            f"{len(half)} weights to train are float16, such as {half[0]}: small steps vanish in it, and losses are "
            'soon not finite. Load the model with dtype="float32"; precision="bf16" computes in bfloat16 all the same.'
        )


@torch.no_grad()
def _check_language(model: Any, window: Window) -> None:
    """Refuse a text that the stock or healed model reads worse than by guessing: its tokens cannot be the model's own.

    Raises:
        HealingError: says the loss, and that the tokenizer is the likely reason.
    """
    training = model.training
    model.eval()
    try:
        stock_inside = is_swapped(model) and not is_healed(model.config)
        with without_scheme(model) if stock_inside else contextlib.nullcontext():
            ids = torch.tensor([window.ids[: readable_length(model)]], device=model.device)
            logits = model(ids, use_cache=False).logits.float()
            loss = float(F.cross_entropy(logits[0, :-1], ids[0, 1:]))
    finally:
        model.train(training)
    guess = math.log(model.get_input_embeddings().num_embeddings)
    if loss > guess + WORSE_THAN_GUESSING:
        raise HealingError(
            f"the tokenizer does not match the model: the {'stock ' if stock_inside else ''}model's loss on it is "
            f"{loss:.2f} nats a token, and {guess:.2f} would be guessing. Give the model's own tokenizer."
        )


class _Trainer:
    """One run's model, teacher and optimizer, as Accelerate prepared them, and a step with them."""

    def __init__(
        self,
        model: Any,
        objective: type[Objective],
        tokenizer: Any,
        options: HealingOptions,
        teacher: Any,
        accelerator: Accelerator,
        length: int,
    ) -> None:
        self.plain, self.options, self.accelerator, self.length = plain_model(model), options, accelerator, length
        self.lengths = Lengths(length, _shortest_length(options, objective, length), tokenizer)
        if options.ramp > 0 and is_healed(self.plain.config):
            raise HealingError(f"{healed_before(self.plain.config)} A ramp would begin with neither: leave it out.")
        choose_trained(model, options)
        objective.freeze_idle(model)
        if options.distill > 0 and teacher is None:
            teacher = stock_copy(model, share=accelerator.distributed_type not in SHARDED)
        self.teacher = None if options.distill == 0 else teacher.to(accelerator.device)
        readable = length if self.teacher is None else readable_length(self.teacher)
        self.objective = objective(options.distill, readable, tokenizer)
        self.objective.check_length(length)
        if options.gradient_checkpointing:
            self.plain.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        self.dropouts = Dropouts(self.plain)
        if not options.drops_out:
            self.dropouts.turn_off()
        self.parameters = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        self.tied = tied_names(model)
        # Adapters and a scheme leave the weights as they are; everything else makes them others than the stock model's.
        self.changes_weights = is_swapped(model) and model is self.plain and options.train == "all"
        self.model, self.optimizer = accelerator.prepare(model, make_optimizer(model, options))

    def step(self, number: int, steps: int, batches_of_windows: list[list[Window]]) -> dict[str, Any]:
        """Take optimizer step `number` (from 0) of `steps`; return its loss, gradient norm, learning rate and tokens.

        Raises:
            HealingError: the loss or the gradient is not finite; the weights are those of the step before.
        """
        accelerator, options = self.accelerator, self.options
        # Masked tokens and dropout follow from the step, so that a restarted run draws what the unbroken one drew.
        seed = (options.seed * 1_000_003 + number) * 4099 + accelerator.process_index
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        texts = (self.lengths.cut(windows, generator) for windows in batches_of_windows)
        inputs = [self.objective.batch(windows, generator) for windows in texts]
        counts = self._sum(
            [sum(map(self.objective.count, inputs)), sum(len(w.ids) for b in batches_of_windows for w in b)]
        )
        scored, tokens = int(counts[0]), int(counts[1])
        factor = rate_factor(number, steps, options.warmup)
        set_learning_rate(self.optimizer, factor)
        self._ramp(number, steps)
        total = 0.0
        for batch in inputs:
            total += self._accumulate(batch, scored)
        loss = float(self._sum([total])[0]) / scored
        norm = accelerator.clip_grad_norm_(self.model.parameters(), options.clip)
        self._require_finite(number, loss, norm)
        if self.changes_weights:
            mark_healed(self.plain.config)
        self.optimizer.step()
        self.optimizer.zero_grad()
        rate = self.optimizer.param_groups[-1]["lr"]
        return {
            "loss": loss,
            "gradient_norm": None if norm is None else float(norm),
            "learning_rate": rate,
            "tokens": tokens,
        }

    def _accumulate(self, batch: Inputs, scored: int) -> float:
        """Add one batch's share of the gradient of the step's mean loss; return the batch's sum of losses."""
        accelerator = self.accelerator
        batch = {name: value.to(accelerator.device) for name, value in batch.items()}
        with accelerator.accumulate(self.model):
            with accelerator.autocast(), self._precision():
                loss = self.objective.loss(self.model, self.teacher, batch)
            # Accelerate divides by the accumulation, and processes are averaged: the step's mean is over all tokens.
            accelerator.backward(loss * (self.options.accumulation * accelerator.num_processes / scored))
        return float(loss.detach())

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast of our own: Accelerate's is fixed for the process by the first Accelerator made in it."""
        if self.options.precision == "no":
            return contextlib.nullcontext()
        return torch.autocast(self.accelerator.device.type, torch.bfloat16)

    def _sum(self, values: list[float]) -> torch.Tensor:
        """Return sums over all processes, in float64, which not every device has."""
        if self.accelerator.num_processes == 1:
            return torch.tensor(values, dtype=torch.float64)
        return self.accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=self.accelerator.device), "sum")

    def _ramp(self, number: int, steps: int) -> None:
        fading = self.options.ramp * steps
        if fading == 0 or not is_swapped(self.plain):
            return
        share = number / fading
        set_ramp(self.plain, share if share < 1 else None)

    def _require_finite(self, number: int, loss: float, norm: Any) -> None:
        if math.isfinite(loss) and (norm is None or math.isfinite(float(norm))):
            return
        self.optimizer.zero_grad()
        raise HealingError(
            f"step {number + 1}: the loss is {loss} and the gradient's norm {norm}; training has diverged. Earlier "
            f"checkpoints are intact. Lower learning_rate ({self.options.learning_rate}) or scheme_learning_rate "
            f"({self.options.scheme_learning_rate}), or lengthen the warmup ({self.options.warmup})."
        )

    def finish(self) -> None:
        """End the ramp and leave the model in evaluation mode, free of what Accelerate wrapped around it."""
        if self.options.ramp > 0 and is_swapped(self.plain):
            set_ramp(self.plain, None)
        self.dropouts.put_back()
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False).eval()
        if self.options.gradient_checkpointing:
            self.plain.gradient_checkpointing_disable()

    def save(self, folder: Path, tokenizer: Any) -> None:
        """Write the model, whole however it is sharded, and its tokenizer."""
        accelerator = self.accelerator
        state = None
        if accelerator.distributed_type in SHARDED:
            tied = self.tied
            state = {name: value for name, value in accelerator.get_state_dict(self.model).items() if name not in tied}
        if accelerator.is_main_process:
            try:
                model = accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
                model.save_pretrained(folder, **({} if state is None else {"state_dict": state}))
                fit_tokenizer(tokenizer, self.plain).save_pretrained(folder)
            except Exception as error:
                if not isinstance(error, OSError | SafetensorError) and type(error) is not Exception:
                    raise  # a bare Exception is what tokenizers raises when it cannot write
                kept = "Its last checkpoint is intact: make" if checkpoints_in(folder) else "Make"
                raise CheckpointError(
                    f"cannot write the healed model to {str(folder)!r}: {error}. {kept} room, then run again with "
                    "--resume."
                ) from error
        accelerator.wait_for_everyone()


def _run(
    trainer: _Trainer,
    source: Iterator[list[Window]],
    state: RunState,
    folder: Path | None,
    observer: HealingObserver,
    tracked_as: str,
) -> HealingReport:
    options, accelerator = trainer.options, trainer.accelerator
    steps = options.steps_for(trainer.length, accelerator.num_processes)
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
