"""Counts what is read from a device: on a GPU each read makes the CPU wait for all that was started."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Reads(TorchDispatchMode):
    """Counts reads within a `with` block: single values, and tensors as lists (one read, however long)."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._lists = _Lists(self)

    def __enter__(self) -> "Reads":
        self._lists.__enter__()
        return super().__enter__()  # type: ignore[no-any-return]  # torch has no types for it

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._lists.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class _Lists(TorchFunctionMode):
    """Counts `tolist`, for which torch runs no operator on a CPU."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads.count += func is Tensor.tolist
        return func(*args, **(kwargs or {}))
