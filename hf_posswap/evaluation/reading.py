"""Runs a model on windows of text: forms batches, shares them among processes and reports progress."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from hf_posswap.errors import PositionError
from hf_posswap.evaluation.processes import ALONE, Processes
from hf_posswap.evaluation.token_loss import Head, find_head, find_masked_head, input_device
from hf_posswap.swapped.questions import longest_position

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[int], None]
"""Function that is called with the number of tokens just read."""
Piece = TypeVar("Piece")
Result = TypeVar("Result")

LOGITS_AT_ONCE = 2**24
"""Default number of logits computed at a time: 64 MiB in float32."""


class Reader:
    """A model that is being measured; use it as a context manager.

    Within the `with` block the model is in evaluation mode; at its end the previous mode is restored.

    Args:
        model: a transformers model, swapped or stock.
        batch_tokens: maximum tokens of one forward pass; a longer window is a batch of its own.
        positions_per_chunk: number of positions whose logits are computed at a time; None: as many as take 64 MiB.
        processes: the processes that share the work.
        progress: called after each forward pass with the number of tokens it read.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        *,
        batch_tokens: int = 4096,
        positions_per_chunk: int | None = None,
        processes: Processes = ALONE,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.processes = model, processes
        self.batch_tokens, self.progress = batch_tokens, progress
        self.longest = longest_position(model)
        self.device = input_device(model)
        rows: int = model.get_input_embeddings().weight.shape[0]
        self.positions_per_chunk = positions_per_chunk or max(1, LOGITS_AT_ONCE // rows)
        self._mode = contextlib.ExitStack()

    @cached_property
    def head(self) -> Head:
        """The head of a causal language model; see `find_head`."""
        return find_head(self.model)

    @cached_property
    def masked_head(self) -> Head:
        """The head of a masked language model; see `find_masked_head`."""
        return find_masked_head(self.model)

    def require_length(self, length: int) -> None:
        """Refuse a length beyond the model's longest position.

        Raises:
            PositionError: the length is too large; the message gives the limit.
        """
        if self.longest is not None and length > self.longest:
            raise PositionError(f"longest position {self.longest}")

    def batches(self, pieces: Sequence[Piece], length: int) -> list[list[Piece]]:
        """Split pieces of `length` tokens each into batches, independently of the number of processes."""
        size = max(1, self.batch_tokens // length)
        return [list(pieces[start : start + size]) for start in range(0, len(pieces), size)]

    def read_alike(
        self,
        pieces: Sequence[Piece],
        kind: Callable[[Piece], tuple[int, ...]],
        read: Callable[[list[Piece]], list[Result]],
    ) -> list[Result]:
        """Read pieces of various lengths, in batches of one kind, shared among the processes.

        Args:
            pieces: the pieces to read.
            kind: function that returns a piece's kind; its first number is the piece's number of tokens.
            read: function that returns a result for each piece of a batch, all of one kind.

        Returns:
            A result for each piece, in the order of `pieces`.
        """
        order = sorted(range(len(pieces)), key=lambda place: kind(pieces[place]))
        batches = [
            batch
            for found, places in itertools.groupby(order, key=lambda place: kind(pieces[place]))
            for batch in self.batches(list(places), found[0])
        ]
        shared = self.processes.share(batches, lambda batch: read([pieces[place] for place in batch]))
        results = itertools.chain.from_iterable(shared)
        in_order = sorted(zip(order, results, strict=True), key=lambda found: found[0])
        return [result for _, result in in_order]

    def was_read(self, ids: Tensor) -> None:
        """Report ids (B, L) that were read; the count is multiplied by the number of processes."""
        if self.progress is not None:
            self.progress(ids.numel() * self.processes.count)

    def __enter__(self) -> "Reader":
        self._mode.enter_context(_evaluation_mode(self.model))
        self._mode.enter_context(torch.no_grad())
        return self

    def __exit__(self, *exception: object) -> None:
        self._mode.close()


@contextlib.contextmanager
def _evaluation_mode(model: "PreTrainedModel") -> Iterator[None]:
    """Put the model in evaluation mode, and restore the previous mode at the end."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
