"""One scheme, one look."""

import re
from itertools import combinations

from hf_posswap.reporting.colours import colour_of, looks
from hf_posswap.schemes import list_schemes


def test_registered_schemes_have_looks_of_their_own() -> None:
    names = ["stock", *list_schemes()]
    colours = [colour_of(name) for name in names]
    assert all(re.fullmatch("#[0-9A-F]{6}", colour) for colour in colours)
    # Colours that colour-blind readers can tell apart are few; the marker tells what shares one.
    drawn = {name: (look.colour, look.marker) for name, look in looks(names).items()}
    assert not [(one, two) for one, two in combinations(names, 2) if drawn[one] == drawn[two]]


def test_a_scheme_has_the_same_colour_whatever_stands_beside_it() -> None:
    assert looks(["rope", "t5"])["t5"] == looks(["stock", "alibi", "t5"])["t5"]


def test_variants_share_the_colour_and_differ_in_line() -> None:
    styles = looks(["rope:yarn", "rope", "rope:linear:factor=4"])
    assert {look.colour for look in styles.values()} == {colour_of("rope")}
    assert len({look.line for look in styles.values()}) == 3
    assert styles["rope"].line == "-"


def test_a_scheme_nobody_chose_a_colour_for_gets_the_same_one_in_every_run() -> None:
    assert colour_of("my_new_scheme:option=1") == "#AA4499"
