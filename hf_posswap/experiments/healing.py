"""One healing experiment from end to end: stock, swapped, calibrated, healed and control model, with one result.

All stages are measured on texts that no stage was trained on.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import get_available_trackers

from hf_posswap.architectures import architecture_of
from hf_posswap.auto import auto_class
from hf_posswap.calibration import calibration_refusal, rewrites_weights
from hf_posswap.evaluation.texts import tokenise
from hf_posswap.experiments.measuring import Measure
from hf_posswap.experiments.observer import Observer
from hf_posswap.experiments.settings import CALIBRATION_TOKENS, EVALUATION_TOKENS, Experiment
from hf_posswap.experiments.stages import CONTROL_FOLDER, STAGES, StagePlan, Subject
from hf_posswap.loading.auto_classes import auto_classes
from hf_posswap.results.environment import collect_environment
from hf_posswap.results.files import OutputError, check_folder, write_text
from hf_posswap.results.kinds import CONTROL, STOCK
from hf_posswap.results.records import HEALING_FILE, remove_records
from hf_posswap.results.writing import to_json
from hf_posswap.schemes import parse_scheme
from hf_posswap.sources import load_config, load_model, load_tokenizer
from hf_posswap.swapped.questions import is_swapped, plain_model, stock_longest_position, train_length
from hf_posswap.swapped.tokenizers import special_tokens
from hf_posswap.swapping import restore
from hf_posswap.training.distribution import SHARDED, make_accelerator
from hf_posswap.training.documents import Texts, from_dataset, from_files, require_apart
from hf_posswap.training.folders import require_room
from hf_posswap.training.loop import HealingReport, healing_lengths
from hf_posswap.training.objectives import objective_for, objectives
from hf_posswap.training.options import HealingError, refuse_idle_adapters
from hf_posswap.training.teacher import require_same_shape, require_stock_inside
from hf_posswap.training.texts import Documents, Windows

FORMAT_VERSION = 1


def run_experiment(
    experiment: Experiment, observer: Observer | None = None, folder: Path | None = None
) -> dict[str, Any]:
    """Run an experiment and return its JSON-ready result.

    The result contains `evaluation` rows by length for each of the stages "stock", "swapped", "calibrated", "healed"
    and "control" that ran; a few rows of the losses of healing and of the control; options, texts, versions and
    hardware.

    Args:
        experiment: the settings.
        observer: callbacks for progress; None: no progress is reported.
        folder: folder for the healed model, checkpoints and the result; None: nothing is written.

    Raises:
        PosSwapError: a model, scheme, text or option cannot be used; see `heal`.
    """
    return _Run(experiment, observer or Observer(), folder).run()


class _Run:
    """The state of one experiment: takes the model and the control through their stages, and stores measurements."""

    def __init__(self, experiment: Experiment, observer: Observer, folder: Path | None) -> None:
        self.experiment, self.options, self.folder = experiment, experiment.healing, folder
        self.column = experiment.text_column or "text"
        (self.measured, self.measured_facts), (documents, self.facts) = _texts(experiment, self.column)
        scheme = None if experiment.pos_scheme is None else parse_scheme(experiment.pos_scheme)
        self.accelerator = make_accelerator(self.options, **_tracking(experiment.log_with, folder))
        if experiment.log_with is not None:
            self.accelerator.init_trackers("hf_posswap", _as_texts(self.options.to_dict()))
        self.main = self.accelerator.is_main_process
        self.observer = observer if self.main else Observer()
        self.tokenizer = load_tokenizer(experiment.model)
        self.evaluation_ids = [tokenise(self.tokenizer, text) for text in self.measured]
        self._sharded = self.accelerator.distributed_type in SHARDED
        if self._sharded and self.measured and (experiment.lora_rank or folder is None):
            raise HealingError(
                "a sharded model is measured as it was saved, whole: give an output folder, and leave out --lora-rank "
                "or --eval-file."
            )
        if experiment.history is not None:
            check_folder(experiment.history.parent)
        tokens = experiment.calibration_tokens
        self.plan = StagePlan(
            load=lambda: self._load(experiment.model),
            scheme=scheme,
            seed=self.options.seed,
            device=self.accelerator.device,
            tokenizer=self.tokenizer,
            documents=documents,
            column=self.column,
            calibration_tokens=CALIBRATION_TOKENS if tokens is None else tokens,
            healing=self.options,
            accelerator=self.accelerator,
            lora_rank=experiment.lora_rank,
            folder=folder,
            resume=experiment.resume,
            identity=_identity(experiment, self.facts),
        )
        self.measure: Measure | None = None
        self.evaluations: dict[str, list[dict[str, Any]]] = {}

    def run(self) -> dict[str, Any]:
        experiment, folder = self.experiment, self.folder
        self._require_room()
        self._tell_documents()
        subject = Subject(self.plan, self.observer)
        subject.reach(STOCK)
        self._check(subject.model)
        stock = self._stock_to_compare_with(subject.model)
        subject.teacher = stock if experiment.stock is not None else None
        subject.reach("swapped")
        self._check_swapped(subject.model)
        if self.evaluation_ids:
            self.measure = self._make_measure(stock)
            self._measure(STOCK, stock, remember=True)
        del stock
        self._measure("swapped", subject.model)
        entry, length = subject.model.config.pos_scheme, train_length(subject.model)
        calibration = None
        if self._no_calibration(subject.model) is None:
            calibration = subject.reach("calibrated")
            self._measure("calibrated", subject.model)
        if folder is not None and not experiment.resume and self.main:
            remove_records(folder)
        healing = subject.reach("healed")
        self._measure("healed", self._whole(subject.model, folder))
        del subject
        control = None
        if experiment.control:
            # The rate that was chosen for the swapped model: the control learns on the same schedule.
            same = replace(self.options, learning_rate=healing.learning_rate)
            subject = Subject(replace(self.plan, load=self._load_stock, healing=same), self.observer)
            control = subject.reach(CONTROL)
            self._measure(CONTROL, self._whole(subject.model, None if folder is None else folder / CONTROL_FOLDER))
        self.accelerator.end_training()
        result = {
            "format_version": FORMAT_VERSION,
            "model": experiment.model,
            "stock": experiment.stock,
            "scheme": experiment.pos_scheme,
            "pos_scheme": entry,
            "train_length": length,
            "texts": self.facts,
            "options": self.options.to_dict() | _chosen(healing),
            "lora_rank": experiment.lora_rank,
            "evaluation": self.evaluations,
            "evaluation_texts": self.measured_facts,
            "calibration": None if calibration is None else asdict(calibration),
            "healing": healing.to_dict(),
            "control": None if control is None else control.to_dict(),
            "processes": self.accelerator.num_processes,
            "environment": collect_environment(),
        }
        if self.main:
            if experiment.history is not None:
                steps = {"healed": healing.history} | ({} if control is None else {CONTROL: control.history})
                experiment.history.parent.mkdir(parents=True, exist_ok=True)
                _write(experiment.history, to_json(steps))
            if folder is not None:
                _write(folder / HEALING_FILE, to_json(result))
        return result

    def _tell_documents(self) -> None:
        """Tell the observer the number of documents and their lengths."""
        if not self.main:
            return
        windows = Windows(self.plan.documents, self.tokenizer, 1, packing=False, column=self.column)
        self.observer.documents("Healing on", *windows.document_lengths())
        self.observer.documents("Measuring on", [len(ids) for ids in self.evaluation_ids], len(self.evaluation_ids))

    def _require_room(self) -> None:
        """Refuse output folders with contents other than this run's, before any long computation."""
        experiment = self.experiment
        if self.folder is None:
            return
        folders = [self.folder, *([self.folder / CONTROL_FOLDER] if experiment.control else [])]
        for folder in folders:
            require_room(folder, experiment.resume, adapter=experiment.lora_rank is not None)

    def _load(self, name: str) -> Any:
        """Load a model; if the options name an objective, with the head that this objective trains.

        Raises:
            HealingError: the model has no such head.
        """
        objective = self.options.objective
        torch.manual_seed(self.options.seed)
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
        """Refuse a model that cannot be healed, or a control that cannot be trained, before any long computation.

        Raises:
            HealingError: the experiment's settings do not fit the model.
        """
        experiment = self.experiment
        if experiment.lora_rank is not None:
            refuse_idle_adapters(self.options)
        if self.plan.scheme is None and not is_swapped(model):
            raise HealingError(
                f"model {experiment.model!r} is stock: name the scheme to swap in with --pos-scheme, or give a swapped "
                "model."
            )
        if experiment.stock is not None and not is_swapped(model):
            raise HealingError(
                f"model {experiment.model!r} is stock, so it is its own stock model: leave out --stock "
                f"{experiment.stock}."
            )
        taught = self.options.names_supervision and self.options.supervision().has_teacher
        if experiment.stock is None and (experiment.control or self.measured or taught):
            require_stock_inside(model)
        if experiment.control:
            stock_limit = stock_longest_position(model)
            length = max(healing_lengths(self.options, train_length(model)))
            if stock_limit is not None and length > stock_limit:
                raise HealingError(
                    f"length is {length}, and the control, the stock model, reads at most {stock_limit} tokens. Give a "
                    f"length of at most {stock_limit}, or leave out --control."
                )
        objective = objective_for(model, self.options.objective)
        if experiment.control and objective.name == "embedding" and self.options.supervision().has_teacher:
            raise HealingError(
                "a control says nothing for objective 'embedding' with a teacher: the stock model is its own teacher, "
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

    def _stock_to_compare_with(self, model: Any) -> Any:
        """Return the stock model to compare with, or None.

        This is the stock model that the settings name. If they name none and there are texts to measure on, it is
        restored from a copy of `model`. Otherwise it is None.
        """
        if self.experiment.stock is not None:
            self.observer.stage(STAGES[STOCK].event)
            stock = self._load_stock().requires_grad_(False)
            require_same_shape(stock, model, self.experiment.stock)
            return stock
        if not self.evaluation_ids:
            return None
        stock = copy.deepcopy(model)
        return restore(stock) if is_swapped(stock) else stock

    def _check_swapped(self, model: Any) -> None:
        """Refuse an adapter, or a number of calibration tokens, that does not fit the calibration of the model.

        The files of an adapter do not contain the weights that calibration changes.

        Raises:
            HealingError: calibration changes weights beside an adapter, or a number of tokens is set but the model is
                not calibrated.
        """
        experiment = self.experiment
        if experiment.lora_rank is not None and self._no_calibration(model) is None and rewrites_weights(model):
            raise HealingError(
                f"calibrating {experiment.pos_scheme!r} rewrites the weights of queries and keys, which an adapter "
                "does not carry. Save the calibrated model first (hf-posswap calibrate … --output-dir CALIBRATED) and "
                "heal that (--model CALIBRATED, without --pos-scheme), or give --no-calibrate."
            )
        tokens, reason = experiment.calibration_tokens, self._no_calibration(model)
        if tokens is not None and reason is not None:
            raise HealingError(f"--calibration-tokens {tokens} is for calibration, but {reason}. Leave it out.")

    def _no_calibration(self, model: Any) -> str | None:
        """Return why the swapped model will not be calibrated, or None if it will."""
        if not self.experiment.calibrate:
            return "calibration is left out (--no-calibrate)"
        if self.plan.scheme is None:
            # The model may be healed already. Its weights then differ from the stock model's.
            return "a model that came swapped is not calibrated"
        return calibration_refusal(model)

    def _whole(self, model: Any, folder: Path | None) -> Any:
        """Return a healed model that one process can run: a sharded model is loaded from the folder it was saved to."""
        if self._sharded and self.measure is not None and self.main:
            return load_model(str(folder))
        return model

    def _make_measure(self, stock: Any) -> Measure:
        """Return the measure of the experiment.

        Without lengths in the settings, it measures at the length of healing, or at the length of the longest text if
        that is shorter.
        """
        experiment = self.experiment
        objective = objective_for(stock, self.options.objective).name
        lengths: Sequence[int] = experiment.lengths
        if not lengths:
            usual = max(healing_lengths(self.options, train_length(stock)))
            around = 0 if objective == "lm" else sum(map(len, special_tokens(self.tokenizer)))
            counts = [len(ids) for ids in self.evaluation_ids]
            whole = sum(counts) >= usual  # otherwise there is too little text in total
            lengths = (min(usual, max(counts) + around) if whole else usual,)
        return Measure(
            objective,
            self.tokenizer,
            self.evaluation_ids,
            lengths,
            budget=experiment.tokens or EVALUATION_TOKENS,
            seed=self.options.seed,
            losses=("same-targets",),
            keys=False,
            cosines=True,
        )

    def _measure(self, name: str, model: Any, remember: bool = False) -> None:
        """Measure a model by length on the evaluation texts, in the main process."""
        if self.measure is None or not self.main:
            return
        self.observer.stage(f"measuring the {name} model")
        model = plain_model(model).to(self.accelerator.device).eval()
        if remember:
            self.measure.remember(model)
        self.evaluations[name] = [asdict(row) for row in self.measure.rows(model)]


def _chosen(healing: HealingReport) -> dict[str, Any]:
    """Return the options that a run chose for itself."""
    return {"supervise": healing.supervision, "distill": 0.0, "learning_rate": healing.learning_rate}


def _identity(experiment: Experiment, texts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings, other than the options, that a run must share with a run that it resumes."""
    tokens = CALIBRATION_TOKENS if experiment.calibration_tokens is None else experiment.calibration_tokens
    stock = {} if experiment.stock is None else {"stock": experiment.stock}
    return {
        "model": experiment.model,
        "pos_scheme": experiment.pos_scheme,
        "texts": texts,
        "lora_rank": experiment.lora_rank,
        "calibration_tokens": tokens if experiment.calibrate else 0,
    } | stock


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise OutputError(
            f"cannot write {str(path)!r}: {error}. The healed model beside it is whole: make room, then run again with "
            "--resume."
        ) from error


def _texts(experiment: Experiment, column: str) -> tuple[Texts, tuple[Documents, list[dict[str, Any]]]]:
    """Return the texts to measure on and the texts to heal on, with their identities."""
    measured = from_files(experiment.texts, experiment.documents)
    if experiment.dataset is not None:
        return measured, from_dataset(experiment.dataset, experiment.dataset_split or "train", column)
    learned = from_files(experiment.train_texts, experiment.documents)
    require_apart(measured, learned)
    return measured, learned


def _tracking(log_with: str | None, folder: Path | None) -> dict[str, Any]:
    if log_with is None:
        return {}
    installed = [str(tracker.value) for tracker in get_available_trackers()]
    if log_with not in installed:
        raise HealingError(
            f"cannot log with {log_with!r}. Trackers that are installed here: {', '.join(installed) or 'none'}. Take "
            "one of them, or install its package."
        )
    return {"log_with": log_with, "project_dir": str((folder or Path()) / "logs")}


def _as_texts(options: dict[str, Any]) -> dict[str, Any]:
    """Return options with lists as texts, because trackers such as TensorBoard's take no lists."""
    return {
        name: ",".join(map(str, value)) if isinstance(value, list | tuple) else value for name, value in options.items()
    }
