"""One scheme, one look, for every kind of colour vision."""

import math
import re
from itertools import combinations

import pytest

from hf_posswap.reporting.colours import chosen_colours, colour_of, looks
from hf_posswap.schemes import list_schemes

PAPER, DARK_PAPER = "#FFFFFF", "#15181D"
# Machado, Oliveira and Fernandes 2009, severity 1: how dichromats see linear RGB.
VISIONS = {
    "full": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}


def linear(colour: str) -> list[float]:
    channels = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def seen(colour: str, vision: str) -> tuple[float, float, float]:
    """Coordinates in Oklab, where distances are what an eye makes of them."""
    r, g, b = (
        min(1.0, max(0.0, sum(weight * c for weight, c in zip(row, linear(colour), strict=True))))
        for row in VISIONS[vision]
    )
    cones = (
        (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3),
        (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3),
        (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3),
    )
    return (
        0.2104542553 * cones[0] + 0.7936177850 * cones[1] - 0.0040720468 * cones[2],
        1.9779984951 * cones[0] - 2.4285922050 * cones[1] + 0.4505937099 * cones[2],
        0.0259040371 * cones[0] + 0.7827717662 * cones[1] - 0.8086757660 * cones[2],
    )


def contrast(one: str, other: str) -> float:
    """Contrast ratio as the W3C defines it."""
    low, high = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (linear(colour) for colour in (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_registered_schemes_have_looks_of_their_own() -> None:
    names = ["stock", *list_schemes()]
    colours = [colour_of(name) for name in names]
    assert all(re.fullmatch("#[0-9A-F]{6}", colour) for colour in colours)
    # Colours that colour-blind readers can tell apart are few; the marker tells what shares one.
    drawn = {name: (look.colour, look.marker) for name, look in looks(names).items()}
    assert not [(one, two) for one, two in combinations(names, 2) if drawn[one] == drawn[two]]


def test_colours_are_chosen_for_schemes_that_exist_and_for_no_other() -> None:
    assert set(chosen_colours()) <= set(list_schemes())


@pytest.mark.parametrize("vision", VISIONS)
def test_chosen_colours_stay_apart(vision: str) -> None:
    near = {
        (one, two): math.dist(seen(colour, vision), seen(other, vision))
        for (one, colour), (two, other) in combinations(chosen_colours().items(), 2)
    }
    closest = min(near, key=lambda pair: near[pair])
    assert near[closest] > 0.055, (closest, near[closest])  # about three just noticeable differences


def test_chosen_colours_show_on_white_and_on_the_dark_page() -> None:
    for name, colour in chosen_colours().items():
        assert contrast(colour, PAPER) > 2.1, name
        assert contrast(colour, DARK_PAPER) > 2.1, name


def test_a_scheme_has_the_same_colour_whatever_stands_beside_it() -> None:
    assert looks(["rope", "t5"])["t5"] == looks(["stock", "alibi", "t5"])["t5"]


def test_variants_share_the_colour_and_differ_in_line() -> None:
    styles = looks(["rope:yarn", "rope", "rope:linear:factor=4"])
    assert {look.colour for look in styles.values()} == {colour_of("rope")}
    assert len({look.dash for look in styles.values()}) == 3
    assert styles["rope"].dash == ()
    assert styles["rope:yarn"].hollow


def test_the_control_is_the_stock_model_dashed() -> None:
    styles = looks(["stock", "control"])
    assert styles["stock"].colour == styles["control"].colour
    assert styles["stock"].dash == ()
    assert styles["control"].dash


def test_a_scheme_nobody_chose_a_colour_for_gets_the_same_one_in_every_run() -> None:
    assert colour_of("my_new_scheme:option=1") == "#AA4499"


def test_schemes_whose_names_have_the_same_hash_are_told_apart_in_a_figure() -> None:
    assert colour_of("cope") == colour_of("xpos")
    for names in (["cope", "xpos"], ["xpos", "rope", "cope"]):
        found = looks(names)
        assert (found["cope"].colour, found["cope"].marker) != (found["xpos"].colour, found["xpos"].marker)
    assert looks(["xpos", "cope"])["xpos"] == looks(["cope", "xpos"])["xpos"]
    assert looks(["xpos"])["xpos"].marker == looks(["cope"])["cope"].marker
