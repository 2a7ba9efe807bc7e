"""Weights that accelerate keeps on disk or in CPU memory and loads around a module's forward.

A scheme's modules are called by methods of their own and not by `forward`, so accelerate's hooks do not run there.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


def _hooks(module: nn.Module) -> list[Any]:
    """Return the hooks of accelerate on a module, without its submodules."""
    hook = vars(module).get("_hf_hook")
    return [] if hook is None else list(getattr(hook, "hooks", (hook,)))


@contextmanager
def in_memory(*modules: nn.Module | None) -> Iterator[None]:
    """Keep the weights of modules and their submodules in memory within a `with` block."""
    with ExitStack() as stack:
        for module in modules:
            for part in () if module is None else module.modules():
                for hook in _hooks(part):
                    hook.pre_forward(part)
                    stack.callback(hook.post_forward, part, None)
        yield


def is_offloaded(module: nn.Module) -> bool:
    """Return whether accelerate loads weights of a module or its submodules when they are needed."""
    return any(getattr(hook, "offload", False) for part in module.modules() for hook in _hooks(part))


def device_of(module: nn.Module) -> torch.device:
    """Return the device on which a module computes, even if its weights are offloaded.

    Raises:
        ValueError: it has no weights.
    """
    for part in module.modules():
        for hook in _hooks(part):
            if getattr(hook, "offload", False) and hook.execution_device is not None:
                return torch.device(hook.execution_device)
        for tensor in part.parameters(recurse=False):
            return tensor.device
    raise ValueError(f"{type(module).__name__} has no weights")
