"""Draw the figures and write the tables of what was learnt, here and in the README, from docs/results.

Run `python docs/learnt.py`. With `--check` it writes nothing and fails if a page is not up to date.
"""

import math
import sys
from pathlib import Path
from statistics import fmean

from learnt_figure import CONTROL, GENTLE_CONTROL, stages_figure, tokens_figure
from learnt_healing import encoders, given, other_encoders, recipes, retrieval, small_batches
from learnt_llama import healed, passkeys, ruler, runs, swaps
from learnt_training_free import losses
from marked import between, markdown
from study_values import (
    ALIBI,
    CALIBRATED_SCHEMES,
    LONG,
    SAME,
    SHORT,
    SWAPPED_STAGES,
    T5,
    TOKENS,
    WINDOWS,
    Comparison,
    Evidence,
    SmallStudy,
    mean_by_position,
    rate_text,
    text,
)

from hf_posswap.reporting.figures import Table, number
from hf_posswap.reporting.images import draw
from hf_posswap.reporting.provenance import provenance_of
from hf_posswap.results.kinds import STOCK
from hf_posswap.results.points import Point
from hf_posswap.results.reading import read_result

DOCS = Path(__file__).parent
RESULTS, SCRIPT = DOCS / "results", Path(__file__).name
STUDY, TRAINING_FREE = RESULTS / "study", RESULTS / "training-free"
COMPARED = ("gpt2", "gpt2-higher-rate", "gpt2-gates", "gpt2-one-seed")
"""The comparisons of schemes on demo:gpt2; the first has the most seeds and the stock model's text."""
RUNS = {
    "stock": (STOCK, STOCK),
    "none": ("none", "swapped"),
    "alibi": ("alibi", "swapped"),
    "alibi-healed": (ALIBI, "calibrated, healed"),
    "t5-healed": (T5, "calibrated, healed"),
    "t5-from-zeros-healed": (T5, "from zeros, healed"),
}
"""What is in the folders of gpt2-positions: evaluate names a checkpoint's scheme without its options."""
FAR_DISTANCES = (0, 1, 4, 16, 64, 256, 1024)
FALLS_SHORT, RISES = 0.1, 0.05
"""Nats above the control, and between the train length and the longest one, from which on a scheme has not healed."""


def main() -> int:
    """Write figure and tables, or check the tables under `--check`; return the exit status."""
    studies = [Comparison(path) for folder in COMPARED if (path := STUDY / folder / "compare.json").is_file()]
    small = SmallStudy(RESULTS / "study-small" / "gpt2.csv")
    evidence = Evidence(studies, small, TOKENS)
    llama = Comparison(RESULTS / "compare-llama.json", base=2048)
    pages = {
        DOCS / "what-we-learnt.md": {
            "measured": measured(evidence),
            "goals": goals(evidence),
            "schemes": schemes(evidence),
            "llama": swaps(STUDY / "llama"),
            "untrained": untrained(llama),
            "llama-healed": healed(STUDY / "llama-healed-little"),
            "llama-runs": runs(STUDY / "models"),
            "llama-passkey": passkeys(STUDY / "llama-passkey"),
            "llama-ruler": ruler(STUDY / "llama-ruler"),
            "retrieval": retrieval(STUDY / "bert-retrieval"),
            "mpnet-retrieval": retrieval(STUDY / "mpnet-retrieval"),
        },
        DOCS / "study-in-detail.md": {
            "rates": rates(evidence),
            "tokens": tokens(small),
            "saved": saved(small),
            "early": early(evidence, llama),
            "positions": positions(),
            "t5": far_keys(small) + "\n" + far_bias(),
            "failed": failed(evidence),
        },
        DOCS / "using.md": {
            "hybrids": swaps(STUDY / "llama-hybrid", ("swapped",)),
            "training-free-llama": losses(TRAINING_FREE / "llama.csv", TRAINING_FREE / "llama-passkeys.csv"),
            "training-free-gpt2": losses(TRAINING_FREE / "gpt2.csv"),
            "pairs": losses(TRAINING_FREE / "llama-pairs.csv"),
        },
        DOCS / "healing.md": {
            "given": given(small),
            "recipes": recipes(small),
            "small-batches": small_batches(STUDY / "gpt2-small-batches" / "compare.json"),
            "encoders": encoders(STUDY / "bert"),
            "mpnet": encoders(STUDY / "mpnet"),
        },
        DOCS / "other-tools.md": {
            "encoders": other_encoders(RESULTS / "other-tools" / "encoders.json", STUDY),
        },
        DOCS.parent / "README.md": {
            "caption": caption(small),
            "costs": costs(small),
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
        for figure in (stages_figure(evidence, LONG), tokens_figure(small, CALIBRATED_SCHEMES, SHORT, LONG)):
            draw(figure, DOCS / "figures" / f"{figure.name}.png")
    return int(bool(stale))


def measured(evidence: Evidence) -> str:
    """Say what the comparisons' numbers were measured on, at which rates, and what is missing."""
    study = evidence.studies[0]
    unfinished = [rate_text(study.rate) for study in evidence.studies if not study.result.facts["complete"]]
    both = " and ".join(rate_text(rate) for rate in evidence.rates)
    return (
        f"{provenance_of(study.group).summary()} Peak rates of the weights: {both}. "
        f"Stock is at {text(study.loss(STOCK, STOCK, SHORT))} nats a token at {SHORT} tokens."
        + (f" Schemes and seeds are still to come at {' and '.join(unfinished)}." if unfinished else "")
    )


def code(scheme: str) -> str:
    """Return a scheme as text says it."""
    return f"`{scheme}`"


def goals(evidence: Evidence) -> str:
    """Return the table of goals: which scheme was best at what."""
    fixed = [s for s in evidence.schemes if evidence.above(s, "calibrated", SHORT) is None]
    rows = []
    for goal, stage, length, among in (
        ("Heal a little, read far", "healed", LONG, evidence.schemes),
        ("Heal a little, stay short", "healed", SHORT, evidence.schemes),
        ("Heal a little, nothing to calibrate", "healed", LONG, fixed),
        ("No training, some text to calibrate on", "calibrated", LONG, evidence.schemes),
        ("Nothing but the swap", "swapped", LONG, evidence.schemes),
    ):
        found = [(scheme, value) for scheme in among if (value := evidence.above(scheme, stage, length)) is not None]
        best = sorted(found, key=lambda pair: pair[1].y)[:3]
        named = ", ".join(f"{code(scheme)} {value.y:.3f}" for scheme, value in best)
        rows.append((goal, f"{stage}, {length} tokens", named or "not measured yet"))
    return markdown(Table(("goal", "measured", "the three with the least loss, nats above stock"), tuple(rows)))


def schemes(evidence: Evidence) -> str:
    """Return every scheme at every stage, those that healed best first."""

    def place(scheme: str) -> float:
        value = evidence.above(scheme, "healed", LONG) or evidence.above(scheme, "healed", SHORT)
        return math.inf if value is None else value.y

    rows = [
        (
            code(scheme),
            *(text(evidence.above(scheme, stage, SHORT)) for stage in SWAPPED_STAGES),
            *(text(evidence.above(scheme, "healed", length)) for length in (1024, LONG)),
            rate_text(evidence.source(scheme).rate),
            evidence.source(scheme).name,
        )
        for scheme in sorted(evidence.schemes, key=place)
    ]
    for rate in evidence.rates:
        control = text(evidence.control(rate))
        rows.append(("control", "", "", control, f"it ends at {SHORT}", "", rate_text(rate), "study-small"))
    heads = ("swapped", "calibrated", f"healed, {SHORT}", "healed, 1024", f"healed, {LONG}", "rate", "from")
    return markdown(Table(("scheme", *heads), tuple(rows)))


def rates(evidence: Evidence) -> str:
    """Return the schemes that were healed at every rate: where they started, and what each rate left."""
    rows = []
    for scheme in evidence.schemes:
        sources = evidence.at_every_rate(scheme)
        starts = [sources[0].above(scheme, stage, SHORT) for stage in ("calibrated", "swapped")] if sources else []
        start = next((value for value in starts if value is not None), None)
        if start is None:
            continue
        ends = [[source.above(scheme, "healed", length) for source in sources] for length in (SHORT, LONG)]
        rows.append((start.y, (code(scheme), f"{start.y:.3f}", *(_mean(value) for end in ends for value in end))))
    heads = (f"{rate_text(rate)}, at {length}" for length in (SHORT, LONG) for rate in evidence.rates)
    return markdown(Table(("scheme", f"before healing, {SHORT}", *heads), tuple(row for _, row in sorted(rows))))


def tokens(small: SmallStudy) -> str:
    """Return what so many tokens of healing give, from both starts."""
    budgets = small.tokens()

    def cells(scheme: str, start: str) -> list[str]:
        pairs = [(small.above(scheme, start, n, SHORT), small.above(scheme, start, n, LONG)) for n in (0, *budgets)]
        return [text(short) + (f"; {far.y:.3f}" if far else "") for short, far in pairs]

    rows = [
        (code(scheme), start, *cells(scheme, start))
        for scheme in CALIBRATED_SCHEMES
        for start in ("calibrated", "uncalibrated")
    ]
    rows += [(name, "", *cells(name, STOCK)) for name in (CONTROL, GENTLE_CONTROL)]
    return markdown(Table(("scheme", "start", "0 tokens", *(f"{n:,}" for n in budgets)), tuple(rows)))


def saved(small: SmallStudy) -> str:
    """Say what the start from calibration saves, at each budget that was healed from both."""
    lines = []
    for budget in small.tokens():
        factors = []
        for scheme in CALIBRATED_SCHEMES:
            pair = [small.above(scheme, start, budget, SHORT) for start in ("uncalibrated", "calibrated")]
            without, fitted = pair
            if without and fitted:
                factors.append(f"{code(scheme)} {without.y / fitted.y:.1f}")
        if factors:
            lines.append(f"- after {budget:,} tokens: {', '.join(factors)}")
    told = "What is left to heal from an uncalibrated start, over what is left from a calibrated one, at 256 tokens:"
    return "\n".join([told, "", *lines])


def early(evidence: Evidence, llama: Comparison) -> str:
    """Return how much the loss falls from the train length to the longest one, by both protocols."""
    rows = [
        ("demo:llama", *row)
        for scheme in (STOCK, *llama.schemes)
        if (row := _falls(llama, scheme, STOCK if scheme == STOCK else "swapped", SHORT, 2048))
    ]
    rows.append(("demo:gpt2", *_falls(evidence.studies[0], STOCK, STOCK, 128, SHORT)))
    rows += [
        ("demo:gpt2", *row)
        for scheme in evidence.schemes
        if scheme in (study := evidence.comparison(scheme)).schemes
        and (row := _falls(study, scheme, study.last_stage(scheme), SHORT, LONG))
    ]
    for run, (scheme, stage) in RUNS.items():
        path = STUDY / "gpt2-positions" / run / "lengths.json"
        if path.is_file():
            found = Comparison(path)
            _, _, *changes = _falls(found, found.result.rows[0]["scheme"], "healed", SHORT, LONG)
            rows.append(("demo:gpt2", code(scheme), stage, *changes))
    heads = ("model", "scheme", "stage", "lengths", "windows", "same targets", "difference: early tokens")
    return markdown(Table(heads, tuple(rows)))


def _falls(source: Comparison, scheme: str, stage: str, short: int, far: int) -> tuple[str, ...]:
    """Return a row of changes of the loss from one length to another, or nothing where one is missing."""
    changes = []
    for protocol in (WINDOWS, SAME):
        before, after = (source.loss(scheme, stage, length, protocol) for length in (short, far))
        if before is None or after is None:
            return ()
        changes.append(after.y - before.y)
    told = (f"{change:+.3f}" for change in (*changes, changes[0] - changes[1]))
    return (code(scheme), stage, f"{short} → {far}", *told)


def positions() -> str:
    """Return the loss at the beginning of a window and after it, by length of the window."""
    rows = []
    for run, (scheme, stage) in RUNS.items():
        path = STUDY / "gpt2-positions" / run / "positions.json"
        found = read_result(path).rows if path.is_file() else []
        stretches = ((SHORT, 0, 64), (SHORT, 64, SHORT), (LONG, 0, SHORT), (LONG, SHORT, LONG))
        cells = [number(mean_by_position(found, *stretch)) for stretch in stretches]
        rows.append((code(scheme), stage, *cells))
    heads = (f"{SHORT}: first 64", f"{SHORT}: the rest", f"{LONG}: first {SHORT}", f"{LONG}: the rest")
    return markdown(Table(("scheme", "stage", *heads), tuple(rows)))


def far_keys(small: SmallStudy) -> str:
    """Return T5's bias healed from zeros and from calibration, by length."""
    rows = [
        (code(T5), start, *(text(small.above(T5, start, TOKENS, length)) for length in (SHORT, 1024, LONG)))
        for start in ("calibrated", "uncalibrated")
    ]
    return markdown(Table(("scheme", "start", *map(str, (SHORT, 1024, LONG))), tuple(rows)))


def far_bias() -> str:
    """Return the mean bias of keys near and far in the healed models, from both starts."""
    rows = []
    for name, start in {"t5": "calibrated", "t5-from-zeros": "uncalibrated"}.items():
        path = STUDY / "gpt2-bias" / name / "biases.json"
        values: dict[int, list[float]] = {}
        for row in read_result(path).rows:
            if row["value"] is not None:
                values.setdefault(row["distance"], []).append(row["value"])
        shown = (fmean(values[distance]) for distance in FAR_DISTANCES)
        rows.append((code(T5), start, *(f"{value:.2f}" for value in shown)))
    heads = (f"Δ = {distance}" for distance in FAR_DISTANCES)
    return markdown(Table(("mean bias over layers and heads", "start", *heads), tuple(rows)))


def failed(evidence: Evidence) -> str:
    """List what did not heal: far above the control, or worse with length; and what does not reach the length."""
    lines = []
    for scheme in evidence.schemes:
        short, far = (evidence.above(scheme, "healed", length) for length in (SHORT, LONG))
        if short is None:
            continue
        shortfalls = []
        control = evidence.control(evidence.source(scheme).rate)
        if short.y > FALLS_SHORT + (control.y if control else 0.0):
            shortfalls.append(f"{short.y:.3f} above stock at {SHORT}")
        if far is None:
            shortfalls.append(f"it reads no {LONG} tokens")
        elif far.y - short.y > RISES:
            shortfalls.append(f"from {short.y:.3f} at {SHORT} to {far.y:.3f} at {LONG}")
        if shortfalls:
            lines.append(f"- {code(scheme)}: {'; '.join(shortfalls)}.")
    rule = (
        f"Healed on {TOKENS:,} tokens and still more than {FALLS_SHORT} nats above the control of its rate at {SHORT}, "
        f"or more than {RISES} worse at {LONG} than at {SHORT}:"
    )
    return "\n".join([rule, "", *(lines or ["- nothing that was measured"])])


def caption(small: SmallStudy) -> str:
    """Return the caption of the README's figure."""
    ends = [small.above(scheme, "gentle", TOKENS, length) for scheme in CALIBRATED_SCHEMES for length in (SHORT, LONG)]
    percent = [100 * math.expm1(value.y) for value in ends if value is not None]
    return (
        "*Left: models trained from scratch (Press et al. 2022). Middle: one pretrained GPT-2 of 256 positions, "
        "swapped, calibrated and healed on 1% of its pretraining tokens: it reads 16 times as far, at "
        f"{min(percent):.0f} to {max(percent):.0f}% more perplexity than it had. "
        "Right: the same swaps without healing. [How these figures are made](docs/figures.md).*"
    )


def costs(small: SmallStudy) -> str:
    """Return the README's table of what a swap costs."""
    rows = [
        (
            code(scheme),
            text(small.above(scheme, "uncalibrated", 0, SHORT)),
            text(small.above(scheme, "calibrated", 0, SHORT)),
            *(_mean(small.above(scheme, "gentle", TOKENS, length)) for length in (SHORT, LONG)),
        )
        for scheme in CALIBRATED_SCHEMES
    ]
    control = _mean(small.above(GENTLE_CONTROL, STOCK, TOKENS, SHORT))
    rows.append(("control: stock, trained on the same tokens", "", "", control, f"it ends at {SHORT}"))
    heads = ("", "swapped", "calibrated", f"healed on 1%: at {SHORT}", f"at {LONG}")
    return markdown(Table(heads, tuple(rows)))


def _mean(value: Point | None) -> str:
    return "—" if value is None else f"{value.y:.3f}"


def untrained(llama: Comparison) -> str:
    """Return the table of swaps without training on SmolLM2."""
    lengths = llama.result.settings["lengths"]
    perplexities = {
        (row["scheme"], row["length"]): row["perplexity"] for row in llama.result.rows if row["protocol"] == WINDOWS
    }
    rows = [
        (scheme if scheme == STOCK else code(scheme), *(f"{perplexities[scheme, length]:,.4g}" for length in lengths))
        for scheme in sorted((STOCK, *llama.schemes), key=lambda scheme: perplexities[scheme, lengths[0]])
    ]
    return markdown(Table(("scheme, untrained", *map(str, lengths)), tuple(rows)))


if __name__ == "__main__":
    sys.exit(main())
