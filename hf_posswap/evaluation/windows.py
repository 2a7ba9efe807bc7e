"""Chooses, for each length, the windows of a text that are read and the tokens in them that are scored.

"windows" and "same-targets" complement each other, because either alone can mislead. "windows" splits a text into
windows of the given length (as in the ALiBi paper, 2108.12409 §3). It scores every token, but tokens in shorter windows
have less context, so longer windows look better even if a model uses nothing beyond the train length. "same-targets"
scores **the same target tokens** with increasing context before them, which isolates the value of the context: at
length L a target has between L/2 and L − 1 tokens before it. "sliding" moves a window of the given length by a stride
(as in the YaRN paper, 2309.00071): it scores every token once, with at least L − stride tokens of context, except those
in a region's first window. In all protocols every length covers the same part of the text.

A document shorter than a length is read as a whole at that length: windows never cross documents, and the scored tokens
stay the same.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, get_args

from hf_posswap.evaluation.errors import EvaluationError, TextTooShortError

Protocol = Literal["windows", "same-targets", "sliding"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
USUAL_PROTOCOLS: tuple[Protocol, ...] = ("windows", "same-targets")
"""The protocols that cost one or two tokens read for each token scored; "sliding" costs length / stride."""
LEAST_DOCUMENTS = 8
"""Minimum number of documents to read, for any budget: a mean over fewer is not representative."""


@dataclass(frozen=True)
class Span:
    """A contiguous part of a text that the model reads in one sequence.

    Attributes:
        start: index in the text of the first token.
        stop: index after the last token.
        first_target: index in the text of the first scored token; all tokens from there to `stop` are scored.
    """

    start: int
    stop: int
    first_target: int

    @property
    def size(self) -> int:
        """Number of tokens read."""
        return self.stop - self.start

    @property
    def targets(self) -> int:
        """Number of tokens scored."""
        return self.stop - self.first_target


def plan_documents(
    protocol: Protocol,
    document_tokens: Sequence[int],
    lengths: Sequence[int],
    budget: int,
    stride: int | None = None,
) -> dict[int, list[tuple[int, list[Span]]]]:
    """Choose the documents to read, and in each the windows of every length.

    Args:
        protocol: "windows", "same-targets" or "sliding".
        document_tokens: number of tokens of each document.
        lengths: window lengths in tokens; a document shorter than a length is one window.
        budget: approximate number of tokens to read for each length, over all documents. If they have more, a sample of
            documents is read, evenly spread over all of them. "sliding" scores so many tokens, and reads more.
        stride: tokens by which the windows of "sliding" move; None: half of the shortest length.

    Returns:
        For each length, the indices of the documents to read, each with its windows.

    Raises:
        EvaluationError: see `plan`.
        TextTooShortError: no document has as many tokens as the longest length.
    """
    ordered = check_lengths(lengths)
    places, share = share_out(document_tokens, ordered[-1], budget)
    plans = [(place, _plan_document(protocol, document_tokens[place], ordered, share, stride)) for place in places]
    return {length: [(place, windows[length]) for place, windows in plans] for length in ordered}


def share_out(document_tokens: Sequence[int], longest: int, budget: int, around: int = 0) -> tuple[list[int], int]:
    """Return the indices of the documents to read, and the budget for each.

    Args:
        document_tokens: number of tokens of each document, without special tokens.
        longest: the longest length.
        budget: tokens to read, over all documents.
        around: number of special tokens around each window. Documents with fewer than two other tokens are left out.

    Raises:
        EvaluationError: a budget below 1.
        TextTooShortError: no document has as many tokens as the longest length needs.
    """
    if budget < 1:
        raise EvaluationError(f"the budget is {budget} tokens. Give a number of tokens of at least 1.")
    most = max(document_tokens)
    if most + around < longest:
        what = "the text has" if len(document_tokens) == 1 else f"the longest of {len(document_tokens)} documents has"
        besides = f" besides the {around} special tokens" if around else ""
        raise TextTooShortError(
            f"{what} {most} tokens, and length {longest} needs at least {longest - around}{besides}. "
            f"Give a longer text or lengths up to {most + around}."
        )
    readable = [place for place, tokens in enumerate(document_tokens) if tokens >= 2]
    each = fmean(min(document_tokens[place] + around, longest) for place in readable)
    count = min(len(readable), max(LEAST_DOCUMENTS, int(budget / each)))
    places = [readable[number * len(readable) // count] for number in range(count)]
    return places, max(1, budget // count)


def _plan_document(
    protocol: Protocol, tokens: int, lengths: Sequence[int], budget: int, stride: int | None
) -> dict[int, list[Span]]:
    """Choose the windows of one document; a document shorter than the longest length is read completely."""
    if tokens >= lengths[-1]:
        return plan(protocol, tokens, lengths, budget, stride)
    found = {length: min(length, tokens) for length in lengths}
    if protocol == "same-targets":
        plans = plan(protocol, tokens, sorted(set(found.values())), tokens)
        return {length: plans[size] for length, size in found.items()}
    if protocol == "sliding":
        step = checked_stride(stride, lengths)
        return {length: _slide(0, tokens, size, step) for length, size in found.items()}
    return {length: _cut_whole(tokens, size) for length, size in found.items()}


def _cut_whole(tokens: int, size: int) -> list[Span]:
    """Cut a document into windows of `size`; the last may be shorter, but has at least two tokens."""
    starts = range(0, tokens - 1, size)
    return [Span(start, min(start + size, tokens), start + 1) for start in starts]


def plan(
    protocol: Protocol, text_tokens: int, lengths: Sequence[int], budget: int, stride: int | None = None
) -> dict[int, list[Span]]:
    """Choose the windows of every length.

    Args:
        protocol: "windows" or "same-targets".
        text_tokens: number of tokens of the text.
        lengths: window lengths, in tokens.
        budget: approximate number of tokens to read for each length; at least one window of the longest length is
            always read.
        stride: tokens by which the windows of "sliding" move; None: half of the shortest length.

    Raises:
        EvaluationError: an unknown protocol, a length below 2, no length, or a stride that is no part of a window.
        TextTooShortError: the text has fewer tokens than the longest length.
    """
    if protocol not in PROTOCOLS:
        raise EvaluationError(f"unknown protocol {protocol!r}. Allowed: {', '.join(PROTOCOLS)}.")
    ordered = check_lengths(lengths)
    if budget < 1:
        raise EvaluationError(f"the budget is {budget} tokens. Give a number of tokens of at least 1.")
    longest = ordered[-1]
    if text_tokens < longest:
        raise TextTooShortError(
            f"the text has {text_tokens} tokens, and length {longest} needs at least {longest}. "
            f"Give a longer text or lengths up to {text_tokens}."
        )
    if protocol == "windows":
        return _plan_windows(text_tokens, ordered, budget)
    if protocol == "sliding":
        return _plan_sliding(text_tokens, ordered, budget, checked_stride(stride, ordered))
    return _plan_same_targets(text_tokens, ordered, budget)


def check_lengths(lengths: Sequence[int]) -> list[int]:
    """Return `lengths` sorted and without repetitions.

    Raises:
        EvaluationError: there is no length, or one below 2 (a window of one token has no target).
    """
    if not isinstance(lengths, Iterable):
        raise EvaluationError(f"lengths is {lengths!r}. Give a list of numbers of tokens, such as [256].")
    ordered = sorted(set(lengths))
    if not ordered:
        raise EvaluationError("no length given. Give at least one number of tokens, such as 256.")
    if ordered[0] < 2:
        raise EvaluationError(
            f"length {ordered[0]} is too short: a window of fewer than 2 tokens has nothing to predict. "
            "Give lengths of at least 2 tokens."
        )
    return ordered


def checked_stride(stride: int | None, lengths: Sequence[int]) -> int:
    """Return the stride of "sliding", by default half of the shortest length.

    Raises:
        EvaluationError: the stride is below 1, or as long as a window, whose first targets would have no context.
    """
    shortest = min(lengths)
    if stride is None:
        return shortest // 2
    if not 1 <= stride < shortest:
        raise EvaluationError(
            f"the stride is {stride} tokens, and the shortest window has {shortest}. Give a stride from 1 to "
            f"{shortest - 1}, or longer lengths."
        )
    return stride


def _plan_windows(text_tokens: int, lengths: Sequence[int], budget: int) -> dict[int, list[Span]]:
    """Split regions of the longest length, evenly spread over the text, into non-overlapping windows."""
    longest = lengths[-1]
    return {
        length: [
            Span(start, start + length, start + 1)
            for region in _regions(text_tokens, longest, budget)
            for start in range(region, region + longest - length + 1, length)
        ]
        for length in lengths
    }


def _plan_sliding(text_tokens: int, lengths: Sequence[int], budget: int, stride: int) -> dict[int, list[Span]]:
    """Slide windows over regions of the longest length, evenly spread over the text."""
    longest = lengths[-1]
    return {
        length: [
            window
            for region in _regions(text_tokens, longest, budget)
            for window in _slide(region, region + longest, length, stride)
        ]
        for length in lengths
    }


def _regions(text_tokens: int, longest: int, budget: int) -> list[int]:
    """Return the starts of regions of the longest length, evenly spread over the text."""
    return spread(text_tokens - longest, count=max(1, budget // longest), apart=longest)


def _slide(start: int, stop: int, size: int, stride: int) -> list[Span]:
    """Return windows of `size` that score every token of start…stop−1 but the first once, `stride` new ones each."""
    blocks = _blocks(start + size, stop, stride)
    return [Span(start, start + size, start + 1), *(Span(end - size, end, first) for first, end in blocks)]


def _plan_same_targets(text_tokens: int, lengths: Sequence[int], budget: int) -> dict[int, list[Span]]:
    """Choose regions, evenly spread over the text, and score the second half of each at every length.

    At length L the targets are split into blocks of L/2 tokens, each read with the tokens before it, so that a target
    has between L/2 and L − 1 tokens of context. At the longest length one window holds a whole region.
    """
    longest = lengths[-1]
    targets = longest // 2
    stops = [
        offset + longest for offset in spread(text_tokens - longest, count=max(1, budget // longest), apart=targets)
    ]
    return {
        length: [
            Span(block_stop - length, block_stop, first_target)
            for stop in stops
            for first_target, block_stop in _blocks(stop - targets, stop, length // 2)
        ]
        for length in lengths
    }


def _blocks(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """Split start…stop−1 into blocks of `size`, the last of which may be shorter."""
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]


def spread(room: int, count: int, apart: int) -> list[int]:
    """Return up to `count` offsets between 0 and `room`, both included, evenly spread and at least `apart` apart."""
    count = min(count, room // apart + 1)
    if count == 1:
        return [room // 2]
    return [index * room // (count - 1) for index in range(count)]
