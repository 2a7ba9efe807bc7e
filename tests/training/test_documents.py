"""Texts that are learned from, and those that are measured on, which are never the same."""

import pytest

from hf_posswap.training.documents import Texts, require_apart
from hf_posswap.training.options import HealingError


def texts(**contents: str) -> Texts:
    return list(contents.values()), [{"name": name} for name in contents]


def test_different_texts_are_apart() -> None:
    require_apart(texts(a="One sea."), texts(b="Another sea.", c="No sea."))
    require_apart(texts(a="One sea."), texts())
    require_apart(texts(), texts(b="One sea."))


@pytest.mark.parametrize("learned", ["One sea.", "One\nsea.", "Before. One  sea. After.", "sea."])
def test_a_text_is_recognised_whole_in_parts_and_set_anew(learned: str) -> None:
    with pytest.raises(HealingError, match="text 'a' is measured on, and 'b', which is learned from, has the same"):
        require_apart(texts(a="One sea."), texts(c="Nothing.", b=learned))
