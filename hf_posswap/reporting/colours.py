"""The colour, marker and line of each positional scheme, the same in every figure and safe for colour-blind readers.

The first six colours are those of Okabe and Ito (2008). The others were chosen to differ from them and from each other
with full, protan and deutan vision, and to be visible on white and on the dark page. A variant of a scheme, such as
rope:yarn, has its scheme's colour and another line.
"""

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hf_posswap.results.kinds import CONTROL, STOCK

INK = "#000000"
"""Colour of the stock model and its control: that of the text, so white on a dark page."""

_MUTED = ("#882255", "#117733", "#44AA99", "#AA4499", "#999933", "#CC6677", "#88CCEE")
"""Paul Tol's muted colours, for schemes that have no entry below."""
SAW = "M-.5,-.2L-.2,-.5L0,-.3L.2,-.5L.5,-.2L.3,0L.5,.2L.2,.5L0,.3L-.2,.5L-.5,.2L-.3,0Z"
"""A diagonal cross, which Vega has no name for."""
_MARKERS = (
    "circle", "square", "triangle-up", "diamond", "triangle-down", "cross", SAW, "triangle-left", "triangle-right",
)  # fmt: skip
_DASHED = (7.0, 3.5)
_VARIANT_DASHES = (_DASHED, (9.0, 3.0, 2.0, 3.0), (2.0, 3.0), (10.0, 3.0, 2.0, 3.0, 2.0, 3.0))

# The schemes that are compared most often, so that no two of them share a colour. A scheme without an entry gets a
# colour by a hash of its name.
_CHOSEN = {
    "rope": ("#0072B2", "circle"),
    "alibi": ("#D55E00", "square"),
    "t5": ("#009E73", "triangle-up"),
    "none": ("#CC79A7", "diamond"),
    "learned": ("#E69F00", "triangle-down"),
    "sinusoidal": ("#56B4E9", "cross"),
    "shaw": ("#843C48", SAW),
    "transformer_xl": ("#5430D8", "triangle-left"),
    "relative_bias": ("#006C78", "triangle-right"),
    "kerple": ("#7FBF7F", "circle"),
    "sandwich": ("#6C90F0", "triangle-up"),
}

SEQUENTIAL = ("#00204D", "#213D6B", "#555B6C", "#7B7A77", "#A59C74", "#D3C064", "#FFE945")
"""Cividis, from 0 to 1: uniform in brightness for all kinds of colour vision."""
DIVERGING = ("#2166AC", "#4393C3", "#92C5DE", "#D1E5F0", "#F7F7F7", "#FDDBC7", "#F4A582", "#D6604D", "#B2182B")
"""ColorBrewer's diverging colours from blue to red, with the middle at 0."""


@dataclass(frozen=True)
class Look:
    """The style in which a scheme is drawn.

    Attributes:
        colour: as #RRGGBB.
        marker: name of a shape of Vega, or an SVG path within ±0.5.
        dash: lengths of dashes and gaps of the line in pixels; empty: solid.
    """

    colour: str
    marker: str
    dash: tuple[float, ...] = ()

    @property
    def hollow(self) -> bool:
        """Whether markers are drawn unfilled, as they are for variants."""
        return bool(self.dash)


def colour_of(scheme: str) -> str:
    """Return the colour of a scheme, given its name or a specification such as "rope:yarn"."""
    return _base(scheme.partition(":")[0])[0]


def chosen_colours() -> dict[str, str]:
    """Return the manually chosen colours, by scheme."""
    return {name: colour for name, (colour, _) in _CHOSEN.items()}


def looks(schemes: Sequence[str]) -> dict[str, Look]:
    """Return the style of each scheme of one figure; variants of a scheme differ in line and filling."""
    result: dict[str, Look] = {}
    variants: dict[str, int] = {}
    bases = _apart({scheme.partition(":")[0] for scheme in schemes})
    for scheme in schemes:
        name, colon, _ = scheme.partition(":")
        colour, marker = bases[name]
        if colon:
            variants[name] = variants.get(name, -1) + 1
            result[scheme] = Look(colour, marker, _VARIANT_DASHES[variants[name] % len(_VARIANT_DASHES)])
        else:
            result[scheme] = Look(colour, marker, _DASHED if scheme == CONTROL else ())
    return result


def _apart(names: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return the colour and marker of each name; of two that would look the same, the later one by name gets another.

    STOCK and CONTROL share theirs, and differ in line.
    """
    found: dict[str, tuple[str, str]] = {}
    # Chosen looks first, so that no hash takes one of them.
    for name in sorted(names, key=lambda name: (name not in (STOCK, CONTROL, *_CHOSEN), name)):
        colour, marker = _base(name)
        place = _MARKERS.index(marker)
        markers = [*_MARKERS[place:], *_MARKERS[:place]]
        free = [other for other in markers if (colour, other) not in found.values()]
        found[name] = (colour, marker if name in (STOCK, CONTROL) or not free else free[0])
    return found


def _base(name: str) -> tuple[str, str]:
    """Return the colour and marker of a scheme: manually chosen, or by a hash that is the same in every run."""
    if name in (STOCK, CONTROL):
        return INK, "circle"
    if name in _CHOSEN:
        return _CHOSEN[name]
    digest = zlib.crc32(name.encode())
    return _MUTED[digest % len(_MUTED)], _MARKERS[digest // len(_MUTED) % len(_MARKERS)]
