"""The section of a card on how the model was made: swap, calibration, healing with its budget, control, commands."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from hf_posswap.hub.markdown import code, code_block, one_line, plain, table
from hf_posswap.hub.results import CheckpointResults, command_of, count, number, part, without_folders
from hf_posswap.training.options import HealingOptions

HEALING_BUDGET = (
    ("tokens", "tokens"),
    ("steps", "steps"),
    ("length", "tokens read at once"),
    ("parameters", "parameters that learnt"),
)


def recipe(results: CheckpointResults) -> str:
    """Return the section on how the model was made; empty if nothing is known about it."""
    parts = [*_probe(results.swap), *_calibration(results.calibration), *_healing(results.healing), *_commands(results)]
    return "\n\n".join(["## How it was made", *parts]) if parts else ""


def _probe(swap: Mapping[str, Any]) -> Iterator[str]:
    probe = part(part(swap, "description"), "probe")
    typical, tokens = number(probe.get("typical")), count(probe.get("tokens"))
    if typical is not None and tokens and isinstance(probe.get("output"), str):
        yield (
            f"The swap took effect: on {tokens} random tokens it moved the {plain(probe['output'])} by {typical:.1%} "
            "of their size."
        )


def _calibration(content: Mapping[str, Any]) -> Iterator[str]:
    report = part(content, "report") or content
    tokens = count(report.get("tokens"))
    if not tokens:
        return
    names = [("the base model", "loss_stock"), ("swapped", "loss_before"), ("calibrated", "loss_after")]
    known = [(name, number(report.get(key))) for name, key in names]
    quantity, held = report.get("quantity"), count(report.get("held_back"))
    cosines = quantity == "agreement"
    values = ", ".join(f"{name} {1 - loss if cosines else loss:.3f}" for name, loss in known if loss is not None)
    what = "Cosine of its text embeddings to the base model's" if cosines else "Loss"
    unit = "" if cosines else ", in nats a masked token" if quantity == "masked loss" else ", in nats a token"
    where = f"on {held:,} tokens held back" if held else "on them"
    measured = f" {what} {where}{unit}: {values}." if values else ""
    if report.get("kept_start") is True:
        yield (
            f"The scheme's parameters were fitted to the base model's attention on {tokens:,} tokens, which made the "
            f"model worse, so its start was kept.{measured}"
        )
    else:
        yield (
            "Calibrated: the scheme's parameters were fitted to the base model's attention on "
            f"{tokens:,} tokens.{measured}"
        )
    refined = count(part(content, "refinement").get("tokens"))
    if refined:
        yield f"Then the scheme's parameters were trained alone on {refined:,} tokens, on the base model's outputs."


def _healing(content: Mapping[str, Any]) -> Iterator[str]:
    report, options = part(content, "healing"), part(content, "options")
    rows = list(_budget(report)) + list(_options(options, content))
    if not rows:
        return
    yield "Healed, that is trained on for a short while:"
    yield table(("", ""), rows, left=2)
    texts = content.get("texts")
    names = [_text_name(entry) for entry in texts if isinstance(entry, dict)] if isinstance(texts, list) else []
    if any(names):
        shown = [code(name) for name in names if name]
        more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        yield f"Texts: {', '.join(shown[:8])}{more}."
    yield from _control(part(content, "control"), report)


def _budget(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, name in HEALING_BUDGET:
        value = count(report.get(key))
        if value:
            yield name, f"{value:,}"


def _options(options: Mapping[str, Any], content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for field in dataclasses.fields(HealingOptions):
        name, value = field.metadata["card"], options.get(field.name)
        if name is None:
            continue
        if isinstance(value, list) and value:
            value = ",".join(map(str, value))
        if isinstance(value, str):
            yield name, code(value)
        elif number(value) is not None and (value or field.metadata["switch"] is None):
            yield name, f"{value:g}"
    rank = count(content.get("lora_rank"))
    if rank:
        yield "rank of LoRA", str(rank)


def _control(control: Mapping[str, Any], report: Mapping[str, Any]) -> Iterator[str]:
    tokens = count(control.get("tokens"))
    if not tokens:
        return
    ends = [(name, _last_loss(run)) for name, run in (("this model", report), ("the control", control))]
    told = ", ".join(f"{name} {loss:.4f}" for name, loss in ends if loss is not None)
    yield (
        f"The control is the base model, unswapped, healed on the same {tokens:,} tokens."
        + (f" Loss of the last step (each by its own objective): {told}." if told else "")
    )


def _last_loss(run: Mapping[str, Any]) -> float | None:
    history = run.get("history")
    last = history[-1] if isinstance(history, list) and history else {}
    return number(last.get("loss")) if isinstance(last, dict) else None


def _text_name(entry: Mapping[str, Any]) -> str:
    name = entry.get("name") or entry.get("dataset")
    return without_folders(one_line(name)) if isinstance(name, str) else ""


def _commands(results: CheckpointResults) -> Iterator[str]:
    sources = (results.swap, results.calibration, results.healing)
    commands = list(dict.fromkeys(filter(None, map(command_of, sources))))
    if commands:
        yield "The exact commands:" if len(commands) > 1 else "The exact command:"
        yield code_block("\n".join(one_line(command, 4000) for command in commands))
