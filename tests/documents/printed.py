"""Comparing what a program printed with what the docs say it prints."""

import re

import pytest

_NUMBER = re.compile(r"\d[\d,]*\.?\d*")


def assert_printed(actual: str, expected: str) -> None:
    """Assert that the words are the same; numbers may differ by 2%, on another CPU or with another version of torch."""
    assert _NUMBER.sub("#", actual).split() == _NUMBER.sub("#", expected).split()
    values = [[float(x.replace(",", "")) for x in _NUMBER.findall(text)] for text in (actual, expected)]
    assert values[0] == pytest.approx(values[1], rel=0.02)
