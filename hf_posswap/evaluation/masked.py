"""Loss of an encoder's masked tokens by context length, with the same masked tokens at every length.

Stretches of text as long as the longest length are chosen, and 15% of their tokens are masked, once for all lengths. At
each length a stretch is split into successive windows of that length. So every length scores the same tokens with the
same share of masked tokens around them, and only the amount of context grows. All chosen tokens are replaced by the
mask token: BERT's 10% random and 10% unchanged tokens are for training only.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_posswap.errors import PositionError
from hf_posswap.evaluation.errors import EvaluationError, UnmeasurableError
from hf_posswap.evaluation.perplexity import LengthRow, gap_row, length_row, only_of
from hf_posswap.evaluation.processes import ALONE, Processes
from hf_posswap.evaluation.reading import Progress, Reader
from hf_posswap.evaluation.texts import TokenIds, as_texts
from hf_posswap.evaluation.token_loss import base_model_of, last_hidden, losses_of_hidden
from hf_posswap.evaluation.windows import check_lengths, share_out, spread
from hf_posswap.swapped.tokenizers import special_tokens
from hf_posswap.texts.masking import choose_masked

PROTOCOL = "masked"


@dataclass(frozen=True)
class MaskedWindow:
    """A window with masked tokens.

    Attributes:
        ids: input ids, int64 (L,), special tokens included.
        places: indices within the window of the scored tokens, int64 (n,).
        targets: the original tokens there, int64 (n,).
    """

    ids: Tensor
    places: Tensor
    targets: Tensor


def masked_loss_rows(
    model: nn.Module,
    tokenizer: Any,
    token_ids: TokenIds,
    lengths: Sequence[int],
    *,
    only: Collection[int] | None = None,
    budget: int = 8192,
    seed: int = 0,
    batch_tokens: int = 4096,
    positions_per_chunk: int | None = None,
    processes: Processes = ALONE,
    progress: Progress | None = None,
) -> list[LengthRow]:
    """Measure the token-weighted loss of masked tokens at each length, with the same masked tokens at every length.

    Args:
        model: a masked language model, swapped or stock. It is measured in evaluation mode; its mode is restored.
        tokenizer: the model's tokenizer, for the mask token and the special tokens around a text.
        token_ids: one text as integers of shape (n,), without special tokens, or a sequence of such texts.
        lengths: context lengths in tokens, special tokens included; a shorter text is one window.
        only: the lengths to measure, with the masked tokens that they have among all; None: all of them.
        budget: approximate number of tokens to read for each length, over all texts.
        seed: seed of the masked tokens and of the bootstrap.
        batch_tokens: maximum tokens of one forward pass; a longer window is a batch of its own.
        positions_per_chunk: number of positions whose logits are computed at a time; None: as many as take 64 MiB.
        processes: the processes that share the work (`joined_processes()` yields them under `accelerate launch`).
        progress: called after each forward pass with the number of tokens it read.

    Returns:
        One row for each measured length, in ascending order, with protocol "masked". A length beyond the longest
        position of the model has a row without a loss, with the reason in its note.

    Raises:
        EvaluationError: an unsuitable model or tokenizer, or an invalid length or budget.
        TextTooShortError: no text has as many tokens as the longest length needs.
    """
    plans = only_of(plan_masked(tokenizer, as_texts(token_ids), lengths, budget, seed), only)
    with Reader(
        model,
        batch_tokens=batch_tokens,
        positions_per_chunk=positions_per_chunk,
        processes=processes,
        progress=progress,
    ) as reader:
        _ = reader.masked_head
        return [measure_masked(reader, length, windows, seed) for length, windows in plans.items()]


def plan_masked(
    tokenizer: Any, texts: Sequence[Tensor], lengths: Sequence[int], budget: int, seed: int
) -> dict[int, list[MaskedWindow]]:
    """Choose the masked tokens, and for every length the windows that contain them.

    Raises:
        EvaluationError: a tokenizer without a mask token, or an invalid length or budget.
        TextTooShortError: no text has as many tokens as the longest length needs.
    """
    if tokenizer.mask_token_id is None:
        raise UnmeasurableError("this tokenizer has no mask token, so there is no masked-token loss to measure.")
    frame = special_tokens(tokenizer)
    around = len(frame[0]) + len(frame[1])
    ordered = check_lengths(lengths)
    if ordered[0] <= around + 1:
        raise EvaluationError(
            f"length {ordered[0]} leaves no room for context between the {around} special tokens. Give at least "
            f"{around + 2}."
        )
    generator = torch.Generator().manual_seed(seed)
    never = torch.tensor(tokenizer.all_special_ids)
    plans: dict[int, list[MaskedWindow]] = {length: [] for length in ordered}
    longest = ordered[-1]
    places, share = share_out([len(text) for text in texts], longest, budget, around)
    count = max(1, share // longest)
    for stretch in (stretch for place in places for stretch in _stretches(texts[place], longest - around, count)):
        chosen = choose_masked(stretch, never, generator)
        hidden = stretch.masked_fill(chosen, tokenizer.mask_token_id)
        for length in ordered:
            plans[length] += _windows(stretch, hidden, chosen, min(length - around, len(stretch)), frame)
    if not any(plans.values()):
        raise UnmeasurableError("the text has nothing but special tokens, so nothing can be masked.")
    return plans


def _stretches(text: Tensor, inner: int, count: int) -> Iterator[Tensor]:
    """Yield up to `count` stretches of `inner` tokens, evenly spread over a text; a shorter text is one stretch."""
    if len(text) <= inner:
        yield text
        return
    for start in spread(len(text) - inner, count, apart=inner):
        yield text[start : start + inner]


def measure_masked(reader: Reader, length: int, windows: Sequence[MaskedWindow], seed: int) -> LengthRow:
    """Measure one length over all texts."""
    started = time.perf_counter()
    try:
        losses = _masked_losses(reader, length, windows)
    except PositionError as error:
        return gap_row(PROTOCOL, length, str(error))
    return length_row(PROTOCOL, length, losses, seed, time.perf_counter() - started)


def _masked_losses(reader: Reader, length: int, windows: Sequence[MaskedWindow]) -> list[Tensor]:
    """Return the losses of each window's targets, float32 (targets,)."""
    reader.require_length(length)

    def read(batch: list[MaskedWindow]) -> list[Tensor]:
        ids = torch.stack([window.ids for window in batch]).to(reader.device)
        hidden = last_hidden(base_model_of(reader.model), ids)
        counts = [len(window.places) for window in batch]
        rows = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor(counts)).to(hidden.device)
        places = torch.cat([window.places for window in batch]).to(hidden.device)
        targets = torch.cat([window.targets for window in batch]).to(hidden.device)
        losses = losses_of_hidden(reader.masked_head, hidden[rows, places], targets, reader.positions_per_chunk)
        reader.was_read(ids)
        return list(losses.split(counts))

    return reader.read_alike(windows, lambda window: (len(window.ids),), read)


def _windows(
    stretch: Tensor, hidden: Tensor, chosen: Tensor, inner: int, frame: tuple[list[int], list[int]]
) -> list[MaskedWindow]:
    """Split a stretch into windows of `inner` tokens; the last one may overlap, but scores only new tokens."""
    first, last = (torch.tensor(ids, dtype=torch.int64) for ids in frame)
    windows = []
    for new in range(0, len(stretch), inner):
        start = min(new, len(stretch) - inner)
        places = chosen[new : start + inner].nonzero().flatten() + new
        if len(places):
            ids = torch.cat([first, hidden[start : start + inner], last])
            windows.append(MaskedWindow(ids, places - start + len(first), stretch[places]))
    return windows
