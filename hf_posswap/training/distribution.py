"""Settings of Accelerate under which a run computes the same with any number of processes."""

import os
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.utils import DistributedType, parse_flag_from_env

from hf_posswap.training.options import HealingError, HealingOptions

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


def expected_device() -> str:
    """Return the type of device, such as "cpu" or "cuda", that Accelerate will use."""
    if parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available():
        return "cpu"
    device = torch.accelerator.current_accelerator()
    return "cpu" if device is None else device.type


def make_accelerator(options: HealingOptions, **arguments: Any) -> Accelerator:
    """Return an Accelerator for a run, from the environment of `accelerate launch` and its own `arguments`.

    It makes every process load the whole model, because swapping and calibrating compute with its weights.

    Raises:
        HealingError: several processes were started that Accelerate does not join, or were asked for and not started.
    """
    launched = "LOCAL_RANK" in os.environ
    if launched and not torch.accelerator.is_available():
        # Without this, processes on a machine without a GPU do not communicate, and each heals a separate model.
        arguments.setdefault("cpu", True)
    if not is_initialized():  # otherwise the process's first Accelerator has fixed it: see settle
        arguments.setdefault("mixed_precision", "no")
    accelerator = Accelerator(gradient_accumulation_steps=options.accumulation, **arguments)
    started = int(os.environ.get("WORLD_SIZE", "1")) if launched else 1
    if started != accelerator.num_processes:
        raise HealingError(
            f"{started} processes were started, but Accelerate joins {accelerator.num_processes} on device "
            f"{str(accelerator.device)!r}. Set ACCELERATE_USE_CPU=true to join them on the CPU, or start one process."
        )
    asked = processes_asked_for(_parents_command())
    if accelerator.num_processes == 1 < asked:
        raise HealingError(
            f"accelerate launch was asked for {asked} processes and started one: with --cpu it does so whatever "
            f"--num_processes says. In its place write ACCELERATE_USE_CPU=true accelerate launch --multi_gpu "
            f"--num_processes {asked}. For one process, leave --num_processes out."
        )
    if accelerator.distributed_type == DistributedType.FSDP:
        accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # transformers reads it when it loads a model
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
    return accelerator


def processes_asked_for(command: list[str]) -> int:
    """Return the number of processes in a command line of `accelerate launch`; 1 if it has none."""
    place = command.index("launch") if "launch" in command else 0
    if not any(Path(part).name.startswith("accelerate") for part in command[:place]):
        return 1
    options = command[place + 1 :]
    for number, part in enumerate(options):
        name, _, value = part.replace("_", "-").partition("=")
        if name == "--num-processes":
            value = value or "".join(options[number + 1 : number + 2])
            return int(value) if value.isdecimal() else 1
    return 1


def _parents_command() -> list[str]:
    try:
        parent = psutil.Process().parent()
        return [] if parent is None else parent.cmdline()
    except psutil.Error:
        return []  # the process has ended, or access is denied


def settle(accelerator: Accelerator, options: HealingOptions, writes_checkpoints: bool) -> None:
    """Override the configuration of `accelerate launch` with the run's options. Call it before `prepare`.

    Raises:
        HealingError: the configuration requires something that is not supported.
    """
    if accelerator.mixed_precision not in ("no", options.precision):
        raise HealingError(
            f"the Accelerator computes in {accelerator.mixed_precision}, and the run's precision is "
            f"{options.precision!r}. Make it with mixed_precision='no' (hf_posswap.training.make_accelerator does): "
            "the option precision alone decides."
        )
    accelerator.gradient_accumulation_steps = options.accumulation
    accelerator.step = 0  # reset the count of an earlier run: gradients are applied at multiples of the accumulation
    if accelerator.distributed_type == DistributedType.FSDP:
        _require_whole_weights(accelerator.state.fsdp_plugin)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        if writes_checkpoints:
            raise HealingError(
                "DeepSpeed's shards cannot be written as checkpoints of a healing run. Give --checkpoint-every 0 "
                "(checkpoint_every=0), or shard with FSDP, whose checkpoints are whole."
            )
        config = accelerator.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = options.batch_size
        config["gradient_accumulation_steps"] = options.accumulation
        config["gradient_clipping"] = options.clip
        config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True


def _require_whole_weights(plugin: Any) -> None:
    if plugin.fsdp_version != 2:
        raise HealingError(
            f"FSDP version {plugin.fsdp_version} flattens weights, so that the scheme's own cannot have their own "
            "learning rate. Set fsdp_version: 2 in the configuration of accelerate launch."
        )
    if plugin.cpu_ram_efficient_loading:
        raise HealingError(
            "fsdp_cpu_ram_efficient_loading leaves all processes but one without weights. Make the Accelerator with "
            "hf_posswap.training.make_accelerator before loading the model, or set it to false."
        )
