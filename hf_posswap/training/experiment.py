"""One healing experiment from end to end: stock, swapped, calibrated, healed and control model, with one result.

All stages are measured on texts that no stage was trained on.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import get_available_trackers

from hf_posswap.architectures import architecture_of
from hf_posswap.auto import auto_class
from hf_posswap.calibration import CalibrationReport, calibration_refusal, rewrites_weights
from hf_posswap.evaluation.texts import tokenise
from hf_posswap.loading.auto_classes import auto_classes
from hf_posswap.results.environment import collect_environment
from hf_posswap.results.files import OutputError, check_folder, write_text
from hf_posswap.results.records import HEALING_FILE, remove_records
from hf_posswap.results.writing import to_json
from hf_posswap.schemes import parse_scheme
from hf_posswap.sources import load_config, load_model, load_tokenizer
from hf_posswap.swapped.questions import is_swapped, plain_model, stock_longest_position, train_length
from hf_posswap.swapping import restore, swap
from hf_posswap.training.distribution import SHARDED, make_accelerator
from hf_posswap.training.folders import require_room
from hf_posswap.training.loop import HealingObserver, heal, healing_length
from hf_posswap.training.measuring import StageMeasure
from hf_posswap.training.objectives import objective_for, objectives
from hf_posswap.training.options import HealingError, HealingOptions
from hf_posswap.training.stages import CALIBRATION_TOKENS, calibrate_on, control_options
from hf_posswap.training.teacher import require_same_shape, require_stock_inside
from hf_posswap.training.texts import Documents, Windows

FORMAT_VERSION = 1
CONTROL_FOLDER = "control"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The settings of an experiment.

    Attributes:
        model: name of the model, see `hf_posswap.sources.load_model`; stock, or already swapped.
        pos_scheme: the scheme to swap in, as on the command line; None: the model is already swapped.
        stock: name of the stock model, which is the teacher, the reference and the start of the control. None: the
            stock model inside `model`, which exists until the model is healed.
        documents: texts to heal on.
        texts: identities of these texts, for the result and for resuming; JSON-ready.
        options: options of healing.
        output_dir: folder for the healed model, checkpoints and the result; None: nothing is written.
        calibrate: calibrate the scheme before healing, on the documents, if it has parameters to fit.
        calibration_tokens: tokens to calibrate on; None: the default of `calibrate_on`.
        lora_rank: train low-rank adapters of this rank and the scheme's parameters instead of the weights.
        control: also heal the stock model, on the same tokens in the same order and schedule. Its loss is the
            objective's own, because a model that is its own teacher has a distillation loss of zero.
        evaluation: texts to measure on, none of them among the documents.
        evaluation_texts: identities of these texts, for the result; JSON-ready.
        lengths: context lengths, in tokens, to measure at; empty: the healing length, or that of the longest text if
            it is shorter.
        evaluation_tokens: approximate number of tokens to read at each length.
        resume: resume an interrupted run.
        column: column of the documents with the texts, if they are mappings.
        history: a file for every step of healing and of the control; the result has only a few rows of each. None: no
            such file.
        log_with: trackers of Accelerate, such as "tensorboard"; the metrics are named "healed/loss", "control/loss" …
    """

    model: str
    pos_scheme: str | None = None
    stock: str | None = None
    documents: Documents = field(repr=False)
    texts: list[dict[str, Any]]
    options: HealingOptions
    output_dir: Path | None = None
    calibrate: bool = True
    calibration_tokens: int | None = None
    lora_rank: int | None = None
    control: bool = False
    evaluation: tuple[str, ...] = field(default=(), repr=False)
    evaluation_texts: tuple[dict[str, Any], ...] = ()
    lengths: tuple[int, ...] = ()
    evaluation_tokens: int = 16384
    resume: bool = False
    column: str = "text"
    history: Path | None = None
    log_with: str | None = None


class ExperimentObserver(HealingObserver):
    """A `HealingObserver` that is also told the current stage and the documents."""

    def stage(self, name: str) -> None:
        """Called when a stage begins."""

    def documents(self, what: str, tokens: Sequence[int], number: int | None) -> None:
        """Called when documents were read, before any long computation.

        Args:
            what: the use of the documents, "Healing on" or "Measuring on".
            tokens: number of tokens of each document, or of a sample of the documents.
            number: number of documents; None: unknown.
        """


def run_experiment(experiment: Experiment, observer: ExperimentObserver | None = None) -> dict[str, Any]:
    """Run an experiment and return its result, JSON-ready.

    The result has `evaluation` rows by length for each of the stages "stock", "swapped", "calibrated", "healed" and
    "control" that ran; a few rows of the losses of healing and of the control; options, texts, versions and hardware.

    Raises:
        PosSwapError: a model, scheme, text or option that cannot be used; see `heal`.
    """
    return _Conductor(experiment, observer or ExperimentObserver()).run()


class _Conductor:
    """Runs one experiment."""

    def __init__(self, experiment: Experiment, observer: ExperimentObserver) -> None:
        self.experiment, self.observer = experiment, observer
        if experiment.lora_rank is not None and experiment.lora_rank < 1:
            raise HealingError(f"lora_rank is {experiment.lora_rank}; it must be at least 1 (--lora-rank 8).")
        if experiment.calibration_tokens is not None and experiment.calibration_tokens < 2:
            raise HealingError(f"{experiment.calibration_tokens} tokens are too few to calibrate on. Give thousands.")
        self.scheme = None if experiment.pos_scheme is None else parse_scheme(experiment.pos_scheme)
        self.accelerator = make_accelerator(experiment.options, **_tracking(experiment))
        if experiment.log_with is not None:
            self.accelerator.init_trackers("hf_posswap", experiment.options.to_dict())
        self.tokenizer = load_tokenizer(experiment.model)
        self.evaluation_ids = [tokenise(self.tokenizer, text) for text in experiment.evaluation]
        self._sharded = self.accelerator.distributed_type in SHARDED
        if self._sharded and experiment.evaluation and (experiment.lora_rank or experiment.output_dir is None):
            raise HealingError(
                "a sharded model is measured as it was saved, whole: give an output folder, and leave out --lora-rank "
                "or --eval-file."
            )
        if experiment.history is not None:
            check_folder(experiment.history.parent)
        self.stock: Any = None
        self.evaluations: dict[str, list[dict[str, Any]]] = {}

    def run(self) -> dict[str, Any]:
        experiment = self.experiment
        self._require_room()
        self._tell_documents()
        model = self._load(experiment.model)
        self._check(model)
        self._swap_and_measure(model)
        entry, length = model.config.pos_scheme, train_length(model)
        calibration = self._calibrate(model)
        if experiment.output_dir is not None and not experiment.resume and self.accelerator.is_main_process:
            remove_records(experiment.output_dir)
        report, model = self._heal(model, experiment.options, experiment.output_dir, "healed")
        del model
        control = None
        if experiment.control:
            folder = None if experiment.output_dir is None else experiment.output_dir / CONTROL_FOLDER
            control, _ = self._heal(self._load_stock(), control_options(experiment.options), folder, "control")
        self.accelerator.end_training()
        result = {
            "format_version": FORMAT_VERSION,
            "model": experiment.model,
            "stock": experiment.stock,
            "scheme": experiment.pos_scheme,
            "pos_scheme": entry,
            "train_length": length,
            "texts": experiment.texts,
            "options": experiment.options.to_dict(),
            "lora_rank": experiment.lora_rank,
            "evaluation": self.evaluations,
            "evaluation_texts": list(experiment.evaluation_texts),
            "calibration": None if calibration is None else asdict(calibration),
            "healing": report.to_dict(),
            "control": None if control is None else control.to_dict(),
            "processes": self.accelerator.num_processes,
            "environment": collect_environment(),
        }
        if self.accelerator.is_main_process:
            if experiment.history is not None:
                steps = {"healed": report.history} | ({} if control is None else {"control": control.history})
                experiment.history.parent.mkdir(parents=True, exist_ok=True)
                _write(experiment.history, to_json(steps))
            if experiment.output_dir is not None:
                _write(experiment.output_dir / HEALING_FILE, to_json(result))
        return result

    def _tell_documents(self) -> None:
        """Tell the observer the number of documents and their lengths."""
        if not self.accelerator.is_main_process:
            return
        tokens, number = Windows(
            self.experiment.documents, self.tokenizer, 1, packing=False, column=self.experiment.column
        ).document_lengths()
        self.observer.documents("Healing on", tokens, number)
        self.observer.documents("Measuring on", [len(ids) for ids in self.evaluation_ids], len(self.evaluation_ids))

    def _require_room(self) -> None:
        """Refuse output folders with other contents, before any long computation."""
        experiment = self.experiment
        if experiment.output_dir is None:
            return
        folders = [experiment.output_dir, *([experiment.output_dir / CONTROL_FOLDER] if experiment.control else [])]
        for folder in folders:
            require_room(folder, experiment.resume, adapter=experiment.lora_rank is not None)

    def _load(self, name: str) -> Any:
        """Load a model, with the head that the objective trains if the options name an objective."""
        self._stage("loading")
        objective = self.experiment.options.objective
        torch.manual_seed(self.experiment.options.seed)
        if objective is None:
            return load_model(name)
        auto_name = objectives.get(objective).auto_class
        config = load_config(name)
        if auto_name not in auto_classes(architecture_of(config)):
            raise HealingError(
                f"objective {objective!r} does not fit {name!r}: a {config.model_type} has no {auto_name}. Leave "
                "--objective out, and the model's own head decides."
            )
        return load_model(name, auto_class=auto_class(auto_name), config=config)

    def _check(self, model: Any) -> None:
        """Refuse a model that cannot be healed, or has no control, before any long computation."""
        experiment = self.experiment
        if self.scheme is None and not is_swapped(model):
            raise HealingError(
                f"model {experiment.model!r} is stock: name the scheme to swap in with --pos-scheme, or give a swapped "
                "model."
            )
        if experiment.stock is not None and not is_swapped(model):
            raise HealingError(
                f"model {experiment.model!r} is stock, so it is its own stock model: leave out --stock "
                f"{experiment.stock}."
            )
        if experiment.stock is None and (experiment.control or experiment.evaluation or experiment.options.distill > 0):
            require_stock_inside(model)
        if experiment.control:
            stock_limit = stock_longest_position(model)
            length = healing_length(experiment.options.length, train_length(model))
            if stock_limit is not None and length > stock_limit:
                raise HealingError(
                    f"length is {length}, and the control, the stock model, reads at most {stock_limit} tokens. Give a "
                    f"length of at most {stock_limit}, or leave out --control."
                )
        objective = objective_for(model, experiment.options.objective)
        if experiment.control and objective.name == "embedding" and experiment.options.distill > 0:
            raise HealingError(
                "a control says nothing for objective 'embedding' with distill: the stock model is its own teacher, "
                "and its cosine to itself is 1. Leave out --control."
            )

    def _load_stock(self) -> Any:
        """Load another copy of the stock model.

        Raises:
            HealingError: the model named as the stock model is swapped.
        """
        stock = self._load(self.experiment.stock or self.experiment.model)
        if not is_swapped(stock):
            return stock
        if self.experiment.stock is not None:
            raise HealingError(f"{self.experiment.stock!r}, named as the stock model, is swapped. Name the one before.")
        return restore(stock)

    def _swap_and_measure(self, model: Any) -> None:
        """Swap the loaded model, measuring it before and after."""
        if self.experiment.stock is not None:
            self.stock = self._load_stock().requires_grad_(False)
            require_same_shape(self.stock, model, self.experiment.stock)
        elif self.evaluation_ids:
            stock = copy.deepcopy(model)
            self.stock = restore(stock) if is_swapped(stock) else stock
        if self.scheme is not None:
            swap(model, self.scheme, replace=True)
            self._require_base_for_adapter(model)
        self._require_calibration_if_asked(model)
        if self.evaluation_ids:
            self.stock = self.stock.to(self.accelerator.device).eval()
            self._measure("stock", self.stock)
        self._measure("swapped", model)

    def _require_base_for_adapter(self, model: Any) -> None:
        """Refuse an adapter if calibration will change weights: the adapter would be saved without them."""
        experiment = self.experiment
        if experiment.lora_rank is None or not experiment.calibrate or not rewrites_weights(model):
            return
        raise HealingError(
            f"calibrating {experiment.pos_scheme!r} rewrites the weights of queries and keys, which an adapter does "
            "not carry. Save the calibrated model first (hf-posswap calibrate … --output-dir CALIBRATED) and heal that "
            "(--model CALIBRATED, without --pos-scheme), or give --no-calibrate."
        )

    def _no_calibration(self, model: Any) -> str | None:
        """Return why the swapped model will not be calibrated, or None if it will."""
        if not self.experiment.calibrate:
            return "calibration is left out (--no-calibrate)"
        if self.scheme is None:
            # The model may be healed already, and its weights are then not the stock model's.
            return "a model that came swapped is not calibrated"
        return calibration_refusal(model)

    def _require_calibration_if_asked(self, model: Any) -> None:
        tokens, reason = self.experiment.calibration_tokens, self._no_calibration(model)
        if tokens is not None and reason is not None:
            raise HealingError(
                f"--calibration-tokens {tokens} says how much to calibrate on, but {reason}. Leave out the tokens."
            )

    def _calibrate(self, model: Any) -> CalibrationReport | None:
        experiment = self.experiment
        if self._no_calibration(model) is not None:
            return None
        self._stage("calibrating")
        report = calibrate_on(
            model.to(self.accelerator.device),
            experiment.documents,
            self.tokenizer,
            tokens=self._calibration_tokens,
            column=experiment.column,
        )
        self._measure("calibrated", model)
        return report

    @property
    def _calibration_tokens(self) -> int:
        asked = self.experiment.calibration_tokens
        return CALIBRATION_TOKENS if asked is None else asked

    def _heal(self, model: Any, options: HealingOptions, folder: Path | None, name: str) -> tuple[Any, Any]:
        experiment = self.experiment
        self._stage("healing" if name == "healed" else "healing the control")
        if experiment.lora_rank is not None:
            from hf_posswap.training.adapters import add_lora

            model = add_lora(model, experiment.lora_rank)
        report = heal(
            model,
            experiment.documents,
            self.tokenizer,
            options,
            teacher=self.stock if experiment.stock is not None else None,
            output_dir=folder,
            resume=experiment.resume,
            run=self._identity(),
            column=experiment.column,
            accelerator=self.accelerator,
            observer=self.observer,
            tracked_as=f"{name}/",
        )
        self.accelerator.free_memory()  # otherwise the optimizer stays in memory while the control is healed
        self._measure(name, self._whole(model, folder))
        return report, model

    def _identity(self) -> dict[str, Any]:
        """Return the run's identity besides its options, for resuming."""
        experiment = self.experiment
        stock = {} if experiment.stock is None else {"stock": experiment.stock}
        return {
            "model": experiment.model,
            "pos_scheme": experiment.pos_scheme,
            "texts": experiment.texts,
            "lora_rank": experiment.lora_rank,
            "calibration_tokens": self._calibration_tokens if experiment.calibrate else 0,
        } | stock

    def _whole(self, model: Any, folder: Path | None) -> Any:
        """Return a healed model that a single process can run: a sharded one is loaded from its saved folder."""
        if self._sharded and self.evaluation_ids and self.accelerator.is_main_process:
            return load_model(str(folder))
        return model

    def _measure(self, name: str, model: Any) -> None:
        """Measure a model by length on the evaluation texts, in the main process."""
        if not self.evaluation_ids or not self.accelerator.is_main_process:
            return
        self._stage(f"measuring the {name} model")
        model = plain_model(model).to(self.accelerator.device)
        self.evaluations[name] = self._yardstick().rows(model, self.stock)

    def _yardstick(self) -> StageMeasure:
        experiment = self.experiment
        return StageMeasure(
            objective_for(self.stock, experiment.options.objective).name,
            self.tokenizer,
            self.evaluation_ids,
            experiment.lengths,
            healing_length(experiment.options.length, train_length(self.stock)),
            experiment.evaluation_tokens,
            experiment.options.seed,
        )

    def _stage(self, name: str) -> None:
        if self.accelerator.is_main_process:
            self.observer.stage(name)


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise OutputError(
            f"cannot write {str(path)!r}: {error}. The healed model beside it is whole: make room, then run again with "
            "--resume."
        ) from error


def _tracking(experiment: Experiment) -> dict[str, Any]:
    if experiment.log_with is None:
        return {}
    installed = [str(tracker.value) for tracker in get_available_trackers()]
    if experiment.log_with not in installed:
        raise HealingError(
            f"cannot log with {experiment.log_with!r}. Trackers that are installed here: "
            f"{', '.join(installed) or 'none'}. Take one of them, or install its package."
        )
    folder = experiment.output_dir or Path()
    return {"log_with": experiment.log_with, "project_dir": str(folder / "logs")}
