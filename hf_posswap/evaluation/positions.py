"""Loss of a causal language model by position within its context."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_posswap.errors import PositionError
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.perplexity import LengthRow, PlannedText, length_row, plan_texts, window_losses
from hf_posswap.evaluation.perplexity import gap_row as length_gap
from hf_posswap.evaluation.processes import ALONE, Processes
from hf_posswap.evaluation.reading import Progress, Reader
from hf_posswap.evaluation.settings import BINS
from hf_posswap.evaluation.texts import TokenIds, as_texts


@dataclass(frozen=True)
class PositionRow:
    """Loss in one bin of positions, for windows of one length.

    Attributes:
        length: context length in tokens.
        position_from: the bin's first position; a token at position i is predicted from the i tokens before it.
        position_to: the position after the bin's last one.
        loss: mean −ln p of the tokens in the bin, in nats; None if it could not be measured, see `note`.
        tokens: number of scored tokens.
        note: reason why `loss` is missing, otherwise empty.
    """

    length: int
    position_from: int
    position_to: int
    loss: float | None
    tokens: int
    note: str = ""


def position_rows(
    model: nn.Module,
    token_ids: TokenIds,
    lengths: Sequence[int],
    *,
    bins: int = BINS,
    budget: int = 8192,
    batch_tokens: int = 4096,
    positions_per_chunk: int | None = None,
    processes: Processes = ALONE,
    progress: Progress | None = None,
) -> list[PositionRow]:
    """Measure the loss by position at each length, in the windows of `perplexity_rows`, divided into bins.

    Args:
        model: a causal language model, swapped or stock.
        token_ids: one text as integers of shape (n,), or a sequence of such texts.
        lengths: context lengths in tokens.
        bins: number of bins that a window's positions are divided into; short windows have fewer.
        budget: approximate number of tokens to read for each length, over all texts.
        batch_tokens: maximum tokens of one forward pass; a longer window is a batch of its own.
        positions_per_chunk: number of positions whose logits are computed at a time; None: as many as take 64 MiB.
        processes: the processes that share the work (`joined_processes()` yields them under `accelerate launch`).
        progress: called after each forward pass with the number of tokens it read.

    Returns:
        For each length, in ascending order, a row for each bin. A length beyond the model's longest position has one
        row without a loss, with the reason in its note.

    Raises:
        EvaluationError: an unsuitable model, or an invalid length, budget or number of bins.
        TextTooShortError: no text has as many tokens as the longest length.
    """
    plans = plan_texts("windows", as_texts(token_ids), lengths, budget)
    rows: list[PositionRow] = []
    with Reader(
        model,
        batch_tokens=batch_tokens,
        positions_per_chunk=positions_per_chunk,
        processes=processes,
        progress=progress,
    ) as reader:
        _ = reader.head
        for length, planned in plans.items():
            rows += measure_windows(reader, length, planned, bins)[1]
    return rows


def measure_windows(
    reader: Reader, length: int, planned: Sequence[PlannedText], bins: int = BINS, seed: int = 0
) -> tuple[LengthRow, list[PositionRow]]:
    """Run the windows of one length once, and return both the row of protocol "windows" and the rows by position.

    A length beyond the model's longest position becomes a gap in both.
    """
    try:
        losses = window_losses(reader, length, planned)
    except PositionError as error:
        return length_gap("windows", length, str(error)), [gap_row(length, str(error))]
    return length_row("windows", length, losses, seed), rows_by_position(length, losses, bins)


def rows_by_position(length: int, losses: Sequence[Tensor], bins: int = BINS) -> list[PositionRow]:
    """Return the rows of one length from the losses of whole windows of up to `length` tokens, float32 (tokens − 1,).

    Raises:
        EvaluationError: fewer than one bin.
    """
    if bins < 1:
        raise EvaluationError(f"the number of bins is {bins}. Give at least 1.")
    bins = min(bins, length // 2)  # position 0 is not scored, and no bin may be empty
    edges = [number * length // bins for number in range(bins + 1)]
    positions = torch.cat([torch.arange(1, len(of_window) + 1) for of_window in losses])
    values = torch.cat(list(losses)).double()
    rows = []
    for start, stop in itertools.pairwise(edges):
        part = values[(positions >= start) & (positions < stop)]
        loss = float(part.mean())
        if math.isfinite(loss):
            rows.append(PositionRow(length, start, stop, loss, part.numel()))
        else:
            note = f"the loss is {loss}" if part.numel() else "no text is so long"
            rows.append(PositionRow(length, start, stop, None, 0, note))
    return rows


def gap_row(length: int, note: str) -> PositionRow:
    """Return the row of a length that was not measured, with the reason."""
    return PositionRow(length, 0, length, None, 0, note)
