"""Shares a measurement among the processes of `accelerate launch`; the result does not depend on their number."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from hf_posswap.errors import PosSwapError
from hf_posswap.evaluation.errors import EvaluationError

Work = TypeVar("Work")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """The processes that share a measurement.

    Attributes:
        index: this process's number, from 0; process 0 is the main one.
        count: number of processes.
        device: the device of this process; None: not determined here.
    """

    index: int = 0
    count: int = 1
    device: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.index == 0

    def share(self, work: Sequence[Work], do: Callable[[Work], Result]) -> list[Result]:
        """Return `do(piece)` of all pieces of work, in order, in every process; each process does every `count`-th.

        Raises:
            PosSwapError: the error that `do` raised in some process; it is raised in every process.
        """
        if self.count == 1:
            return [do(piece) for piece in work]
        from accelerate.utils import gather_object

        found = gather_object([self._outcome(number, do, work[number]) for number in self._own(len(work))])
        results = [result for _, result in sorted(found, key=lambda pair: pair[0])]
        return [_result_or_raise(result) for result in results]

    def on_main(self, do: Callable[[], Result]) -> Result:
        """Call `do` in the main process, and return its result in every process.

        Raises:
            PosSwapError: the error that `do` raised; it is raised in every process.
        """
        if self.count == 1:
            return do()
        from accelerate.utils import broadcast_object_list

        held = [self._outcome(0, lambda _: do(), None)[1] if self.is_main else None]
        return _result_or_raise(broadcast_object_list(held)[0])

    def _own(self, pieces: int) -> range:
        return range(self.index, pieces, self.count)

    def _outcome(self, number: int, do: Callable[[Work], Result], piece: Work) -> tuple[int, Any]:
        try:
            return number, do(piece)
        except PosSwapError as error:
            return number, error


ALONE = Processes()


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that `accelerate launch` started while the block runs; without a launch, this process only.

    They part where the block ends, and where it raises an error of ours, which every process then raises. Otherwise a
    thread of torch's communication may still run while Python ends, which aborts the process after its work is done.

    Raises:
        EvaluationError: several processes were started, but Accelerate does not connect them.
    """
    if "LOCAL_RANK" not in os.environ:
        yield ALONE
        return
    import torch
    from accelerate import PartialState

    # Without cpu=True, processes on a machine without a GPU do not communicate.
    state = PartialState() if torch.accelerator.is_available() else PartialState(cpu=True)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != state.num_processes:
        raise EvaluationError(
            f"{started} processes were started, but Accelerate joins {state.num_processes} on device "
            f"{str(state.device)!r}. Set ACCELERATE_USE_CPU=true to join them on the CPU, or start one process."
        )
    try:
        yield Processes(state.process_index, state.num_processes, state.device)
    except PosSwapError:
        state.destroy_process_group()
        raise
    state.destroy_process_group()


def _result_or_raise(result: Any) -> Any:
    if isinstance(result, PosSwapError):
        raise result
    return result
