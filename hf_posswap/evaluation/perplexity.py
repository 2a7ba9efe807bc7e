"""Loss and perplexity of a causal language model against the length of what it reads."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_posswap.errors import PositionError
from hf_posswap.evaluation.bootstrap import interval_of_mean
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.token_loss import Head, find_head, input_device, token_losses
from hf_posswap.evaluation.windows import PROTOCOLS, Protocol, Window, plan

__all__ = ["PROTOCOLS", "LengthRow", "Protocol", "gap_row", "perplexity_rows", "planned_tokens"]

Progress = Callable[[int], None]
"""Called with the number of tokens just read."""


@dataclass(frozen=True)
class LengthRow:
    """One measurement: one protocol at one length.

    Attributes:
        protocol: "windows" or "same-targets".
        length: tokens the model reads at once.
        loss: mean −ln p over all scored tokens, in nats; None where nothing could be measured, see `note`.
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


def perplexity_rows(
    model: nn.Module,
    token_ids: Tensor | Sequence[int] | Sequence[Tensor] | Sequence[Sequence[int]],
    lengths: Sequence[int],
    protocols: Sequence[Protocol] = PROTOCOLS,
    *,
    budget: int = 8192,
    seed: int = 0,
    batch_tokens: int = 4096,
    positions_per_chunk: int = 1024,
    progress: Progress | None = None,
) -> list[LengthRow]:
    """Measure loss and perplexity at each length, token-weighted.

    Window by window this is `model(ids, labels=ids).loss`, without ever holding the logits of a whole window. A length
    past the model's longest position becomes a row without a loss and with a note that says so.

    Args:
        model: a causal language model, swapped or stock. It is measured in evaluation mode and left as it was.
        token_ids: one text as integers of shape (n,), or several as a sequence of such; windows never cross texts.
        lengths: tokens to read at once.
        protocols: "windows" (non-overlapping windows), "same-targets" (the same tokens, ever longer context), or both.
        budget: about how many tokens the model may read for each length and protocol, all texts together.
        seed: of the bootstrap; windows are chosen without chance.
        batch_tokens: how many tokens may be read in one forward pass; a longer window is read alone.
        positions_per_chunk: how many positions are turned into logits at a time.
        progress: called after each forward pass with the number of tokens it read.

    Returns:
        For each protocol one row for each length, in ascending order.

    Raises:
        EvaluationError: a model, a length, a budget or a protocol that cannot be measured.
        TextTooShortError: a text has fewer tokens than the longest length.
    """
    texts = _as_texts(token_ids)
    share = max(1, budget // len(texts))
    plans = {protocol: [plan(protocol, len(text), lengths, share) for text in texts] for protocol in protocols}
    limit = _longest_position(model)
    rows = []
    with _evaluation_mode(model):
        measure = _Measure(model, find_head(model), batch_tokens, positions_per_chunk, progress)
        for protocol, of_texts in plans.items():
            for length in of_texts[0]:
                if limit is not None and length > limit:
                    rows.append(gap_row(protocol, length, f"longest position {limit}"))
                    continue
                planned = [(text, windows[length]) for text, windows in zip(texts, of_texts, strict=True)]
                rows.append(_measure_length(measure, protocol, length, planned, seed))
    return rows


def planned_tokens(text_tokens: Sequence[int], lengths: Sequence[int], protocol: Protocol, budget: int) -> int:
    """How many tokens `perplexity_rows` will read in all for texts of these lengths; for progress bars.

    Raises:
        EvaluationError: see `perplexity_rows`; asking early finds a text that is too short before a model loads.
    """
    share = max(1, budget // len(text_tokens))
    return sum(
        length * len(windows)
        for tokens in text_tokens
        for length, windows in plan(protocol, tokens, lengths, share).items()
    )


def gap_row(protocol: str, length: int, note: str) -> LengthRow:
    """Row of a length that was not measured, saying why."""
    return LengthRow(protocol, length, None, None, None, None, tokens=0, windows=0, note=note)


@dataclass(frozen=True)
class _Measure:
    """How windows are read: the model, its head, and how much of them at once."""

    model: nn.Module
    head: Head
    batch_tokens: int
    positions_per_chunk: int
    progress: Progress | None

    def window_losses(self, text: Tensor, windows: Sequence[Window]) -> list[float]:
        """Sum of the losses in each window; all windows have the same length."""
        length = windows[0].stop - windows[0].start
        device = input_device(self.model)
        sums: list[float] = []
        for batch in _batches(windows, max(1, self.batch_tokens // length)):
            ids = torch.stack([text[window.start : window.stop] for window in batch]).to(device)
            first_target = batch[0].first_target - batch[0].start
            losses = token_losses(self.model, self.head, ids, first_target, self.positions_per_chunk)
            sums += losses.double().sum(dim=1).tolist()
            if self.progress is not None:
                self.progress(ids.numel())
        return sums


def _measure_length(
    measure: _Measure, protocol: str, length: int, planned: Sequence[tuple[Tensor, list[Window]]], seed: int
) -> LengthRow:
    """Measure one length over all texts."""
    started = time.perf_counter()
    sums: list[float] = []
    counts: list[int] = []
    try:
        for text, windows in planned:
            sums += measure.window_losses(text, windows)
            counts += [window.targets for window in windows]
    except PositionError as error:
        return gap_row(protocol, length, str(error))
    loss = math.fsum(sums) / sum(counts)
    seconds = time.perf_counter() - started
    if not math.isfinite(loss):
        return gap_row(protocol, length, f"the loss is {loss}")
    low, high = interval_of_mean(sums, counts, seed) or (None, None)
    return LengthRow(
        protocol, length, loss, _perplexity(loss), low, high, sum(counts), len(sums), seconds=round(seconds, 3)
    )


def _batches(windows: Sequence[Window], size: int) -> Iterator[list[Window]]:
    """Cut the windows, in their order, into batches of up to `size` that score the same number of tokens."""
    for _, alike in itertools.groupby(windows, key=lambda window: window.targets):
        run = list(alike)
        for start in range(0, len(run), size):
            yield run[start : start + size]


def _perplexity(loss: float) -> float:
    """Exp(loss), or infinity where that is beyond a float."""
    return math.exp(loss) if loss < 700 else math.inf


def _as_texts(token_ids: Tensor | Sequence[int] | Sequence[Tensor] | Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the texts as int64 tensors of shape (n,)."""
    if isinstance(token_ids, Tensor):
        return [token_ids] if token_ids.dim() == 1 else list(token_ids)
    if len(token_ids) == 0:
        raise EvaluationError("no text given. Give at least one sequence of token ids.")
    if isinstance(token_ids[0], int):
        return [torch.tensor(token_ids, dtype=torch.int64)]
    return [torch.as_tensor(text, dtype=torch.int64) for text in token_ids]


def _longest_position(model: nn.Module) -> int | None:
    """Return the longest length the model can read, or None if there is no limit."""
    import hf_posswap

    return hf_posswap.longest_position(model)


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and back to where it was on leaving."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
