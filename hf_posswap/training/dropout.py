"""Doing without dropout where the stock model's outputs are to be met: to them it is noise."""

from collections.abc import Iterator
from typing import Any

from torch import nn

ATTRIBUTE = "attention_dropout"
"""Where attention modules without an `nn.Dropout` of their own keep their probability."""


class Dropouts:
    """The probabilities of all dropout in a model, without that of adapters, whose users chose it for them.

    Args:
        model: a transformers model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.found = [(module, name, getattr(module, name)) for module, name in _places(model)]

    def turn_off(self) -> None:
        """Set all of them to 0."""
        for module, name, _ in self.found:
            setattr(module, name, 0.0)

    def put_back(self) -> None:
        """Set all of them to what they were."""
        for module, name, probability in self.found:
            setattr(module, name, probability)


def _places(model: nn.Module) -> Iterator[tuple[Any, str]]:
    for path, module in model.named_modules():
        if any(part.endswith("lora_dropout") for part in path.split(".")):
            continue
        if isinstance(module, nn.Dropout):
            yield module, "p"
        elif isinstance(getattr(module, ATTRIBUTE, None), float):
            yield module, ATTRIBUTE
