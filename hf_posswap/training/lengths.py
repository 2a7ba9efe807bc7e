"""Texts of many lengths for an encoder, whose users embed a sentence as well as a page."""

from typing import Any

import torch

from hf_posswap.swapped.tokenizers import special_tokens
from hf_posswap.training.options import HealingError
from hf_posswap.training.texts import Window


class Lengths:
    """Cuts a batch of windows into texts of one length, drawn anew for each batch.

    A model that only ever reads full windows never learns how its scheme acts among few tokens: the beginning of a long
    text is no short text to an encoder, which sees the rest of it, too. All texts of a batch are equally long, so that
    nothing is padded, and a batch of shorter texts has more of them.

    Args:
        length: tokens of a window.
        shortest: tokens of the shortest texts.
        tokenizer: the model's tokenizer.

    Raises:
        HealingError: `shortest` is more than `length`, or leaves no room between the special tokens.
    """

    def __init__(self, length: int, shortest: int, tokenizer: Any) -> None:
        self.first, self.last = special_tokens(tokenizer)
        least = len(self.first) + len(self.last) + 1
        if not least <= shortest <= length:
            raise HealingError(
                f"shortest_length is {shortest}; at length {length} it must be between {least} and {length}."
            )
        self.choices = [length]
        while self.choices[-1] // 2 >= shortest:
            self.choices.append(self.choices[-1] // 2)

    def cut(self, windows: list[Window], generator: torch.Generator) -> list[Window]:
        """Return a batch's windows, cut into texts of one of the lengths; without a choice, nothing is drawn."""
        if len(self.choices) == 1:
            return windows
        chosen = self.choices[int(torch.randint(len(self.choices), (), generator=generator))]
        return [part for window in windows for part in self._parts(window, chosen)]

    def _parts(self, window: Window, length: int) -> list[Window]:
        """Return the whole texts of this length in a window, or the window if it is shorter."""
        if len(window.ids) <= length:
            return [window]
        inside = window.ids[len(self.first) : len(window.ids) - len(self.last)]
        room = length - len(self.first) - len(self.last)
        starts = range(0, len(inside) - room + 1, room)
        texts = ([*self.first, *inside[start : start + room], *self.last] for start in starts)
        return [Window(ids, list(range(length))) for ids in texts]
