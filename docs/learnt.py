"""Draw the figure of docs/what-we-learnt.md and write its tables, and those of the README, from docs/results.

Run `python docs/learnt.py`. With `--check` it writes nothing and fails if a page is not up to date.
"""

import math
import sys
from collections.abc import Iterable
from pathlib import Path

from learnt_figure import learnt_figure
from marked import between, markdown
from study_values import SAME, WINDOWS, Comparison, SmallStudy, Value, mean_by_position, text

from hf_posswap.reporting.colours import STOCK
from hf_posswap.reporting.figures import Table, number
from hf_posswap.reporting.images import draw
from hf_posswap.reporting.provenance import provenance_of
from hf_posswap.reporting.result_files import read_result

DOCS = Path(__file__).parent
RESULTS, SCRIPT = DOCS / "results", Path(__file__).name
STUDY = RESULTS / "study"
SHORT, LONG = 256, 4096
"""The train length of demo:gpt2, and 16 times that."""
TOKENS = 224_000
ALIBI, T5, FREE = "alibi:trainable=true:per_layer=true", "t5:per_layer=true", "relative_bias"
GENTLE_CONTROL = "control at a third of the rate"
FALLS_SHORT, RISES = 0.1, 0.05
"""Nats above the control, and between the train length and the longest one, from which on a scheme has not healed."""


def main() -> int:
    """Write figure and tables, or check the tables under `--check`; return the exit status."""
    study, small = Comparison(STUDY / "gpt2" / "compare.json"), SmallStudy(RESULTS / "study-small" / "gpt2.csv")
    llama = Comparison(RESULTS / "compare-llama.json", base=2048)
    pages = {
        DOCS / "what-we-learnt.md": {
            "measured": measured(study),
            "goals": goals(study),
            "schemes": schemes(study),
            "tokens": tokens(small),
            "early": early(study),
            "positions": positions(),
            "t5": far_keys(study, small),
            "failed": failed(study),
        },
        DOCS.parent / "README.md": {
            "caption": caption(small),
            "costs": costs(small),
            "untrained": untrained(llama),
        },
    }
    stale = []
    for path, blocks in pages.items():
        page = written = path.read_text(encoding="utf-8")
        for name, block in blocks.items():
            written = between(written, name, block, SCRIPT)
        if "--check" not in sys.argv:
            path.write_text(written, encoding="utf-8")
        elif written != page:
            stale.append(path.name)
    if stale:
        print(f"not up to date: {', '.join(stale)}. Run: make generate", file=sys.stderr)
    if "--check" not in sys.argv:
        draw(learnt_figure(study, SHORT, LONG), DOCS / "figures" / "what-we-learnt.png")
    return int(bool(stale))


def measured(study: Comparison) -> str:
    """Say what the study's numbers were measured on, and with how many seeds."""
    seeds = int(study.result["settings"]["seeds"])
    unfinished = "" if study.result["complete"] else " The comparison is not complete: a dash is a cell still to come."
    return (
        f"{provenance_of(study.group).summary()} Measured with {seeds} seed{'s' if seeds > 1 else ''}; stock is at "
        f"{text(study.loss(STOCK, STOCK, SHORT))} nats a token at {SHORT} tokens.{unfinished}"
    )


def code(scheme: str) -> str:
    """Return a scheme as text says it."""
    return f"`{scheme}`"


def lowest(study: Comparison, stage: str, length: int, among: Iterable[str] = ()) -> tuple[str, Value]:
    """Return the scheme with the least loss of all (or of some) at a stage and length."""
    found = [
        (scheme, value)
        for scheme in (among or study.schemes)
        if (value := study.above(scheme, stage, length)) is not None
    ]
    return min(found, key=lambda pair: pair[1].mean)


def goals(study: Comparison) -> str:
    """Return the table of goals: which scheme was best at what."""
    fixed = [scheme for scheme in study.schemes if study.loss(scheme, "calibrated", SHORT) is None]
    rows = []
    for goal, stage, length, among in (
        ("Heal a little, read far", "healed", LONG, ()),
        ("Heal a little, stay short", "healed", SHORT, ()),
        ("Heal a little, no parameters that calibration fits", "healed", LONG, fixed),
        ("No training, some text to calibrate on", "calibrated", LONG, ()),
        ("Nothing but the swap", "swapped", LONG, ()),
    ):
        scheme, value = lowest(study, stage, length, among)
        control = study.control()
        beside = f"; the control is at {text(control)}" if stage == "healed" and control else ""
        rows.append((goal, code(scheme), f"{text(value)} at {length} tokens, {stage}{beside}"))
    return markdown(Table(("goal", "least loss", "nats above stock"), tuple(rows)))


def schemes(study: Comparison) -> str:
    """Return every scheme at every stage, those that healed best first."""

    def place(scheme: str) -> tuple[bool, float]:
        value = study.above(scheme, "healed", LONG) or study.above(scheme, "healed", SHORT)
        return value is None, 0.0 if value is None else value.mean

    rows = [
        (
            code(scheme),
            *(text(study.above(scheme, stage, SHORT)) for stage in ("swapped", "calibrated", "healed")),
            *(text(study.above(scheme, "healed", length)) for length in (1024, LONG)),
        )
        for scheme in sorted(study.schemes, key=place)
    ]
    rows.append(("control", "0", "", text(study.control()), f"it ends at {SHORT}", ""))
    heads = ("swapped", "calibrated", f"healed, {SHORT}", "healed, 1024", f"healed, {LONG}")
    return markdown(Table(("scheme", *heads), tuple(rows)))


def tokens(small: SmallStudy) -> str:
    """Return what so many tokens of healing give, from both starts."""
    budgets = small.tokens()

    def cells(scheme: str, start: str) -> list[str]:
        pairs = [(small.above(scheme, start, n, SHORT), small.above(scheme, start, n, LONG)) for n in (0, *budgets)]
        return [text(short) + (f"; {far.mean:.3f}" if far else "") for short, far in pairs]

    rows = [
        (code(scheme), start, *cells(scheme, start))
        for scheme in (FREE, T5, ALIBI)
        for start in ("calibrated", "uncalibrated")
    ]
    rows += [(name, "", *cells(name, STOCK)) for name in ("control", GENTLE_CONTROL)]
    return markdown(Table(("scheme", "start", "0 tokens", *(f"{n:,}" for n in budgets)), tuple(rows)))


def early(study: Comparison) -> str:
    """Return how much the loss falls from the train length to the longest one, by both protocols."""
    rows = []
    for scheme in study.schemes:
        stage = study.last_stage(scheme)
        falls = [_fall(study, scheme, stage, protocol) for protocol in (WINDOWS, SAME)]
        if None not in falls:
            windows, same = (value for value in falls if value is not None)
            rows.append((code(scheme), stage, f"{windows:+.3f}", f"{same:+.3f}", f"{windows - same:+.3f}"))
    heads = ("scheme", "stage", "windows", "same targets", "the difference: early tokens")
    return markdown(Table(heads, tuple(rows)))


def _fall(study: Comparison, scheme: str, stage: str, protocol: str) -> float | None:
    short, far = (study.loss(scheme, stage, length, protocol) for length in (SHORT, LONG))
    return None if short is None or far is None else far.mean - short.mean


def positions() -> str:
    """Return the loss at the beginning of a window and after it, by length of the window."""
    rows = []
    for path in sorted((STUDY / "gpt2-positions").glob("*/positions.json")):
        found = read_result(path)["rows"]
        stretches = ((SHORT, 0, 64), (SHORT, 64, SHORT), (LONG, 0, SHORT), (LONG, SHORT, LONG))
        cells = [number(mean_by_position(found, *stretch)) for stretch in stretches]
        rows.append((code(found[0]["scheme"]), path.parent.name.replace("-", " "), *cells))
    heads = (f"{SHORT}: first 64", f"{SHORT}: the rest", f"{LONG}: first {SHORT}", f"{LONG}: the rest")
    return markdown(Table(("scheme", "run", *heads), tuple(rows)))


def far_keys(study: Comparison, small: SmallStudy) -> str:
    """Return T5's bias healed from zeros and from calibration, by length."""
    rows = [
        (code(T5), start, *(text(small.above(T5, start, TOKENS, length)) for length in (SHORT, 1024, LONG)))
        for start in ("calibrated", "uncalibrated")
    ]
    return markdown(Table(("scheme", "start", *map(str, (SHORT, 1024, LONG))), tuple(rows)))


def failed(study: Comparison) -> str:
    """List what did not heal: far above the control, or worse with length; and what does not reach the length."""
    control = study.control()
    limit = FALLS_SHORT + (control.mean if control else 0.0)
    lines = []
    for scheme in study.schemes:
        short, far = (study.above(scheme, "healed", length) for length in (SHORT, LONG))
        if short is None:
            continue
        told = []
        if short.mean > limit:
            told.append(f"{short.mean:.3f} above stock at {SHORT}")
        if far is None:
            told.append(f"it reads no {LONG} tokens")
        elif far.mean - short.mean > RISES:
            told.append(f"from {short.mean:.3f} at {SHORT} to {far.mean:.3f} at {LONG}")
        if told:
            lines.append(f"- {code(scheme)}: {'; '.join(told)}.")
    rule = (
        f"Healed on {TOKENS:,} tokens and still more than {FALLS_SHORT} nats above the control at {SHORT}, or more "
        f"than {RISES} worse at {LONG} than at {SHORT}:"
    )
    return "\n".join([rule, "", *(lines or ["- none"])])


def caption(small: SmallStudy) -> str:
    """Return the caption of the README's figure."""
    ends = [
        small.above(scheme, "calibrated", TOKENS, length) for scheme in (FREE, T5, ALIBI) for length in (SHORT, LONG)
    ]
    percent = [100 * math.expm1(value.mean) for value in ends if value is not None]
    return (
        "*Left: models trained from scratch (Press et al. 2022). Middle: one pretrained GPT-2 of 256 positions, "
        "swapped, calibrated and\nhealed on 1% of its pretraining tokens: it reads 16 times as far, at "
        f"{min(percent):.0f} to {max(percent):.0f}% more perplexity than it had. Right: the same\nswaps without "
        "healing. [How these figures are made](docs/figures.md).*"
    )


def costs(small: SmallStudy) -> str:
    """Return the README's table of what a swap costs."""
    rows = [
        (
            code(scheme),
            text(small.above(scheme, "uncalibrated", 0, SHORT)),
            text(small.above(scheme, "calibrated", 0, SHORT)),
            *(_mean(small.above(scheme, "calibrated", TOKENS, length)) for length in (SHORT, LONG)),
        )
        for scheme in (FREE, T5, ALIBI)
    ]
    control, gentle = (_mean(small.above(name, STOCK, TOKENS, SHORT)) for name in ("control", GENTLE_CONTROL))
    told = f"{control}; at a third of the rate {gentle}"
    rows.append(("control: stock, trained on the same tokens", "", "", told, f"it ends at {SHORT}"))
    heads = ("", "swapped", "calibrated", f"healed on 1%: at {SHORT}", f"at {LONG}")
    return markdown(Table(heads, tuple(rows)))


def _mean(value: Value | None) -> str:
    return "—" if value is None else f"{value.mean:.3f}"


def untrained(llama: Comparison) -> str:
    """Return the README's table of swaps without training on SmolLM2."""
    lengths = llama.result["settings"]["lengths"]
    perplexities = {
        (row["scheme"], row["length"]): row["perplexity"] for row in llama.result["rows"] if row["protocol"] == WINDOWS
    }
    rows = [
        (scheme if scheme == STOCK else code(scheme), *(f"{perplexities[scheme, length]:,.4g}" for length in lengths))
        for scheme in sorted((STOCK, *llama.schemes), key=lambda scheme: perplexities[scheme, lengths[0]])
    ]
    return markdown(Table(("scheme, untrained", *map(str, lengths)), tuple(rows)))


if __name__ == "__main__":
    sys.exit(main())
