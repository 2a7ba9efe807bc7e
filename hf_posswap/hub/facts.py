"""The facts of a model card, all from the swapped model's config, its files and its results."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from hf_posswap.architectures import architecture_of
from hf_posswap.common.names import CLASS_PREFIX
from hf_posswap.errors import PosSwapError
from hf_posswap.hub.checkpoint import Checkpoint
from hf_posswap.hub.contradictions import LENGTHS_FILE
from hf_posswap.hub.errors import HubError
from hf_posswap.hub.results import CheckpointResults, Measurement, Row, read_results
from hf_posswap.loading.auto_classes import auto_classes
from hf_posswap.loading.entry import config_from_entry, is_healed
from hf_posswap.loading.origin import cached_license, is_license, is_repo_id
from hf_posswap.results.records import HEALING_FILE
from hf_posswap.schemes import Scheme, SchemeConfig, parse_scheme
from hf_posswap.swapped.questions import longest_position, stock_longest_position, train_length
from hf_posswap.texts.sources import DEMO_PREFIX

FindLicense = Callable[[str, str | None], str | None]
"""Function that returns the licence on a Hub model's card, given the model's name and its commit or None."""

PIPELINE_TAGS = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForMultipleChoice": "multiple-choice",
    "AutoModel": "feature-extraction",
}
"""The Hub's names of tasks by Auto class."""


@dataclass(frozen=True)
class Base:
    """The stock model.

    Attributes:
        name: its name, if known.
        on_hub: whether the name is one on the Hub.
        revision: its commit on the Hub, if known.
        license: its licence, by the Hub's name, if known.
    """

    name: str | None
    on_hub: bool
    revision: str | None
    license: str | None

    @property
    def has_name(self) -> bool:
        """Whether hf_posswap can load it by its name on any machine."""
        return self.on_hub or (self.name or "").startswith(DEMO_PREFIX)


@dataclass(frozen=True)
class ConfigFacts:
    """Facts from a model's config.

    Attributes:
        architecture: the family's name.
        model_class: name of the model's class.
        layers: number of layers.
        train_length: length of the longest texts that the stock model was trained on.
        longest: number of positions of the swapped model; None: no limit.
        longest_before: number of positions of the stock model; None: no limit.
    """

    architecture: str
    model_class: str
    layers: int
    train_length: int
    longest: int | None
    longest_before: int | None


@dataclass(frozen=True)
class CardFacts:
    """The known facts about a swapped model.

    Attributes:
        title: name of the model.
        repo: argument of `from_pretrained` that loads it.
        base: the stock model.
        options: the resolved options of the scheme, or of the schemes, that were swapped in.
        native: the scheme that was swapped out.
        auto_class: name of the Auto class that loads the model; None if there is none or it is unknown.
        model: facts from the model's config; None for an adapter, whose config does not have them.
        parameters: number of the model's parameters; None for an adapter.
        healed: whether its weights were trained with the scheme, so that it no longer contains the base model.
        has_tokenizer: whether a tokenizer is published with it.
        results: the results in the checkpoint's folder.
        measurements: the results that are about this model.
        figures: paths of images in the repository.
    """

    title: str
    repo: str
    base: Base
    options: SchemeConfig
    native: str
    auto_class: str | None
    model: "ConfigFacts | None" = None
    parameters: int | None = None
    healed: bool = False
    has_tokenizer: bool = False
    results: CheckpointResults = field(default_factory=CheckpointResults)
    measurements: tuple[Measurement, ...] = ()
    figures: tuple[str, ...] = ()

    @property
    def schemes(self) -> list[type[Scheme]]:
        """The schemes that were swapped in, each once."""
        return list(dict.fromkeys(part.scheme_type() for part in self.options.parts))

    @property
    def pretty_name(self) -> str:
        """The schemes' names as papers write them."""
        return " + ".join(scheme.pretty_name for scheme in self.schemes)

    @property
    def pipeline_tag(self) -> str | None:
        """The Hub's name of the model's task."""
        return PIPELINE_TAGS.get(self.auto_class or "")


def folder_facts(
    checkpoint: Checkpoint,
    repo: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    find_license: FindLicense = cached_license,
) -> CardFacts:
    """Return the facts of a checkpoint's folder.

    Args:
        checkpoint: the checkpoint, checked.
        repo: the future repository on the Hub; None: the folder's name is used instead.
        base_model: name of the base model on the Hub, if the checkpoint's config does not have it.
        license: the licence, if the base model's is unknown or does not apply.
        find_license: looks up the base model's licence if neither `license` nor the config has it.

    Raises:
        HubError: a name or licence does not have the Hub's form, or a result file is broken.
    """
    contents, config = checkpoint.contents, checkpoint.config
    name = repo or contents.folder.resolve().name
    results = read_results(contents.folder, config.pos_scheme)
    options = config_from_entry(config.pos_scheme)
    stock = type(checkpoint.model).__name__.removeprefix(CLASS_PREFIX)
    return CardFacts(
        title=name.rpartition("/")[2],
        repo=name,
        base=base_of(config.pos_scheme, base_model, license, find_license),
        options=options,
        native=config.pos_scheme["native"],
        auto_class=_auto_class(auto_classes(architecture_of(config)), stock),
        model=_model_facts(checkpoint.model),
        parameters=sum(weight.numel() for weight in checkpoint.model.parameters()),
        healed=is_healed(config),
        has_tokenizer="tokenizer_config.json" in contents.files,
        results=results,
        measurements=tuple(about(options, results, contents.folder.resolve().name)),
        figures=contents.figures,
    )


def _model_facts(model: Any) -> ConfigFacts:
    """Return the facts from the config of a swapped model, which may be on the meta device."""
    architecture = architecture_of(model.config)
    return ConfigFacts(
        architecture=architecture.name,
        model_class=type(model).__name__,
        layers=model.config.num_hidden_layers,
        train_length=train_length(model),
        longest=longest_position(model),
        longest_before=stock_longest_position(model),
    )


def base_of(
    entry: dict[str, Any], base_model: str | None, license: str | None, find_license: FindLicense = cached_license
) -> Base:
    """Return the known facts about the stock model.

    Args:
        entry: the `pos_scheme` entry of the swapped model.
        base_model: its name on the Hub, given by the user; it overrides the entry's.
        license: its licence, given by the user.
        find_license: looks up the licence of a model on the Hub.

    Raises:
        HubError: the name or the licence does not have the Hub's form.
    """
    if base_model is not None and not is_repo_id(base_model):
        raise HubError(f"base model {base_model!r} is no name on the Hub. Write owner/name, or leave it out.")
    if license is not None and not is_license(license):
        raise HubError(f"license {license!r} is not written as on the Hub: such as apache-2.0, mit or llama3.2.")
    name, revision = entry.get("base_model"), entry.get("base_revision")
    on_hub = entry.get("base_source") == "hub" and is_repo_id(name)
    if base_model is not None and base_model != (name if on_hub else None):
        name, revision, on_hub = base_model, None, True
    if license is None:
        recorded = entry.get("base_license")
        license = recorded if is_license(recorded) else find_license(str(name), revision) if on_hub else None
    return Base(name, on_hub, revision if on_hub else None, license)


def _auto_class(known: dict[str, str], stock: str) -> str | None:
    """Return the Auto class that loads a stock class's checkpoints; classes with a task have priority."""
    fitting = [auto for auto, name in known.items() if name == stock]
    return next((auto for auto in PIPELINE_TAGS if auto in fitting), next(iter(fitting), None))


def about(options: SchemeConfig, results: CheckpointResults, folder: str) -> Iterator[Measurement]:
    """Yield the measurements with the rows that are about this scheme with these options, and the stock model's.

    Args:
        options: the published model's options.
        results: all results.
        folder: name of the folder of the results.
    """
    for measurement in results.measurements:
        rows = [row for row in measurement.rows if _concerns(row, options)]
        rows = [replace(row, own=_is_own(row, measurement, results, folder)) for row in rows]
        if any(row.scheme != "stock" for row in rows):
            yield replace(measurement, rows=tuple(rows))


def _is_own(row: Row, measurement: Measurement, results: CheckpointResults, folder: str) -> bool:
    """Return whether a row is certainly a measurement of the published weights, not of a model with the same scheme."""
    if row.scheme == "stock":
        return False
    if measurement.file == HEALING_FILE:
        return row.stage == "healed"
    if measurement.file == LENGTHS_FILE:
        return PurePath(measurement.model).name == folder
    # A comparison swaps and heals its models itself; only an untrained swap gives the same weights.
    return row.stage == results.stage == "swapped" and bool(results.swap)


def _concerns(row: Row, options: SchemeConfig) -> bool:
    if row.scheme in ("", "stock"):
        return True
    try:
        measured = parse_scheme(row.scheme)
    except PosSwapError:
        return False
    if [part.name for part in measured.parts] != [part.name for part in options.parts]:
        return False
    return all(_fits(*pair) for pair in zip(measured.parts, options.parts, strict=True))


def _fits(measured: SchemeConfig, options: SchemeConfig) -> bool:
    # Options without a value were filled in from the model at the swap.
    stated = {key: value for key, value in measured.to_dict().items() if value is not None and value != "native"}
    return all(options.to_dict()[key] == value for key, value in stated.items())
