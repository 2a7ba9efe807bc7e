"""What has to be settled with Accelerate so that a run computes the same however many processes share it."""

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from hf_posswap.training.options import HealingError, HealingOptions

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


def make_accelerator(options: HealingOptions, **arguments: Any) -> Accelerator:
    """Return an Accelerator for a run, from the environment of `accelerate launch`; `arguments` are its own.

    Every process is made to load the whole model: swapping and calibrating compute with its weights.

    Raises:
        HealingError: several processes were started that Accelerate does not join.
    """
    launched = "LOCAL_RANK" in os.environ
    if launched and not torch.accelerator.is_available():
        # Without this, processes on a machine without a GPU do not find each other: each heals a model of its own.
        arguments.setdefault("cpu", True)
    accelerator = Accelerator(gradient_accumulation_steps=options.accumulation, **arguments)
    started = int(os.environ.get("WORLD_SIZE", "1")) if launched else 1
    if started != accelerator.num_processes:
        raise HealingError(
            f"{started} processes were started, but Accelerate joins {accelerator.num_processes} on device "
            f"{str(accelerator.device)!r}. Set ACCELERATE_USE_CPU=true to join them on the CPU, or start one process."
        )
    if accelerator.distributed_type == DistributedType.FSDP:
        accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # transformers reads it when it loads
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
    return accelerator


def settle(accelerator: Accelerator, options: HealingOptions, writes_checkpoints: bool) -> None:
    """Let the options decide over what the configuration of `accelerate launch` says otherwise. Call before `prepare`.

    Raises:
        HealingError: the configuration asks for something that cannot be had.
    """
    accelerator.gradient_accumulation_steps = options.accumulation
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
