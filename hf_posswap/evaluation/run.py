"""Runs an evaluation from end to end: checks it, measures it part by part, resumes it after an interruption, writes it.

Under `accelerate launch` every process holds the model and measures its share of each part; the main process writes.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from hf_posswap.architectures import architecture_of
from hf_posswap.evaluation.errors import EvaluationError, TextTooShortError, UnmeasurableError
from hf_posswap.evaluation.measuring import KIND_OF, Measurements, Part, Rows
from hf_posswap.evaluation.preparation import chosen_device, completed, has_masked_head, scheme_label, stock_name
from hf_posswap.evaluation.processes import ALONE, Processes
from hf_posswap.evaluation.reading import Reader
from hf_posswap.evaluation.settings import EvaluationSettings
from hf_posswap.evaluation.texts import MeasuredText, tokenise_files
from hf_posswap.results.environment import collect_environment, installed_versions
from hf_posswap.results.files import OutputError
from hf_posswap.results.kinds import KINDS, RETRIEVAL, Kind
from hf_posswap.results.parts import FOLDER, Parts
from hf_posswap.results.writing import make_result, write_result
from hf_posswap.sources import load_config, load_model, load_tokenizer, sources_of
from hf_posswap.swapped.questions import is_swapped
from hf_posswap.swapping import swap
from hf_posswap.texts.files import read_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class EvaluationObserver:
    """Callbacks of an evaluation in the main process, which do nothing by default; override the ones you need."""

    def started(self, parts: Sequence[Part], finished: Sequence[Part]) -> None:
        """Called before the model is loaded, with all parts and the parts that an earlier run finished."""

    def part(self, part: Part) -> None:
        """Called when a part begins."""

    def tokens(self, count: int) -> None:
        """Called when `count` more tokens have been read."""

    def part_done(self, part: Part) -> None:
        """Called when a part was measured and stored."""


@dataclass(frozen=True)
class PreparedEvaluation:
    """The inputs of `run_evaluation`, checked and without any long computation.

    Attributes:
        settings: the given settings, with open ones filled in.
        config: the model's configuration.
        scheme: the measured model's scheme, "stock" for a stock model.
        texts: the texts.
        measurements: the measurements to do.
    """

    settings: EvaluationSettings
    config: "PretrainedConfig"
    scheme: str
    texts: tuple[MeasuredText, ...]
    measurements: Measurements


def prepare_evaluation(settings: EvaluationSettings) -> PreparedEvaluation:
    """Check the settings against the model and the texts, and split the work into parts, without loading weights.

    Raises:
        PosSwapError: an unknown model, a measurement that it does not support, or a text that is missing or too short.
    """
    files = read_files(settings.texts, settings.documents)
    config = load_config(settings.model)
    asked = settings.measurements
    settings = completed(settings, config)
    if settings.pos_scheme is not None and getattr(config, "pos_scheme", None) is not None:
        raise EvaluationError(
            f"model {settings.model!r} is swapped already ({config.pos_scheme['name']!r}). Leave out --pos-scheme, or "
            "give the model it was made from."
        )
    tokenizer = load_tokenizer(settings.model)
    texts = tokenise_files(tokenizer, files)
    documents = [document for file in files for document in file.documents]
    try:
        ids = [ids for text in texts for ids in text.ids]
        measurements = Measurements(settings, config, tokenizer, documents, ids, asked)
    except TextTooShortError as error:
        counts = ", ".join(f"{text.file.name} {text.tokens}" for text in texts)
        raise TextTooShortError(f"{error} Tokens of each text: {counts}.") from error
    return PreparedEvaluation(settings, config, scheme_label(settings, config), texts, measurements)


def run_evaluation(
    prepared: PreparedEvaluation,
    output_dir: Path,
    *,
    processes: Processes = ALONE,
    observer: EvaluationObserver | None = None,
    overwrite: bool = False,
) -> dict[str, dict[str, Any]]:
    """Measure all unfinished parts, and write the result files.

    Args:
        prepared: the result of `prepare_evaluation`.
        output_dir: folder for the result files. An interrupted run of the same evaluation in this folder is resumed.
        processes: the processes that share the work.
        observer: callbacks for every part, called in the main process.
        overwrite: measure everything again and replace existing results.

    Returns:
        The content of each JSON file, by file name without suffix; in every process.

    Raises:
        EvaluationError: the folder already holds results.
        OutputError: the folder holds an unfinished evaluation with other settings, or cannot be written to.
        PosSwapError: the model cannot be loaded, swapped or measured.
    """
    observer = observer if observer is not None and processes.is_main else EvaluationObserver()
    folder = _Folder(prepared, output_dir, processes)
    rows = processes.on_main(lambda: folder.open(overwrite))
    parts = prepared.measurements.parts
    missing = [part for part in parts if part.name not in rows]
    observer.started(parts, [part for part in parts if part.name in rows])
    for known in rows.values():
        prepared.measurements.learn(known)
    for load, wanted in (
        (_load_stock, [part for part in missing if part.by_stock]),
        (_load, [part for part in missing if not part.by_stock]),
    ):
        if not wanted:
            continue
        with Reader(load(prepared, processes), processes=processes, progress=observer.tokens) as reader:
            for part in wanted:
                observer.part(part)
                rows[part.name] = processes.on_main(partial(folder.keep, part, _measured(part, reader)))
                prepared.measurements.learn(rows[part.name])
                observer.part_done(part)
    return processes.on_main(lambda: folder.write([rows[part.name] for part in parts]))


def _measured(part: Part, reader: Reader) -> Rows:
    """Return a part's rows; or gaps with the reason, if the model refuses a part that the user did not name."""
    try:
        return part.measure(reader)
    except UnmeasurableError as error:
        if part.gaps is None:
            raise
        return part.gaps(str(error))


class _Folder:
    """The results folder with its finished parts. Only the main process reads and writes it."""

    def __init__(self, prepared: PreparedEvaluation, path: Path, processes: Processes) -> None:
        self.prepared, self.path, self.processes = prepared, path, processes
        measured = prepared.settings.measurements
        self.kinds = [kind for kind in KINDS.values() if kind in {KIND_OF[name] for name in measured}]
        self.parts: Parts | None = None

    def open(self, overwrite: bool) -> dict[str, Any]:
        """Return the rows of the finished parts, by the part's name."""
        if overwrite:
            shutil.rmtree(self.path / FOLDER, ignore_errors=True)
        elif not (self.path / FOLDER).exists():
            self._require_free()
        self.parts = Parts(self.path, _identity(self.prepared))
        found = {part.name: self.parts.get(part.name) for part in self.prepared.measurements.parts}
        return {name: rows for name, rows in found.items() if rows is not None}

    def keep(self, part: Part, measured: Rows) -> dict[str, Any]:
        """Store a part's rows, and return them JSON-ready."""
        rows = {kind.name: [asdict(row) for row in found] for kind, found in measured.items()}
        if self.parts is not None:
            self.parts.put(part.name, rows)
        return rows

    def write(self, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Write the result files, remove the parts, and return the content of the JSON files by name."""
        results = self._results(rows)
        try:
            for result in results.values():
                write_result(result, self.path)
        except OSError as error:
            raise OutputError(
                f"cannot write to {str(self.path)!r}: {error}. What is measured is kept: make room, then run the same "
                "command again."
            ) from error
        if self.parts is not None:
            self.parts.finish()
        return results

    def _results(self, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        prepared, settings = self.prepared, self.prepared.settings
        label = {"model": settings.model, "scheme": prepared.scheme, "stage": settings.stage, "seed": settings.seed}
        texts = [text.to_dict() for text in prepared.texts]
        environment = collect_environment()
        return {
            kind.file: make_result(
                kind,
                [label | row for of_part in rows for row in of_part.get(kind.name, [])],
                model=settings.model,
                seed=settings.seed,
                settings=asdict(settings),
                texts=texts,
                environment=environment,
                train_length=prepared.config.max_position_embeddings,
                pos_scheme=getattr(prepared.config, "pos_scheme", None),
                processes=self.processes.count,
                **self._facts(kind),
            )
            for kind in self.kinds
        }

    def _facts(self, kind: Kind) -> dict[str, Any]:
        """Return facts about the measurement of a kind that are not in its rows."""
        collection = self.prepared.measurements.collection
        if kind != RETRIEVAL or collection is None:
            return {}
        return {
            "documents": len(collection.documents),
            "chance": collection.chance,
            "queries_deeper_than": collection.deeper_than,
        }

    def _require_free(self) -> None:
        there = [f"{kind.file}.json" for kind in self.kinds if (self.path / f"{kind.file}.json").exists()]
        if there:
            raise EvaluationError(
                f"{str(self.path)!r} holds results already: {', '.join(there)}. Give another --output-dir, or "
                "--overwrite to replace them."
            )


def _load(prepared: PreparedEvaluation, processes: Processes) -> "PreTrainedModel":
    """Load the model with the head that the measurements need, and swap it if the settings have a scheme."""
    settings, config = prepared.settings, prepared.config
    device = _device(settings, processes)
    if architecture_of(config).is_causal(config):
        auto_class = AutoModelForCausalLM
    else:
        auto_class = AutoModelForMaskedLM if has_masked_head(config) else AutoModel
    model = load_model(settings.model, auto_class, config=config, dtype=settings.dtype)
    if settings.pos_scheme is not None:
        torch.manual_seed(settings.seed)  # a scheme may start from random numbers
        swap(model, settings.pos_scheme)
    return model.to(device)


def _load_stock(prepared: PreparedEvaluation, processes: Processes) -> "PreTrainedModel":
    """Load the stock model of a swapped causal model.

    Raises:
        EvaluationError: it is swapped itself, or has another vocabulary.
    """
    settings, config = prepared.settings, prepared.config
    name = stock_name(settings, config)
    stock = load_model(name, AutoModelForCausalLM, dtype=settings.dtype)
    if is_swapped(stock):
        raise EvaluationError(f"{name!r}, the stock model that chooses key tokens, is swapped. Name the one before.")
    if stock.config.vocab_size != config.vocab_size:
        raise EvaluationError(
            f"{name!r} chooses no key tokens for {settings.model!r}: it has {stock.config.vocab_size} tokens, not "
            f"{config.vocab_size}. Name the stock model that it was made from with --stock."
        )
    return stock.to(_device(settings, processes))


def _device(settings: EvaluationSettings, processes: Processes) -> torch.device:
    """Return the device to compute on.

    Raises:
        EvaluationError: the device cannot be used, or the settings name one for several processes.
    """
    if processes.count > 1:
        if settings.device is not None:
            raise EvaluationError("leave out --device: accelerate launch gives each process its own.")
        return processes.device
    return chosen_device(settings.device)


def _identity(prepared: PreparedEvaluation) -> dict[str, Any]:
    """Return everything that finished parts depend on; with a different identity they are not reused."""
    paths = [Path(source.path) for source in sources_of(prepared.settings.model)]
    files = [file for path in paths if path.is_dir() for file in sorted(path.iterdir()) if file.is_file()]
    versions = installed_versions()
    settings = {name: value for name, value in asdict(prepared.settings).items() if name != "device"}
    return settings | {
        "texts": [text.file.sha256 for text in prepared.texts],
        "model revision": getattr(prepared.config, "_commit_hash", None),
        "model files": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "versions": {name: versions[name] for name in ("hf_posswap", "transformers", "torch", "tokenizers")},
    }
