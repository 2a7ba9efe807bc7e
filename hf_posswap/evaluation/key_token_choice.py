"""Key tokens: the tokens whose prediction gains from long context, by the judgement of the stock model.

Most tokens of a text are predicted from a few tokens before them, so the mean loss hardly shows whether a model uses
long context (LongPPL, Fang et al., 2410.23771). A token is a key token if the stock model predicts it well from long
context, log p(long) > −2, and much better than from short context, log p(long) − log p(short) > 2: the paper's
criterion and thresholds, made for larger models. The candidates are the targets of protocol "same-targets". The long
context is that of the protocol at the train length, or at the longest length if that is shorter: half of it or more.
The short context is an eighth of the long one; a quarter of that many tokens share it, as in the authors' package.

The stock model chooses the tokens, so every swapped model is measured on the same ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.perplexity import PlannedText, plan_texts, window_losses
from hf_posswap.evaluation.processes import ALONE, Processes
from hf_posswap.evaluation.reading import Progress, Reader
from hf_posswap.evaluation.settings import GAIN
from hf_posswap.evaluation.texts import TokenIds, as_texts
from hf_posswap.evaluation.windows import Span, check_lengths
from hf_posswap.swapped.questions import is_swapped, train_length

LEAST = -2.0
"""Default least log p(long) of a key token, in nats: β of the paper."""
SHORTER = 8
"""The long context is so many times the short one, as 32k and 4k in the paper."""
SHARING = 4
"""The tokens that share a short context are one such part of it, as 1k and 4k in the paper."""


@dataclass(frozen=True)
class KeyPlan:
    """The windows that the stock model reads to choose key tokens.

    Attributes:
        long: tokens of a long window; a target has at least half of them as context.
        short: least tokens of short context.
        long_windows: the long windows of each text.
        short_windows: windows with the same targets in the same order, and with short context.
    """

    long: int
    short: int
    long_windows: list[PlannedText]
    short_windows: list[PlannedText]

    @property
    def tokens(self) -> int:
        """Number of tokens read."""
        planned = (*self.long_windows, *self.short_windows)
        return sum(window.size for _, windows in planned for window in windows)


@torch.no_grad()
def key_tokens(
    stock: nn.Module,
    token_ids: TokenIds,
    lengths: Sequence[int],
    *,
    budget: int = 8192,
    gain: float = GAIN,
    least: float = LEAST,
    batch_tokens: int = 4096,
    positions_per_chunk: int | None = None,
    processes: Processes = ALONE,
    progress: Progress | None = None,
) -> Tensor:
    """Choose the key tokens among the targets of protocol "same-targets".

    Args:
        stock: the stock model, a causal language model.
        token_ids: one text as integers of shape (n,), or a sequence of such texts.
        lengths: the context lengths to measure at.
        budget: approximate number of tokens to read for each length, as in `perplexity_by_length`.
        gain: a key token's log p from long context is higher than that from short context by more than this, in nats.
        least: a key token's log p from long context is higher than this, in nats.
        batch_tokens: maximum tokens of one forward pass; a longer window is a batch of its own.
        positions_per_chunk: number of positions whose logits are computed at a time; None: as many as take 64 MiB.
        processes: the processes that share the work (`joined_processes()` yields them under `accelerate launch`).
        progress: called after each forward pass with the number of tokens it read.

    Returns:
        bool (targets,), True for a key token; `keys` of `perplexity_by_length` with the same texts, lengths and budget.

    Raises:
        EvaluationError: a swapped or unsuitable model, or an invalid length or budget.
        TextTooShortError: no text has as many tokens as the longest length.
    """
    if is_swapped(stock):
        raise EvaluationError(
            "key tokens are chosen by the stock model, and this one is swapped. Give the stock model."
        )
    plan = plan_keys(as_texts(token_ids), lengths, budget, train_length(stock))
    with Reader(
        stock,
        batch_tokens=batch_tokens,
        positions_per_chunk=positions_per_chunk,
        processes=processes,
        progress=progress,
    ) as reader:
        return choose(reader, plan, gain, least)


def plan_keys(texts: Sequence[Tensor], lengths: Sequence[int], budget: int, train_length: int) -> KeyPlan:
    """Choose the windows of long and of short context for the targets of protocol "same-targets".

    Args:
        texts: the texts, int64 (n,).
        lengths: the context lengths to measure at.
        budget: approximate number of tokens to read for each length, over all texts.
        train_length: length of the longest texts that the stock model was trained on.

    Raises:
        EvaluationError, TextTooShortError: see `hf_posswap.evaluation.windows.plan_documents`.
    """
    ordered = check_lengths(lengths)
    long = max(2, min(train_length, ordered[-1]))
    short = max(1, long // SHORTER)
    planned = plan_texts("same-targets", texts, [*ordered, long], budget)[long]
    shorter = [(text, [part for window in windows for part in _shortened(window, short)]) for text, windows in planned]
    return KeyPlan(long, short, planned, shorter)


def choose(reader: Reader, plan: KeyPlan, gain: float = GAIN, least: float = LEAST) -> Tensor:
    """Return which targets are key tokens, bool (targets,), by the model of the reader.

    Raises:
        PositionError: the model has too few positions for the long windows.
        UnmeasurableError: the model's head cannot be determined.
    """
    long = torch.cat(window_losses(reader, plan.long, plan.long_windows))
    short = torch.cat(window_losses(reader, plan.short, plan.short_windows))
    return (short - long > gain) & (-long > least)


def _shortened(window: Span, short: int) -> list[Span]:
    """Return windows with the same targets, each with `short` tokens before its first one, or all that there are."""
    step = max(1, short // SHARING)
    firsts = range(window.first_target, window.stop, step)
    return [Span(max(window.start, first - short), min(first + step, window.stop), first) for first in firsts]
