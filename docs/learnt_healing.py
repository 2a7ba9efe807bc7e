"""What healing gives, at which budget, to decoders and encoders: tables that docs/learnt.py puts into the pages."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from learnt_figure import CONTROL, GENTLE_CONTROL
from marked import markdown
from study_values import ALIBI, CALIBRATED_SCHEMES, LONG, SHORT, STOCK, TOKENS, Comparison, SmallStudy, text

from hf_posswap.reporting.figures import Table
from hf_posswap.results.kinds import AGREEMENT, SWAPPED_STAGES
from hf_posswap.results.points import curves_of
from hf_posswap.results.reading import read_result

ENCODERS = {"rope": "`rope`", "alibi": "`alibi:form=two-slope:trainable=true:per_layer=true`"}
"""The healed encoders: their folders in results/study/bert."""
NDCG = "ndcg@10"
AGREED_AT, RANKED_AT = (32, 256), (256, 512, 1024, 4096)
"""Lengths at which other tools' encoders are compared with the healed ones."""


def _start(scheme: str, start: str) -> str:
    """Return what a reader calls the values that a scheme starts from."""
    if start == "calibrated":
        return start
    return "the paper's slopes" if scheme == ALIBI else "zeros"


def given(small: SmallStudy) -> str:
    """Return what one budget gives, by length, from both starts."""
    rows = [
        (
            f"`{scheme}`",
            _start(scheme, start),
            text(small.above(scheme, start, 0, SHORT)),
            *(text(small.above(scheme, start, TOKENS, length)) for length in (SHORT, 1024, LONG)),
        )
        for start in ("calibrated", "uncalibrated")
        for scheme in CALIBRATED_SCHEMES
    ]
    for name in (CONTROL, GENTLE_CONTROL):
        rows.append(
            (f"stock, {name}", "", "0", text(small.above(name, STOCK, TOKENS, SHORT)), f"it ends at {SHORT}", "")
        )
    return markdown(Table(("scheme", "start", "not healed", f"healed, {SHORT}", "1024", str(LONG)), tuple(rows)))


def recipes(small: SmallStudy) -> str:
    """Return what each budget buys: the options, and nats above stock at the train length and at the longest one."""
    ways = [("`calibrate`, no training", "calibrated", 0)]
    ways += [(f"`--tokens {n} --learning-rate 1e-3`", "calibrated", n) for n in small.tokens()]
    ways += [
        (f"`--tokens {TOKENS} --learning-rate 3e-4`", "gentle", TOKENS),
        (f"`--tokens {TOKENS} --learning-rate 1e-3 --lora-rank 16`", "lora", TOKENS),
        (f"`--tokens {TOKENS} --train scheme`", "scheme-only", TOKENS),
    ]
    rows = [
        (told, *(_both(small, scheme, start, tokens) for scheme in CALIBRATED_SCHEMES)) for told, start, tokens in ways
    ]
    return markdown(Table(("recipe", *(f"`{scheme}`" for scheme in CALIBRATED_SCHEMES)), tuple(rows)))


def _both(small: SmallStudy, scheme: str, start: str, tokens: int) -> str:
    values = [small.above(scheme, start, tokens, length) for length in (SHORT, LONG)]
    return "; ".join("—" if value is None else f"{value.y:.3f}" for value in values)


def small_batches(path: Path) -> str:
    """Return what healing in small batches at a low rate gives, from a comparison, beside its control."""
    study = Comparison(path)
    rows: list[tuple[str, ...]] = [
        (f"`{scheme}`", *(text(study.above(scheme, "healed", length)) for length in (SHORT, LONG)))
        for scheme in study.schemes
        if scheme != STOCK
    ]
    rows.append((f"stock, {CONTROL}", text(study.control()), f"it ends at {SHORT}"))
    return markdown(Table(("scheme", f"healed, {SHORT}", str(LONG)), tuple(rows)))


def encoders(folder: Path) -> str:
    """Return the mean cosine of the healed encoders to their stock embeddings, by stage and length of the texts."""
    rows: list[tuple[str, ...]] = []
    lengths: list[int] = []
    for name, scheme in ENCODERS.items():
        path = folder / name / "healing.json"
        if not path.is_file():
            continue
        result = read_result(path)
        for curve in curves_of(result.rows, AGREEMENT):
            if curve.stage not in SWAPPED_STAGES:
                continue
            lengths = [int(point.x) for point in curve.points]
            cosines = [1.0 - point.y for point in curve.points if point.y is not None]
            tokens = f"{result.settings['healing']['tokens']:,}" if curve.stage == "healed" else ""
            rows.append((scheme, curve.stage, tokens, *(f"{cosine:.3f}" for cosine in (*cosines, fmean(cosines)))))
    return markdown(Table(("scheme", "", "tokens", *map(str, lengths), "mean"), tuple(rows)))


def retrieval(folder: Path) -> str:
    """Return nDCG@10 of the encoders among long documents, by how many tokens of each they read."""
    rows: list[tuple[str, ...]] = []
    lengths: list[int] = []
    for name, scheme in ({"stock": "stock", "tile": "learned:tile:length=4096"} | ENCODERS).items():
        path = folder / name / "retrieval.json"
        if not path.is_file():
            continue
        found = [row for row in read_result(path).rows if row["metric"] == NDCG]
        lengths = [row["length"] for row in found]
        rows.append((scheme, *map(_with_interval, found)))
    return markdown(Table(("nDCG@10", *map(str, lengths)), tuple(rows)))


def other_encoders(measured: Path, study: Path) -> str:
    """Return how encoders that other tools make longer compare with the healed ones: agreement, retrieval and time.

    Args:
        measured: file of benchmarks/other_encoders.py.
        study: folder with the results of healing, and with those of retrieval beside it.
    """
    entries = json.loads(measured.read_text(encoding="utf-8"))["measured"]
    rows = []
    for name in dict.fromkeys(entry["model"] for entry in entries):
        own = [entry for entry in entries if entry["model"] == name]
        agreed = {entry["length"]: entry["value"] for entry in own if entry["metric"] == AGREEMENT}
        found = {entry["length"]: entry for entry in own if entry["metric"] == NDCG}
        used = next((f"{entry['value']:.1f}" for entry in own if entry["metric"] == "seconds"), "—")
        shown = f"`{name}`" if name.startswith("learned") else name
        rows.append((shown, "—", *_compared(agreed, found), used))
    for name, scheme in ENCODERS.items():
        healing = read_result(study / "bert" / name / "healing.json")
        curve = next(curve for curve in curves_of(healing.rows, AGREEMENT) if curve.stage == "healed")
        agreed = {int(point.x): 1.0 - point.y for point in curve.points if point.y is not None}
        ranked = read_result(study / "bert-retrieval" / name / "retrieval.json").rows
        found = {row["length"]: row for row in ranked if row["metric"] == NDCG}
        rows.append((scheme, f"{healing.settings['healing']['tokens']:,}", *_compared(agreed, found), "—"))
    columns = (*(f"cosine, {n}" for n in AGREED_AT), *(f"nDCG@10, {n}" for n in RANKED_AT))
    return markdown(Table(("", "trained tokens", *columns, "seconds, 4096"), tuple(rows)))


def _compared(agreed: Mapping[int, float], found: Mapping[int, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the cells of agreement and retrieval."""
    cosines = (f"{agreed[length]:.3f}" for length in AGREED_AT)
    return (*cosines, *(_with_interval(found[length]) for length in RANKED_AT))


def _with_interval(row: Mapping[str, Any]) -> str:
    """Return a value with half the width of its 95% interval, or why there is none."""
    if row["value"] is None:
        return str(row["note"])
    return f"{row['value']:.3f} ± {(row['high'] - row['low']) / 2:.3f}"
