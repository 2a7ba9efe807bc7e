"""Turns dropout off, for training towards the stock model's outputs, where dropout only adds noise."""

from collections.abc import Iterator
from typing import Any

from torch import nn

ATTRIBUTE = "attention_dropout"
"""Attribute in which attention modules without an `nn.Dropout` store their dropout probability."""


class Dropouts:
    """The probabilities of all dropout in a model, except that of adapters, which their users chose.

    Args:
        model: a transformers model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.found = [(module, name, getattr(module, name)) for module, name in _places(model)]

    def turn_off(self) -> None:
        """Set all probabilities to 0."""
        for module, name, _ in self.found:
            setattr(module, name, 0.0)

    def put_back(self) -> None:
        """Restore the original probabilities."""
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
