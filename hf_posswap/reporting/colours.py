"""One look for each positional scheme in every figure: colours that colour-blind readers can tell apart, and markers.

Colours are those of Okabe and Ito (2008), then of Paul Tol's muted scheme. A variant of a scheme, such as rope:yarn,
keeps its scheme's colour and changes its line.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

STOCK = "stock"

_OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F")
_MUTED = ("#882255", "#117733", "#44AA99", "#AA4499", "#999933", "#CC6677", "#88CCEE")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_VARIANT_LINES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

# The schemes that are compared most often, so that no two of them share a colour. A scheme that is not here gets one
# from its name, and needs no entry.
_CHOSEN = {
    name: (_OKABE_ITO[index], _MARKERS[index])
    for index, name in enumerate(("rope", "alibi", "t5", "none", "learned", "sinusoidal", "shaw"))
} | {"transformer_xl": ("#332288", "P")}


@dataclass(frozen=True)
class Look:
    """How a scheme is drawn.

    Attributes:
        colour: as #RRGGBB.
        marker: a matplotlib marker.
        line: a matplotlib line style.
    """

    colour: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]


def colour_of(scheme: str) -> str:
    """Return the colour of a scheme, given its name or a specification such as "rope:yarn"."""
    return _base(scheme.partition(":")[0])[0]


def looks(schemes: Sequence[str]) -> dict[str, Look]:
    """Return how each of the schemes of one figure is drawn; variants of a scheme differ in line and filling."""
    result: dict[str, Look] = {}
    variants: dict[str, int] = {}
    for scheme in schemes:
        name, colon, _ = scheme.partition(":")
        colour, marker = _base(name)
        if colon:
            variants[name] = variants.get(name, -1) + 1
            result[scheme] = Look(colour, marker, _VARIANT_LINES[variants[name] % len(_VARIANT_LINES)])
        else:
            result[scheme] = Look(colour, marker, "-")
    return result


def _base(name: str) -> tuple[str, str]:
    """Colour and marker of a scheme: chosen by hand, or picked by a hash that is the same in every run."""
    if name == STOCK:
        return "#000000", "o"
    if name in _CHOSEN:
        return _CHOSEN[name]
    digest = zlib.crc32(name.encode())
    return _MUTED[digest % len(_MUTED)], _MARKERS[digest // len(_MUTED) % len(_MARKERS)]
