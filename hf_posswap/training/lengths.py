"""Training texts of various lengths for encoders, which are used on single sentences as well as on pages."""

from typing import Any

import torch

from hf_posswap.swapped.tokenizers import special_tokens
from hf_posswap.training.options import HealingError
from hf_posswap.training.texts import Window


class Lengths:
    """Cuts a batch of windows into texts of one length, which is drawn at random for each batch.

    Training on full windows only does not train an encoder's scheme on short texts: the first tokens of a long text
    attend to the rest of the text, too. All texts of a batch have the same length, so that no padding is needed, and a
    batch of shorter texts has more of them.

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
        """Return a batch's windows, cut into texts of a random length; with only one length, draw no random number."""
        if len(self.choices) == 1:
            return windows
        chosen = self.choices[int(torch.randint(len(self.choices), (), generator=generator))]
        return [part for window in windows for part in self._parts(window, chosen)]

    def _parts(self, window: Window, length: int) -> list[Window]:
        """Return the texts of exactly this length in a window, or the window itself if it is not longer."""
        if len(window.ids) <= length:
            return [window]
        inside = window.ids[len(self.first) : len(window.ids) - len(self.last)]
        room = length - len(self.first) - len(self.last)
        starts = range(0, len(inside) - room + 1, room)
        texts = ([*self.first, *inside[start : start + room], *self.last] for start in starts)
        return [Window(ids, list(range(length))) for ids in texts]
