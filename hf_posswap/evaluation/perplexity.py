"""Loss and perplexity of a causal language model against the length of what it reads."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_posswap.errors import PositionError
from hf_posswap.evaluation.bootstrap import interval_of_mean
from hf_posswap.evaluation.processes import ALONE, Processes
from hf_posswap.evaluation.reading import Progress, Reader
from hf_posswap.evaluation.texts import TokenIds, as_texts
from hf_posswap.evaluation.token_loss import token_losses
from hf_posswap.evaluation.windows import PROTOCOLS, Protocol, Window, plan_documents

__all__ = [
    "PROTOCOLS",
    "LengthRow",
    "PlannedText",
    "Protocol",
    "gap_row",
    "length_row",
    "measure_length",
    "perplexity_rows",
    "plan_texts",
    "planned_tokens",
    "window_losses",
]


@dataclass(frozen=True)
class LengthRow:
    """One measurement: one protocol at one length.

    Attributes:
        protocol: "windows", "same-targets", "masked" for masked tokens, or "agreement" of embeddings.
        length: tokens the model reads at once.
        loss: mean −ln p over all scored tokens, in nats; of agreement 1 − the mean cosine to the stock model's
            embeddings. None where nothing could be measured, see `note`.
        perplexity: exp(loss).
        loss_low: lower end of the 95% bootstrap interval over windows; None with a single window.
        loss_high: upper end of it.
        tokens: number of tokens scored.
        windows: number of windows read.
        note: why `loss` is missing, else empty.
        seconds: time the measurement took.
    """

    protocol: str
    length: int
    loss: float | None
    perplexity: float | None
    loss_low: float | None
    loss_high: float | None
    tokens: int
    windows: int
    note: str = ""
    seconds: float = 0.0


PlannedText = tuple[Tensor, list[Window]]
"""A text, int64 (n,), and the windows of it to read at one length."""


def perplexity_rows(
    model: nn.Module,
    token_ids: TokenIds,
    lengths: Sequence[int],
    protocols: Sequence[Protocol] = PROTOCOLS,
    *,
    budget: int = 8192,
    seed: int = 0,
    batch_tokens: int = 4096,
    positions_per_chunk: int | None = None,
    processes: Processes = ALONE,
    progress: Progress | None = None,
) -> list[LengthRow]:
    """Measure loss and perplexity at each length, token-weighted.

    Window by window this is `model(ids, labels=ids).loss`, without ever holding the logits of a whole window. A length
    past the model's longest position becomes a row without a loss and with a note that says so.

    Args:
        model: a causal language model, swapped or stock. It is measured in evaluation mode and left as it was.
        token_ids: one text as integers of shape (n,), or several as a sequence of such; windows never cross texts.
        lengths: tokens to read at once; a text that is shorter is read whole.
        protocols: "windows" (non-overlapping windows), "same-targets" (the same tokens, ever longer context), or both.
        budget: about how many tokens the model may read for each length and protocol, all texts together.
        seed: of the bootstrap; windows are chosen without chance.
        batch_tokens: how many tokens may be read in one forward pass; a longer window is read alone.
        positions_per_chunk: how many positions are turned into logits at a time; None: as many as make 64 MiB.
        processes: who shares the work (`join_processes()` under `accelerate launch`).
        progress: called after each forward pass with the number of tokens it read.

    Returns:
        For each protocol one row for each length, in ascending order.

    Raises:
        EvaluationError: a model, a length, a budget or a protocol that cannot be measured.
        TextTooShortError: no text has as many tokens as the longest length.
    """
    texts = as_texts(token_ids)
    plans = {protocol: plan_texts(protocol, texts, lengths, budget) for protocol in protocols}
    with Reader(
        model,
        batch_tokens=batch_tokens,
        positions_per_chunk=positions_per_chunk,
        processes=processes,
        progress=progress,
    ) as reader:
        _ = reader.head
        return [
            measure_length(reader, protocol, length, planned, seed)
            for protocol, of_lengths in plans.items()
            for length, planned in of_lengths.items()
        ]


def plan_texts(
    protocol: Protocol, texts: Sequence[Tensor], lengths: Sequence[int], budget: int
) -> dict[int, list[PlannedText]]:
    """Choose the windows of every length in the texts; see `hf_posswap.evaluation.windows.plan_documents`.

    Raises:
        EvaluationError, TextTooShortError: see there.
    """
    plans = plan_documents(protocol, [len(text) for text in texts], lengths, budget)
    return {length: [(texts[place], windows) for place, windows in found] for length, found in plans.items()}


def planned_tokens(text_tokens: Sequence[int], lengths: Sequence[int], protocol: Protocol, budget: int) -> int:
    """How many tokens `perplexity_rows` will read in all for texts of these lengths; for progress bars.

    Raises:
        EvaluationError: see `perplexity_rows`; asking early finds a text that is too short before a model loads.
    """
    plans = plan_documents(protocol, text_tokens, lengths, budget)
    return sum(window.size for found in plans.values() for _, windows in found for window in windows)


def measure_length(reader: Reader, protocol: str, length: int, planned: Sequence[PlannedText], seed: int) -> LengthRow:
    """Measure one length over all texts; a length the model has no positions for becomes a gap."""
    started = time.perf_counter()
    try:
        losses = window_losses(reader, length, planned)
    except PositionError as error:
        return gap_row(protocol, length, str(error))
    return length_row(protocol, length, losses, seed, time.perf_counter() - started)


def window_losses(reader: Reader, length: int, planned: Sequence[PlannedText]) -> list[Tensor]:
    """Return the losses of each window's targets, float32 (targets,), windows in order.

    Raises:
        PositionError: the model has no positions for this length.
    """
    reader.require_length(length)
    pieces = [
        (text[window.start : window.stop], window.first_target - window.start)
        for text, windows in planned
        for window in windows
    ]

    def read(batch: list[tuple[Tensor, int]]) -> list[Tensor]:
        ids = torch.stack([piece for piece, _ in batch]).to(reader.device)
        losses = token_losses(reader.model, reader.head, ids, batch[0][1], reader.positions_per_chunk)
        reader.was_read(ids)
        return list(losses)

    return reader.read_alike(pieces, lambda piece: (len(piece[0]), piece[1]), read)


def length_row(protocol: str, length: int, losses: Sequence[Tensor], seed: int, seconds: float = 0.0) -> LengthRow:
    """Return the row of one length from the losses of each window; a loss that is not finite becomes a gap.

    Args:
        protocol: name of the protocol.
        length: tokens read at once.
        losses: the losses of each window's targets, float32 (targets,).
        seed: of the bootstrap.
        seconds: time the measurement took.
    """
    sums = [float(of_window.double().sum()) for of_window in losses]
    counts = [len(of_window) for of_window in losses]
    loss = math.fsum(sums) / sum(counts)
    if not math.isfinite(loss):
        return gap_row(protocol, length, f"the loss is {loss}")
    low, high = interval_of_mean(sums, counts, seed) or (None, None)
    perplexity = math.exp(loss) if loss < 700 else math.inf  # beyond a float
    return LengthRow(protocol, length, loss, perplexity, low, high, sum(counts), len(sums), seconds=round(seconds, 3))


def gap_row(protocol: str, length: int, note: str) -> LengthRow:
    """Row of a length that was not measured, saying why."""
    return LengthRow(protocol, length, None, None, None, None, tokens=0, windows=0, note=note)
