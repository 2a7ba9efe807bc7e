"""The optimizer and its learning rates."""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from hf_posswap.architectures.tables import RetiredTable
from hf_posswap.training.options import HealingError, HealingOptions

SHORTEST_WARMUP = 3
"""Steps. Adam's first step changes every weight by the full learning rate, however small its gradient. With that step
at the peak rate, 28 steps of healing improved a calibrated `rope` by 0.07 nats instead of 0.53; with 2, 4 or 6 steps of
warmup, by 0.51 to 0.54."""


def scheme_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that a swap adds, by name: the scheme's, and the mean row of a removed position table."""
    retired = [name for name, module in model.named_modules() if isinstance(module, RetiredTable)]
    return {
        name: weight
        for name, weight in model.named_parameters()
        if "pos_scheme" in name.split(".") or name.rpartition(".")[0] in retired
    }


def choose_trained(model: nn.Module, options: HealingOptions) -> None:
    """Set `requires_grad` of all parameters by the options, in place. A model with adapters stays unchanged.

    Raises:
        HealingError: the scheme has no parameters to train.
    """
    if options.train != "scheme":
        return
    own = scheme_parameters(model)
    if not any("pos_scheme" in name.split(".") for name in own):  # a mean row alone is a stock weight
        raise HealingError(
            "train='scheme' has nothing to train: the scheme has no parameters with these options. Take train='all' "
            "or a scheme with parameters, such as alibi:trainable=true, t5 or relative_bias."
        )
    model.requires_grad_(False)
    for weight in own.values():
        weight.requires_grad_(True)


def parameter_groups(
    model: nn.Module, options: HealingOptions, only: Collection[nn.Parameter] | None = None
) -> list[dict[str, Any]]:
    """Return optimizer groups, each with its peak learning rate: the scheme's parameters, matrices, and the rest.

    Args:
        model: the model.
        options: learning rates and weight decay.
        only: the parameters that learn. Default: all that require a gradient.
    """
    own = {id(weight) for weight in scheme_parameters(model).values()}
    learning = [weight for weight in model.parameters() if weight.requires_grad] if only is None else list(only)
    scheme = [weight for weight in learning if id(weight) in own]
    matrices = [weight for weight in learning if id(weight) not in own and weight.dim() >= 2]
    vectors = [weight for weight in learning if id(weight) not in own and weight.dim() < 2]
    rate = options.peak_rate
    groups = [
        {"params": scheme, "peak": options.scheme_learning_rate, "weight_decay": 0.0},
        {"params": matrices, "peak": rate, "weight_decay": options.weight_decay},
        {"params": vectors, "peak": rate, "weight_decay": 0.0},
    ]
    return [group | {"lr": group["peak"]} for group in groups if group["params"]]


def make_optimizer(
    model: nn.Module, options: HealingOptions, only: Collection[nn.Parameter] | None = None
) -> torch.optim.Optimizer:
    """Return AdamW with β = (0.9, 0.95) over the trainable parameters; see `parameter_groups`."""
    return torch.optim.AdamW(parameter_groups(model, options, only), betas=(0.9, 0.95))


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Return the share of the peak learning rate at a step (from 0): a linear rise, then a cosine down to 0.

    The rise takes a share `warmup` of the steps, but at least `SHORTEST_WARMUP` steps, or half of the run if that is
    less. With `warmup` 0 there is no rise.

    These are the numbers of transformers' `get_wsd_schedule` with one stable step, one step later. That is a scheduler
    which counts its own steps; a function of the step leaves nothing to save with a checkpoint.
    """
    shortest = min(SHORTEST_WARMUP, steps // 2) if warmup > 0 else 0
    rising = max(1, round(warmup * steps), shortest)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rate(optimizer: Any, factor: float) -> None:
    """Set each group's learning rate to a share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
