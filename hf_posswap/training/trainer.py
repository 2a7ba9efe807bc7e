"""The model, teacher and optimizer of one healing run, and its optimizer step."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn

from hf_posswap.loading.entry import healed_before, is_healed, mark_healed
from hf_posswap.ramp import set_ramp
from hf_posswap.swapped.questions import is_swapped, longest_position, plain_model
from hf_posswap.swapped.tokenizers import fit_tokenizer
from hf_posswap.training.attention_transfer import AttentionTransfer
from hf_posswap.training.checkpoints import (
    RunState,
    TrainingCheckpointError,
    checkpoints_in,
    load_checkpoint,
    tied_names,
)
from hf_posswap.training.distribution import SHARDED
from hf_posswap.training.lengths import Lengths
from hf_posswap.training.objectives import SKIPPED, Inputs, LanguageModelling, Objective
from hf_posswap.training.optimization import choose_trained, make_optimizer, rate_factor, set_learning_rate
from hf_posswap.training.options import HealingError, HealingOptions, refuse_idle_adapters
from hf_posswap.training.phases import Phase
from hf_posswap.training.skipping import TIMES_AS_FAR, skipped_positions
from hf_posswap.training.supervision import Supervision
from hf_posswap.training.teacher import readable_length, stock_copy
from hf_posswap.training.texts import Window

ATTENTION_DROPOUT = "attention_dropout"
"""Attribute in which attention modules without an `nn.Dropout` store their dropout probability."""


class Trainer:
    """A model that is being healed, as Accelerate prepared it, with its teacher and optimizer.

    It is a context manager: on exit, also after an error, it undoes its temporary changes of the model.

    Args:
        model: the model, or peft's wrapper of it.
        objective: the training objective.
        tokenizer: the model's tokenizer.
        options: options of healing.
        supervision: what the model learns from.
        phases: the phases of the run.
        teacher: the stock model; None: the one inside the model.
        accelerator: the Accelerator to run on.

    Raises:
        HealingError: options that do not fit the model. The model is unchanged.
    """

    def __init__(
        self,
        model: Any,
        objective: type[Objective],
        tokenizer: Any,
        options: HealingOptions,
        supervision: Supervision,
        phases: Sequence[Phase],
        teacher: Any,
        accelerator: Accelerator,
    ) -> None:
        self.plain, self.options, self.accelerator = plain_model(model), options, accelerator
        self.supervision, self.phases = supervision, phases
        self.length = max(phase.length for phase in phases)
        self.lengths = {n: Lengths(n, _shortest_length(options, objective, n), tokenizer) for n in _lengths(phases)}
        _check(model, options, supervision, self.length)
        if accelerator.num_processes > 1 and supervision.trains_outputs:
            _require_every_gradient(supervision, objective)
        self.target_length = _target_length(self.plain, options, self.length)
        self._learned = {name: weight.requires_grad for name, weight in model.named_parameters()}
        self._training = model.training
        self._teaching = teacher is not None and teacher.training
        self.dropouts = Dropouts(self.plain)
        self.model = model
        self.teacher: Any = None
        try:
            self._prepare(model, objective, tokenizer, teacher)
        except BaseException:
            self._put_back(model)
            model.train(self._training)
            raise

    def _prepare(self, model: Any, objective: type[Objective], tokenizer: Any, teacher: Any) -> None:
        options, accelerator = self.options, self.accelerator
        choose_trained(model, options)
        objective.freeze_idle(model)
        if self.supervision.has_teacher:
            if teacher is None:
                teacher = stock_copy(model, share=accelerator.distributed_type not in SHARDED)
            self.teacher = teacher.to(accelerator.device).eval()
        readable = self.length if self.teacher is None else readable_length(self.teacher)
        self.objective = objective(self.supervision, readable, tokenizer)
        self.objective.check(self.length, min(phase.batch_size for phase in self.phases))
        model.train()
        if not options.drops_out:
            self.dropouts.turn_off()
        self.transfer, self._transfer_optimizer = self._attention_stage(model, readable)
        if options.gradient_checkpointing:
            self.plain.gradient_checkpointing_enable({"use_reentrant": False})
        self.parameters = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        self.tied = tied_names(model)
        # Training only adapters or the scheme leaves the stock weights unchanged; any other training changes them.
        self.changes_weights = is_swapped(model) and model is self.plain and options.train == "all"
        self.model, self.optimizer = accelerator.prepare(model, make_optimizer(model, options))

    def _attention_stage(self, model: Any, readable: int) -> tuple[AttentionTransfer | None, Any]:
        """Return the attention stage and its optimizer, or None twice.

        Raises:
            HealingError: the weights will be sharded, or nothing learns in it.
        """
        if not self.supervision.attention:
            return None, None
        if self.accelerator.distributed_type in SHARDED:
            raise HealingError(
                "supervision 'attention' runs layers apart, which sharded weights do not permit. Leave attention out, "
                "or run without FSDP and DeepSpeed."
            )
        model.to(self.accelerator.device)
        transfer = AttentionTransfer(model, self.teacher, readable)
        # Without weight decay: fused projections hold the values' weights too, which get no gradient here.
        options = dataclasses.replace(self.options, weight_decay=0.0)
        return transfer, make_optimizer(model, options, list(transfer.learning.values()))

    def optimizer_at(self, steps: int) -> Any:
        """Return the optimizer that took the last of a number of steps of the run, or will take the first."""
        return self.optimizer if self.phase_of(max(0, steps - 1)).stage == "outputs" else self._transfer_optimizer

    def phase_of(self, number: int) -> Phase:
        """Return the phase of step `number` (from 0)."""
        return next((phase for phase in self.phases if number < phase.end), self.phases[-1])

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *_: Any) -> None:
        """Put the model in evaluation mode, remove Accelerate's wrappers and restore `requires_grad`."""
        if self.options.ramp > 0 and is_swapped(self.plain):
            set_ramp(self.plain, None)
        self._put_back(self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False).eval())

    def _put_back(self, model: Any) -> None:
        self.dropouts.put_back()
        for name, weight in model.named_parameters():
            weight.requires_grad_(self._learned[name])
        if self.teacher is not None:
            self.teacher.train(self._teaching)
        if self.options.gradient_checkpointing:
            self.plain.gradient_checkpointing_disable()

    def load(self, checkpoint: Path, run: dict[str, Any]) -> RunState:
        """Resume from a checkpoint; see `load_checkpoint`."""
        state = load_checkpoint(checkpoint, self.model, self.optimizer_at, run)
        if self.changes_weights and state.step > 0:
            mark_healed(self.plain.config)
        return state

    def step(self, number: int, batches_of_windows: list[list[Window]]) -> dict[str, Any]:
        """Take optimizer step `number` (from 0); return its loss, gradient norm, learning rate, tokens and stage.

        Raises:
            HealingError: the loss or the gradient is not finite; the step has not changed the weights.
        """
        options, phase = self.options, self.phase_of(number)
        # Seed masked tokens and dropout by the step, so that a resumed run draws the same as an uninterrupted one.
        seed = (options.seed * 1_000_003 + number) * 4099 + self.accelerator.process_index
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        texts = (self.lengths[phase.length].cut(windows, generator) for windows in batches_of_windows)
        inputs = [self._skipping(self.objective.batch(windows, generator), phase, generator) for windows in texts]
        tokens = int(self._sum([sum(len(w.ids) for b in batches_of_windows for w in b)])[0])
        optimizer = self.optimizer_at(number + 1)
        same = [other for other in self.phases if other.stage == phase.stage]
        first, steps = same[0].first, sum(other.steps for other in same)
        set_learning_rate(optimizer, rate_factor(number - first, steps, options.warmup))
        attends = phase.stage == "attention"
        loss, norm = self._transferred(inputs) if attends else self._learned_from(inputs, number, steps)
        self._require_finite(number, loss, norm)
        if self.changes_weights:
            mark_healed(self.plain.config)
        optimizer.step()
        optimizer.zero_grad()
        return {
            "loss": loss,
            "gradient_norm": None if norm is None else float(norm),
            "learning_rate": optimizer.param_groups[-1]["lr"],
            "tokens": tokens,
            "stage": phase.stage,
        }

    def _skipping(self, batch: Inputs, phase: Phase, generator: torch.Generator) -> Inputs:
        """Return a batch with skipped positions, if the options ask for them and the whole model runs."""
        if self.options.positions == "counted" or phase.stage == "attention":
            return batch
        shape = batch["input_ids"].shape
        return batch | {SKIPPED: skipped_positions(shape, max(self.target_length, shape[1]), generator)}

    def _learned_from(self, inputs: list[Inputs], number: int, steps: int) -> tuple[float, Any]:
        """Add the gradient of the step's mean loss; return the loss and the gradient's norm."""
        scored = int(self._sum([sum(map(self.objective.count, inputs))])[0])
        self._ramp(number, steps)
        total = sum(self._accumulate(batch, scored) for batch in inputs)
        loss = float(self._sum([total])[0]) / max(1, scored)
        return loss, self.accelerator.clip_grad_norm_(self.model.parameters(), self.options.clip)

    def _transferred(self, inputs: list[Inputs]) -> tuple[float, Any]:
        """Add the gradient of the attention stage's mean loss; return the loss and the gradient's norm."""
        transfer, accelerator = self.transfer, self.accelerator
        assert transfer is not None
        texts = [{k: v.to(accelerator.device) for k, v in batch.items() if k != "labels"} for batch in inputs]
        compared = int(self._sum([sum(int(transfer.counted(text).sum()) for text in texts)])[0])
        total = 0.0
        for text in texts:  # the layers run apart, not through Accelerate's model, so processes are joined here
            with accelerator.no_sync(self.model), self._precision():
                total += transfer.accumulate(text, 1 / max(1, compared))
        learning = list(transfer.learning.values())
        if accelerator.num_processes > 1:
            for weight in learning:
                weight.grad = accelerator.reduce(weight.grad, "sum")
        norm = torch.nn.utils.clip_grad_norm_(learning, self.options.clip)
        return float(self._sum([total])[0]) / max(1, compared), norm

    def _accumulate(self, batch: Inputs, scored: int) -> float:
        """Add one batch's share of the gradient of the step's mean loss; return the batch's sum of losses."""
        accelerator = self.accelerator
        batch = {name: value.to(accelerator.device) for name, value in batch.items()}
        with accelerator.accumulate(self.model):
            with accelerator.autocast(), self._precision():
                loss = self.objective.loss(self.model, self.teacher, batch)
            # Accelerate divides by the accumulation and averages over processes; undo both to average over all tokens.
            accelerator.backward(loss * (self.options.accumulation * accelerator.num_processes / max(1, scored)))
        return float(loss.detach())

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """Return a separate autocast: Accelerate's is fixed for the process by its first Accelerator."""
        if self.options.precision == "no":
            return contextlib.nullcontext()
        return torch.autocast(self.accelerator.device.type, torch.bfloat16)

    def _sum(self, values: list[float]) -> torch.Tensor:
        """Return sums over all processes, in float64; a single process needs no device for it, as some lack float64."""
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
        self.plain.zero_grad()
        raise HealingError(
            f"step {number + 1}: the loss is {loss} and the gradient's norm {norm}; training has diverged. Earlier "
            f"checkpoints are intact. Lower learning_rate ({self.options.learning_rate}) or scheme_learning_rate "
            f"({self.options.scheme_learning_rate}), or lengthen the warmup ({self.options.warmup})."
        )

    def save(self, folder: Path, tokenizer: Any) -> None:
        """Write the unsharded model and its tokenizer."""
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
            # tokenizers raises a bare Exception if it cannot write, so all are caught; other types are raised again.
            except Exception as error:
                if not isinstance(error, OSError | SafetensorError) and type(error) is not Exception:
                    raise
                kept = "Its last checkpoint is intact: make" if checkpoints_in(folder) else "Make"
                raise TrainingCheckpointError(
                    f"cannot write the healed model to {str(folder)!r}: {error}. {kept} room, then run again with "
                    "--resume."
                ) from error
        accelerator.wait_for_everyone()


def _shortest_length(options: HealingOptions, objective: type[Objective], length: int) -> int:
    """Return the length of the shortest training texts, in tokens.

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


def _lengths(phases: Sequence[Phase]) -> set[int]:
    return {phase.length for phase in phases}


def _check(model: Any, options: HealingOptions, supervision: Supervision, length: int) -> None:
    """Refuse options that do not fit the model; raise `HealingError`."""
    plain = plain_model(model)
    require_positions(plain, length)
    if supervision.attention and not is_swapped(plain):
        raise HealingError(
            "supervision 'attention' brings a swapped model's attention to the stock model's; this model is stock. "
            "Leave attention out."
        )
    if options.ramp > 0 and not is_swapped(plain):
        raise HealingError(f"ramp={options.ramp} fades a swapped model's old mechanism out; this model is stock.")
    if options.ramp > 0 and is_healed(plain.config):
        raise HealingError(f"{healed_before(plain.config)} A ramp would begin with neither: leave it out.")
    if model is not plain:
        refuse_idle_adapters(options)


def _require_every_gradient(supervision: Supervision, objective: type[Objective]) -> None:
    """Refuse supervision that leaves a head without a gradient, for which other processes would wait."""
    if objective.has_head and not (supervision.labels or supervision.logits):
        raise HealingError(
            f"supervision {str(supervision)!r} gives the model's head no gradient, and several processes wait for each "
            "other's gradients. Add logits, or run one process."
        )


def _target_length(plain: Any, options: HealingOptions, length: int) -> int:
    """Return the length that skipped positions reach; raise `HealingError` if the model does not have it."""
    if options.positions == "counted":
        return length
    if not is_swapped(plain):
        raise HealingError(
            "positions='skipped' trains a scheme at far distances; this model is stock. Leave positions out."
        )
    limit = longest_position(plain)
    most = TIMES_AS_FAR * length if limit is None else min(limit, TIMES_AS_FAR * length)
    target = options.target_length or most
    if target < length or (limit is not None and target > limit):
        at_most = "" if limit is None else f" and, with this scheme, at most {limit}"
        raise HealingError(f"target_length is {target}; at length {length} it must be at least {length}{at_most}.")
    return target


def require_positions(model: Any, length: int) -> None:
    """Refuse windows longer than the number of the model's positions; raise `HealingError`."""
    limit = longest_position(model)
    if limit is not None and length > limit:
        raise HealingError(
            f"length is {length}, and this {'swapped' if is_swapped(model) else 'stock'} model reads at most {limit} "
            f"tokens. Give a length of at most {limit}."
        )


class Dropouts:
    """The probabilities of all dropout in a model, except that of adapters, which their users chose.

    Dropout is off in training towards the stock model's outputs, where it only adds noise.

    Args:
        model: a transformers model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.found = [(module, name, getattr(module, name)) for module, name in _dropouts_in(model)]

    def turn_off(self) -> None:
        """Set all probabilities to 0."""
        for module, name, _ in self.found:
            setattr(module, name, 0.0)

    def put_back(self) -> None:
        """Restore the original probabilities."""
        for module, name, probability in self.found:
            setattr(module, name, probability)


def _dropouts_in(model: nn.Module) -> Iterator[tuple[Any, str]]:
    for path, module in model.named_modules():
        if any(part.endswith("lora_dropout") for part in path.split(".")):
            continue
        if isinstance(module, nn.Dropout):
            yield module, "p"
        elif isinstance(getattr(module, ATTENTION_DROPOUT, None), float):
            yield module, ATTENTION_DROPOUT
