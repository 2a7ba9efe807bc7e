"""The model card of a swapped model, written from facts; unknown facts are left out.

huggingface_hub writes the front matter as YAML. In the text, all values from files are escaped.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_posswap.hub.contradictions import COMPARISON_FILE
from hf_posswap.hub.facts import CardFacts
from hf_posswap.hub.markdown import code, code_block, one_line, plain, table
from hf_posswap.hub.recipe import recipe
from hf_posswap.hub.results import Measurement, Row
from hf_posswap.results.kinds import PROTOCOL_WORDS
from hf_posswap.schemes import SchemeConfig, scheme_class
from hf_posswap.version import __version__

MARK = "<!-- written by hf_posswap"
"""Beginning of a generated card, which may be replaced. A card without it was written by a person and is kept."""
METRICS = {"perplexity": "Perplexity", "cosine": "Cosine to the stock model's embeddings"}
PROTOCOLS = {name: words.told for name, words in PROTOCOL_WORDS.items()} | {"": "windows of each length"}
"""Each protocol in words; healing.json of an embedding model names none."""


def model_card(facts: CardFacts, tags: Sequence[str] = ()) -> ModelCard:
    """Return the card of a swapped model, with further tags if there are any."""
    sections = [_head(facts), _swap_section(facts), recipe(facts.results), _measured(facts), _model_loading(facts)]
    return _card(_front_matter(facts, "transformers", tags), sections)


def adapter_card(facts: CardFacts) -> ModelCard:
    """Return the card of an adapter that was trained on a swapped model."""
    sections = [_adapter_head(facts), _swap_section(facts), recipe(facts.results), _measured(facts)]
    return _card(_front_matter(facts, "peft", ["lora"]), [*sections, _adapter_loading(facts)])


def _card(data: ModelCardData, sections: Sequence[str]) -> ModelCard:
    mark = f"{MARK} {__version__} from the files of this repository; without this line it is kept as it is -->"
    text = "\n\n".join(section for section in (mark, *sections) if section)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def _front_matter(facts: CardFacts, library: str, tags: Sequence[str]) -> ModelCardData:
    results = list(_eval_results(facts))
    return ModelCardData(
        base_model=facts.base.name if facts.base.on_hub else None,
        library_name=library,
        license=facts.base.license,
        pipeline_tag=facts.pipeline_tag,
        tags=list(dict.fromkeys(["hf_posswap", *(f"pos-scheme:{s.name}" for s in facts.schemes), *tags])),
        model_name=facts.title if results else None,
        eval_results=results or None,
    )


def _eval_results(facts: CardFacts) -> Iterator[EvalResult]:
    """Yield the measurements of the published weights whose texts are known."""
    for measurement in facts.measurements:
        for row in measurement.rows:
            if not row.own or row.value is None or not measurement.texts or facts.pipeline_tag is None:
                continue
            how = PROTOCOLS.get(row.protocol, one_line(row.protocol))
            seed = "" if row.seed is None else f", seed {row.seed}"
            yield EvalResult(
                task_type=facts.pipeline_tag,
                dataset_type="text",
                dataset_name=one_line(", ".join(measurement.texts)),
                metric_type=measurement.quantity,
                metric_name=f"{METRICS[measurement.quantity]} at {row.length} tokens ({how}{seed})",
                metric_value=round(float(row.value), 4),
            )


def _head(facts: CardFacts) -> str:
    how = "beside" if facts.options.keep_native else "in the place of"
    return (
        f"# {plain(facts.title)}\n\n{_base_in_words(facts)} with **{facts.pretty_name}** "
        f"{how} its own positional mechanism ({scheme_class(facts.native).pretty_name}), by "
        f"`hf_posswap`. {' '.join(scheme.summary for scheme in facts.schemes)}"
    )


def _adapter_head(facts: CardFacts) -> str:
    return (
        f"# {plain(facts.title)}\n\nA LoRA adapter for {_base_in_words(facts)} with "
        f"**{facts.pretty_name}** in the place of its own positional mechanism "
        f"({scheme_class(facts.native).pretty_name}). It carries the scheme and its parameters: loading it by "
        "`hf_posswap` swaps the base model too."
    )


def _base_in_words(facts: CardFacts) -> str:
    if facts.base.name is not None:
        return f"{code(facts.base.name)}"
    return "A model" if facts.model is None else f"A model of the family {code(facts.model.architecture)}"


def _swap_section(facts: CardFacts) -> str:
    rows = [(name, value) for name, value in _swap_rows(facts) if value]
    return f"## What was swapped\n\n{table(('', ''), rows, left=2)}"


def _swap_rows(facts: CardFacts) -> Iterator[tuple[str, str]]:
    base, options, model = facts.base, facts.options, facts.model
    revision = f", revision {code(base.revision)}" if base.revision else ""
    yield "base model", f"{code(base.name)}{revision}" if base.name else ""
    yield "taken out", "nothing: the scheme is added" if options.keep_native else _taken_out(facts)
    for part in options.parts:
        scheme = part.scheme_type()
        yield "put in", f"{scheme.pretty_name} ({code(options_in_words(part))}), {_place(facts, part)}"
    for scheme in facts.schemes:
        yield "formula", code(scheme.formula)
        yield "paper", f"[{scheme.paper}]({scheme.paper_url})"
    if model is not None:
        before, trained = _limit(model.longest_before), model.train_length
        yield "reads", f"{_limit(model.longest)} (before: {before}; the base model was trained on texts of {trained})"
    yield "parameters", f"{facts.parameters:,}" if facts.parameters else ""
    yield "licence", code(base.license) if base.license else ""


def options_in_words(options: SchemeConfig) -> str:
    """Return a scheme's specification: its name and the options that are not at their defaults."""
    defaults = type(options)().to_dict()
    told = [f"{key}={_value(value)}" for key, value in options.to_dict().items() if _tells(key, value, defaults)]
    return ":".join([options.name, *told])


def _tells(key: str, value: Any, defaults: dict[str, Any]) -> bool:
    return key != "name" and value is not None and value != defaults.get(key)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value)) if len(value) <= 16 else f"{len(value)} values"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _taken_out(facts: CardFacts) -> str:
    native, model = scheme_class(facts.native), facts.model
    if native.acts_in_layers:
        return f"{native.pretty_name} in {_layers(facts, facts.options)}"
    rows = f"the table of {model.longest_before} positions" if model is not None else "the position table"
    return f"{native.pretty_name}: {rows} at the embeddings"


def _place(facts: CardFacts, options: SchemeConfig) -> str:
    return f"in {_layers(facts, options)}" if options.scheme_type().acts_in_layers else "at the embeddings"


def _layers(facts: CardFacts, options: SchemeConfig) -> str:
    chosen, model = options.layers, facts.model
    if chosen is None or (model is not None and len(chosen) == model.layers):
        return "all layers" if model is None else f"all {model.layers} layers"
    return f"layers {', '.join(map(str, chosen))}{'' if model is None else f' of {model.layers}'} (counted from 0)"


def _limit(longest: int | None) -> str:
    return "any number of positions" if longest is None else f"{longest} positions"


def _measured(facts: CardFacts) -> str:
    own_first = sorted(facts.measurements, key=lambda measurement: not any(row.own for row in measurement.rows))
    parts = [part for measurement in own_first for part in _tables(measurement)]
    parts += [f"![{plain(_caption(name))}]({name})" for name in facts.figures]
    return "\n\n".join(["## How far it reads", *parts]) if parts else ""


def _caption(name: str) -> str:
    return "The comparison as a figure: perplexity against length" if name == "compare.png" else name.rpartition("/")[2]


def _tables(measurement: Measurement) -> Iterator[str]:
    """Yield a title and table for each protocol, then the reasons of gaps and the command."""
    if measurement.file == COMPARISON_FILE and not any(row.own for row in measurement.rows):
        yield "A comparison that swapped models of its own, not this one:"
    texts = f" on {', '.join(map(code, measurement.texts))}" if measurement.texts else ""
    for protocol in dict.fromkeys(row.protocol for row in measurement.rows):
        rows = [row for row in measurement.rows if row.protocol == protocol]
        lengths = sorted({row.length for row in rows})
        several = len({row.seed for row in rows}) > 1
        cells: dict[str, dict[int, float | None]] = {}
        for row in rows:
            cells.setdefault(_label(row, several), {})[row.length] = row.value
        body = [(label, *(_number(values.get(length)) for length in lengths)) for label, values in cells.items()]
        how = PROTOCOLS.get(protocol, plain(protocol))
        yield f"{METRICS[measurement.quantity]}{texts}, by the number of tokens read at once; {how}:"
        yield table(("model", *map(str, lengths)), body)
    notes = {(row.stage, row.note) for row in measurement.rows if row.note and row.value is None}
    yield from ["\n".join(f"- {stage}: {plain(note)}" for stage, note in sorted(notes))] if notes else []
    yield from [f"Measured by {code(measurement.command)}."] if measurement.command else []


def _label(row: Row, several_seeds: bool) -> str:
    words = {
        "stock": "the base model",
        "control": "control: the base model healed on the same tokens, unswapped",
        "swapped": "swapped, untrained",
    }
    label = "this model" if row.own else words.get(row.stage, row.stage)
    return f"{label}, seed {row.seed}" if several_seeds and row.seed is not None else label


def _number(value: float | None) -> str:
    if value is None:
        return "—"
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.2f}" if abs(value) >= 2 else f"{value:.4f}"


def _model_loading(facts: CardFacts) -> str:
    """Return the section on loading a model."""
    name = _literal(facts.repo)
    parts = ["## Load it", code_block("pip install hf_posswap")]
    if facts.auto_class is None and facts.model is not None:
        model_class = facts.model.model_class
        code = f"from hf_posswap.modeling import {model_class}\n\nmodel = {model_class}.from_pretrained({name})"
        return "\n\n".join([*parts, code_block(code, "python")])
    imports = f"{facts.auto_class}, AutoTokenizer" if facts.has_tokenizer else facts.auto_class
    lines = [
        "import hf_posswap  # from here on transformers loads swapped models",
        f"from transformers import {imports}",
        "",
        f"model = {facts.auto_class}.from_pretrained({name})",
    ]
    lines += [f"tokenizer = AutoTokenizer.from_pretrained({name})"] if facts.has_tokenizer else []
    back = "" if facts.healed else "; `hf_posswap.restore(model)` gives the base model's own mechanism back"
    trusting = f"model = {facts.auto_class}.from_pretrained({name}, trust_remote_code=True)"
    return "\n\n".join([
        *parts,
        code_block("\n".join(lines), "python"),
        "Where `import hf_posswap` cannot be written, in a tool that only takes a model's name, let transformers do "
        "it, by a file of this repository with that one import in it:",
        code_block(trusting, "python"),
        "The package `hf_posswap` has to be installed either way. Without it transformers refuses the model, since it "
        f"would run without positions{back}.",
    ])  # fmt: skip


def _adapter_loading(facts: CardFacts) -> str:
    """Return the section on loading an adapter."""
    arguments = _literal(facts.repo) if facts.base.has_name else f"{_literal(facts.repo)}, base=model"
    lines = ["from hf_posswap.training.adapters import load_adapter", "", f"model = load_adapter({arguments})"]
    parts = ["## Load it", code_block("pip install hf_posswap"), code_block("\n".join(lines), "python")]
    if not facts.base.has_name:
        parts.append("`model` is the base model, loaded by transformers; it is not on the Hub by the name above.")
    return "\n\n".join([
        *parts,
        "This loads the base model, swaps its positional mechanism and puts the adapter on. peft alone does not know "
        "this kind of adapter and refuses it, and so does `hf_posswap` on a base model with another scheme.",
    ])  # fmt: skip


def _literal(name: str) -> str:
    """Return a name as a Python string literal for a code block."""
    return '"' + "".join(c for c in name if c.isprintable() and c not in '"\\`') + '"'
