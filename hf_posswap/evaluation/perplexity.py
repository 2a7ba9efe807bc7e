"""Loss and perplexity of a causal language model by context length."""

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from hf_posswap.errors import PositionError
from hf_posswap.evaluation.bootstrap import interval_of_mean
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.processes import ALONE, Processes
from hf_posswap.evaluation.reading import Progress, Reader
from hf_posswap.evaluation.texts import TokenIds, as_texts
from hf_posswap.evaluation.token_loss import token_losses
from hf_posswap.evaluation.windows import USUAL_PROTOCOLS, Protocol, Span, plan_documents
from hf_posswap.results.kinds import KEY_TOKENS

__all__ = [
    "LengthRow",
    "PlannedText",
    "Protocol",
    "gap_row",
    "key_row",
    "length_row",
    "measure_length",
    "measure_same_targets",
    "perplexity_rows",
    "plan_texts",
    "planned_tokens",
    "window_losses",
]


@dataclass(frozen=True)
class LengthRow:
    """One measurement: one protocol at one length.

    Attributes:
        protocol: "windows", "same-targets", "sliding", "key-tokens", "masked" for masked tokens, or "agreement" of
            embeddings.
        length: context length in tokens.
        loss: mean −ln p over all scored tokens, in nats; for agreement, 1 − the mean cosine to the stock model's
            embeddings. None if it could not be measured, see `note`.
        perplexity: exp(loss).
        loss_low: lower end of the 95% bootstrap interval over windows; None with a single window.
        loss_high: upper end of that interval.
        tokens: number of scored tokens.
        windows: number of windows.
        note: reason why `loss` is missing, otherwise empty.
        seconds: duration of the measurement.
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


Plan = TypeVar("Plan")
PlannedText = tuple[Tensor, list[Span]]
"""A text, int64 (n,), and the windows of it to read at one length."""


def perplexity_rows(
    model: nn.Module,
    token_ids: TokenIds,
    lengths: Sequence[int],
    protocols: Sequence[Protocol] = USUAL_PROTOCOLS,
    *,
    only: Collection[int] | None = None,
    keys: Tensor | None = None,
    stride: int | None = None,
    budget: int = 8192,
    seed: int = 0,
    batch_tokens: int = 4096,
    positions_per_chunk: int | None = None,
    processes: Processes = ALONE,
    progress: Progress | None = None,
) -> list[LengthRow]:
    """Measure the token-weighted loss and the perplexity at each length.

    For each window the loss is `model(ids, labels=ids).loss`, computed without storing the logits of a whole window. A
    length beyond the model's longest position has a row without a loss, with the reason in its note.

    Args:
        model: a causal language model, swapped or stock. It is measured in evaluation mode; its mode is restored.
        token_ids: one text as integers of shape (n,), or a sequence of such texts; windows never cross texts.
        lengths: context lengths in tokens; a shorter text is one window.
        protocols: any of "windows" (non-overlapping windows), "same-targets" (the same targets with longer context) and
            "sliding" (windows that move by a stride).
        only: the lengths to measure, with the targets that they have among all; None: all of them.
        keys: the result of `key_tokens` for the same texts, lengths and budget. With it, "same-targets" also gives rows
            of protocol "key-tokens", the loss over the key tokens alone. None: no such rows.
        stride: tokens by which the windows of "sliding" move; None: half of the shortest length.
        budget: approximate number of tokens to read for each length and protocol, over all texts; "sliding" scores so
            many tokens, and reads length / stride as many.
        seed: seed of the bootstrap; the choice of windows is not random.
        batch_tokens: maximum tokens of one forward pass; a longer window is a batch of its own.
        positions_per_chunk: number of positions whose logits are computed at a time; None: as many as take 64 MiB.
        processes: the processes that share the work (`joined_processes()` yields them under `accelerate launch`).
        progress: called after each forward pass with the number of tokens it read.

    Returns:
        For each protocol one row for each measured length, in ascending order.

    Raises:
        EvaluationError: an unsuitable model, an invalid length, budget, stride or protocol, or keys of other targets.
        TextTooShortError: no text has as many tokens as the longest length.
    """
    texts = as_texts(token_ids)
    if keys is not None and "same-targets" not in protocols:
        raise EvaluationError("key tokens are among the targets of protocol 'same-targets'. Give that protocol too.")
    plans = {protocol: only_of(plan_texts(protocol, texts, lengths, budget, stride), only) for protocol in protocols}
    rows: list[LengthRow] = []
    with Reader(
        model,
        batch_tokens=batch_tokens,
        positions_per_chunk=positions_per_chunk,
        processes=processes,
        progress=progress,
    ) as reader:
        _ = reader.head
        for protocol, of_lengths in plans.items():
            if protocol == "same-targets" and keys is not None:
                both = [measure_same_targets(reader, length, of_lengths[length], seed, keys) for length in of_lengths]
                rows += [row for measured in zip(*both, strict=True) for row in measured]
            else:
                rows += [measure_length(reader, protocol, length, of_lengths[length], seed) for length in of_lengths]
    return rows


def only_of(plans: dict[int, Plan], only: Collection[int] | None) -> dict[int, Plan]:
    """Return the plans of the lengths in `only`; None: all of them."""
    return plans if only is None else {length: plan for length, plan in plans.items() if length in only}


def plan_texts(
    protocol: Protocol, texts: Sequence[Tensor], lengths: Sequence[int], budget: int, stride: int | None = None
) -> dict[int, list[PlannedText]]:
    """Choose the windows of every length in the texts; see `hf_posswap.evaluation.windows.plan_documents`.

    Raises:
        EvaluationError, TextTooShortError: see `plan_documents`.
    """
    plans = plan_documents(protocol, [len(text) for text in texts], lengths, budget, stride)
    return {length: [(texts[place], windows) for place, windows in found] for length, found in plans.items()}


def planned_tokens(
    text_tokens: Sequence[int], lengths: Sequence[int], protocol: Protocol, budget: int, stride: int | None = None
) -> int:
    """Return the total number of tokens that `perplexity_rows` reads for texts of these lengths; for progress bars.

    Raises:
        EvaluationError: see `perplexity_rows`; a call before a model is loaded detects a text that is too short.
    """
    plans = plan_documents(protocol, text_tokens, lengths, budget, stride)
    return sum(window.size for found in plans.values() for _, windows in found for window in windows)


def measure_length(reader: Reader, protocol: str, length: int, planned: Sequence[PlannedText], seed: int) -> LengthRow:
    """Measure one length over all texts; a length beyond the model's longest position becomes a gap."""
    started = time.perf_counter()
    try:
        losses = window_losses(reader, length, planned)
    except PositionError as error:
        return gap_row(protocol, length, str(error))
    return length_row(protocol, length, losses, seed, time.perf_counter() - started)


def measure_same_targets(
    reader: Reader, length: int, planned: Sequence[PlannedText], seed: int, keys: Tensor
) -> tuple[LengthRow, LengthRow]:
    """Measure one length of protocol "same-targets", and return its row and that of the key tokens among the targets.

    Args:
        reader: the model.
        length: context length in tokens.
        planned: the windows, by `plan_texts`.
        seed: seed of the bootstrap.
        keys: bool (targets,); see `hf_posswap.evaluation.key_token_choice`.
    """
    started = time.perf_counter()
    try:
        losses = window_losses(reader, length, planned)
    except PositionError as error:
        return gap_row("same-targets", length, str(error)), gap_row(KEY_TOKENS, length, str(error))
    row = length_row("same-targets", length, losses, seed, time.perf_counter() - started)
    return row, key_row(length, losses, keys, seed)


def key_row(length: int, losses: Sequence[Tensor], keys: Tensor, seed: int) -> LengthRow:
    """Return the row of the key tokens from the losses of each window's targets; a gap if there is no key token.

    Raises:
        EvaluationError: `keys` is for another number of targets.
    """
    counts = [len(of_window) for of_window in losses]
    if sum(counts) != len(keys):
        raise EvaluationError(
            f"the key tokens were chosen among {len(keys)} targets, and {sum(counts)} are measured. Choose them for "
            "the same texts, lengths and budget."
        )
    chosen = [of_window[own] for of_window, own in zip(losses, keys.split(counts), strict=True) if own.any()]
    if not chosen:
        return gap_row(KEY_TOKENS, length, f"none of {len(keys)} tokens is a key token: read more, or lower the gain")
    return length_row(KEY_TOKENS, length, chosen, seed)


def window_losses(reader: Reader, length: int, planned: Sequence[PlannedText]) -> list[Tensor]:
    """Return the losses of each window's targets, float32 (targets,), windows in order.

    Raises:
        PositionError: the model has too few positions for this length.
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
        length: context length in tokens.
        losses: the losses of each window's targets, float32 (targets,).
        seed: seed of the bootstrap.
        seconds: duration of the measurement.
    """
    sums = [float(of_window.double().sum()) for of_window in losses]
    counts = [len(of_window) for of_window in losses]
    loss = math.fsum(sums) / sum(counts)
    if not math.isfinite(loss):
        return gap_row(protocol, length, f"the loss is {loss}")
    low, high = interval_of_mean(sums, counts, seed) or (None, None)
    perplexity = math.exp(loss) if loss < 700 else math.inf  # exp would overflow
    return LengthRow(protocol, length, loss, perplexity, low, high, sum(counts), len(sums), seconds=round(seconds, 3))


def gap_row(protocol: str, length: int, note: str) -> LengthRow:
    """Return the row of a length that was not measured, with the reason."""
    return LengthRow(protocol, length, None, None, None, None, tokens=0, windows=0, note=note)
