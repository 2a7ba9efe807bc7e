"""Checkpoints of a healing run: written atomically, as safetensors and JSON only, never unpickled.

A checkpoint holds weights, optimizer state and the history of losses. Learning rates, masked tokens, dropout and the
order of the text depend only on the options and the step, so they are not saved.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from hf_posswap.results.parts import first_difference
from hf_posswap.training.options import HealingError

PREFIX = "checkpoint-"
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
SEPARATOR = "/"
"""Separates a weight's name from the name of its moment, in the optimizer's file."""
FORMAT_VERSION = 1


class TrainingCheckpointError(HealingError):
    """A checkpoint that cannot be written, is broken, or belongs to another run."""


@dataclass(frozen=True)
class RunState:
    """The state of a run.

    Attributes:
        step: optimizer steps done.
        history: one row for each step.
        run: identity of the run: options, texts and model. Only a run with an equal identity may resume from it.
    """

    step: int
    history: list[dict[str, Any]]
    run: dict[str, Any]


def save_checkpoint(folder: Path, model: nn.Module, optimizer: Any, state: RunState, keep: int, writes: bool) -> None:
    """Write `folder`/checkpoint-<step>, then remove older ones down to `keep`.

    Every process calls this, because sharded weights are gathered from all of them; one process writes.

    Args:
        folder: the run's output folder.
        model: the model as Accelerate prepared it.
        optimizer: the optimizer as Accelerate prepared it.
        state: the run's state.
        keep: number of the newest checkpoints to keep.
        writes: whether this process is the one that writes.

    Raises:
        TrainingCheckpointError: the files cannot be written; earlier checkpoints are unchanged.
    """
    weights, optimizer_state = _gathered(model, optimizer)
    if not writes:
        return
    final = folder / f"{PREFIX}{state.step:07d}"
    temporary = folder / f".{final.name}.partial"
    try:
        for unfinished in folder.glob(f".{PREFIX}*.partial"):  # left by a run that was killed while writing
            shutil.rmtree(unfinished, ignore_errors=True)
        temporary.mkdir(parents=True)
        moments = {
            f"{name}{SEPARATOR}{key}": value
            for name, entries in optimizer_state["state"].items()
            for key, value in entries.items()
        }
        save_file(_storable(weights), temporary / WEIGHTS)
        save_file(_storable(moments), temporary / OPTIMIZER)
        content = {"format_version": FORMAT_VERSION, "step": state.step, "run": state.run, "history": state.history}
        groups = {"param_groups": optimizer_state["param_groups"]}
        (temporary / STATE).write_text(json.dumps(content | groups), encoding="utf-8")
        temporary.replace(final)
    except (OSError, SafetensorError) as error:
        raise TrainingCheckpointError(
            f"cannot write checkpoint {str(final)!r}: {error}. Earlier checkpoints are intact: make room, then go on "
            "from the newest with --resume."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in checkpoints_in(folder)[:-keep]:
        # Rename first, so that a run that is killed while it removes files leaves no incomplete checkpoint.
        shutil.rmtree(old.replace(folder / f".{old.name}.partial"))


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    found = (path for path in folder.glob(f"{PREFIX}*") if path.is_dir())
    return sorted(path for path in found if path.name.removeprefix(PREFIX).isdigit())


def load_checkpoint(
    path: Path, model: nn.Module, optimizer_at: Callable[[int], Any], run: Mapping[str, Any]
) -> RunState:
    """Load a checkpoint's weights and optimizer state into a prepared model and optimizer.

    Args:
        path: the checkpoint's folder.
        model: the model as Accelerate prepared it.
        optimizer_at: returns the optimizer that had taken a number of steps of the run when it was saved.
        run: identity of the run.

    Raises:
        TrainingCheckpointError: the checkpoint is broken, or is of a run with other options, texts or model; neither
            the model nor the optimizer has changed.
    """
    try:
        content = json.loads((path / STATE).read_text(encoding="utf-8"))
        state = RunState(content["step"], content["history"], content["run"])
        _require_same_run(path, state.run, run)
        weights: dict[str, Any] = dict(load_file(path / WEIGHTS))
        optimizer_state = {"state": _unflattened(load_file(path / OPTIMIZER)), "param_groups": content["param_groups"]}
    except TrainingCheckpointError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingCheckpointError(_broken_message(path, error)) from error
    options = StateDictOptions(full_state_dict=True)
    aliases = _aliases(get_model_state_dict(model))
    _require_same_tensors(path, weights, aliases)
    weights |= {name: weights[first] for name, first in aliases.items() if name not in weights}
    set_model_state_dict(model, weights, options=options)
    # A head has no optimizer state if the model learns from its hidden states alone.
    lenient = StateDictOptions(full_state_dict=True, strict=False)
    set_optimizer_state_dict(model, _inner(optimizer_at(state.step)), optimizer_state, options=lenient)
    return state


def _broken_message(path: Path, error: Exception) -> str:
    others = [other.name for other in checkpoints_in(path.parent) if other != path]
    way_out = f"go on from {others[-1]}" if others else "start again without --resume"
    return f"checkpoint {str(path)!r} is broken ({type(error).__name__}: {error}). Remove it and {way_out}."


def _require_same_run(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    found = first_difference(saved, now)
    if found is not None:
        key, before, after = found
        raise TrainingCheckpointError(
            f"checkpoint {str(path)!r} belongs to another run: {key} was {before!r} there and is {after!r} now. "
            "Use the settings of that run, or start anew in another folder."
        )


def _require_same_tensors(path: Path, weights: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    missing = sorted(name for name, first in aliases.items() if name not in weights and first not in weights)
    unknown = sorted(set(weights) - set(aliases))
    if missing or unknown:
        raise TrainingCheckpointError(
            f"checkpoint {str(path)!r} does not fit the model: missing {missing[:3]}, unknown {unknown[:3]}. Give the "
            "model that the run began with, adapted as it was then."
        )


def _gathered(model: nn.Module, optimizer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return unsharded weights and optimizer state on the CPU."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    # Gathering copies a tied weight once for each of its names; only the shards show that it is one tensor.
    aliases = _aliases(get_model_state_dict(model))
    weights = get_model_state_dict(model, options=options)
    return (
        {name: value for name, value in weights.items() if aliases.get(name) == name},
        dict(get_optimizer_state_dict(model, _inner(optimizer), options=options)),
    )


def _unflattened(moments: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the optimizer's moments, keyed by the name of their weight."""
    result: dict[str, dict[str, Tensor]] = {}
    for key, value in moments.items():
        name, _, moment = key.rpartition(SEPARATOR)
        result.setdefault(name, {})[moment] = value
    return result


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """Return torch's optimizer inside Accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)


def _aliases(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Return a mapping from each tensor's names to its first name: safetensors stores a tensor once."""
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    result = {}
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            held = value.to_local() if isinstance(value, DTensor) else value
            result[name] = first.setdefault((held.data_ptr(), tuple(value.shape)), name) if held.numel() else name
    return result


def tied_names(model: nn.Module) -> set[str]:
    """Return the names in a model's state dict of weights that have another name before it."""
    return {name for name, first in _aliases(model.state_dict()).items() if name != first}


def _storable(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors in the form that safetensors requires: contiguous, and tied tensors once."""
    aliases = _aliases(values)
    return {name: values[name].contiguous() for name, first in aliases.items() if name == first}
