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


def lines(**contents: list[str]) -> Texts:
    facts = [{"name": name, "documents": len(documents)} for name, documents in contents.items()]
    return [document for documents in contents.values() for document in documents], facts


def test_documents_that_are_learned_from_are_counted_one_by_one() -> None:
    measured = [f"Sequence number {number}" for number in range(200)]
    learned = [f"Another one, {number}" for number in range(500)]
    require_apart(lines(a=measured), lines(b=learned))
    require_apart(lines(a=measured), lines(b=[*learned, *measured[:2]]))
    with pytest.raises(HealingError, match="20 of the 200 documents of 'a', which are measured on, are learned from"):
        require_apart(lines(a=measured), lines(c=["Nothing."], b=[*learned, *measured[::10]]))
