"""The parts of an evaluation, each one measurement at one length; a resumed run skips finished parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_posswap.architectures.discovery import stock_config
from hf_posswap.evaluation import document_retrieval, needle_retrieval, passkey_retrieval, positions, ruler
from hf_posswap.evaluation.collection import Collection, make_collection
from hf_posswap.evaluation.document_retrieval import RetrievalTask
from hf_posswap.evaluation.errors import TextTooShortError, UnmeasurableError
from hf_posswap.evaluation.key_token_choice import choose, plan_keys
from hf_posswap.evaluation.masked import measure_masked, plan_masked
from hf_posswap.evaluation.needle_retrieval import NeedleTask
from hf_posswap.evaluation.passkey_retrieval import PasskeyTask
from hf_posswap.evaluation.perplexity import (
    PlannedText,
    gap_row,
    measure_length,
    measure_same_targets,
    plan_texts,
)
from hf_posswap.evaluation.positions import measure_windows
from hf_posswap.evaluation.preparation import is_checkpoint
from hf_posswap.evaluation.reading import Reader
from hf_posswap.evaluation.ruler import RulerTask
from hf_posswap.evaluation.settings import MEASUREMENTS, EvaluationSettings
from hf_posswap.evaluation.windows import USUAL_PROTOCOLS, Protocol
from hf_posswap.results.kinds import KEY_TOKENS, LENGTHS, NEEDLES, PASSKEY, POSITIONS, RETRIEVAL, RULER, Kind

if TYPE_CHECKING:
    from transformers import PretrainedConfig

KIND_OF = {
    "loss": LENGTHS,
    KEY_TOKENS: LENGTHS,
    "sliding": LENGTHS,
    "positions": POSITIONS,
    "passkey": PASSKEY,
    "masked": LENGTHS,
    "retrieval": RETRIEVAL,
    "ruler": RULER,
    "needles": NEEDLES,
}
"""Kind of result of each measurement."""

CUT_BY_LENGTH = tuple(name for name, kind in KIND_OF.items() if kind in (LENGTHS, POSITIONS))
"""Measurements that require a text as long as the longest length; a shorter text is an error, not a gap."""

CHOICE = Kind("key-token-choice", "key-token-choice", "key-token-choice", (), "the choice of key tokens")
"""Rows that are stored with the parts, but not written as a result: which targets are key tokens."""

Rows = dict[Kind, Sequence[Any]]
"""Rows, instances of one dataclass for each kind."""


@dataclass(frozen=True)
class Part:
    """One measurement at one length.

    Attributes:
        name: the name under which its rows are stored.
        tokens: number of tokens that it reads, for progress bars.
        measure: function that returns its rows.
        gaps: function that returns its rows without values, given the reason. None: the user named the measurement, so
            that a reason why it is not possible is an error.
        by_stock: whether the stock model reads it, not the measured one.
    """

    name: str
    tokens: int
    measure: Callable[[Reader], Rows] = field(repr=False)
    gaps: Callable[[str], Rows] | None = field(default=None, repr=False)
    by_stock: bool = False


@dataclass(frozen=True)
class KeyToken:
    """A key token by its index among the targets; or, with a note, the reason why none could be chosen."""

    target: int | None
    note: str = ""


class Measurements:
    """Plans the parts of all measurements, without running a model.

    A measurement that the user did not name, and that is not possible with this model and these texts, still has parts:
    their rows are gaps with the reason.

    Args:
        settings: settings completed by `completed`.
        config: the model's configuration.
        tokenizer: the model's tokenizer.
        texts: the documents of the texts.
        ids: token ids of each document, int64 (n,).
        asked: measurements that the user named.

    Attributes:
        parts: the parts, in the order of measuring.
        collection: the collection to retrieve from, if retrieval is measured.

    Raises:
        EvaluationError: a named measurement is not possible, or no measurement is.
        TextTooShortError: a text has too few tokens; the message gives its number and the required one.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        config: "PretrainedConfig",
        tokenizer: Any,
        texts: Sequence[str],
        ids: Sequence[Tensor],
        asked: Sequence[str] = (),
    ) -> None:
        self.settings, self.config, self.asked = settings, config, asked
        self.tokenizer, self.texts, self.ids = tokenizer, texts, ids
        self.collection: Collection | None = None
        self._keys: Tensor | None = None
        self._no_keys = ""
        self._targets = 0
        makers: dict[str, Callable[[], list[Part]]] = {
            "loss": self._loss,
            KEY_TOKENS: self._key_tokens,
            "sliding": self._sliding,
            "positions": self._positions,
            "passkey": self._passkey,
            "masked": self._masked,
            "retrieval": self._retrieval,
            "ruler": self._ruler,
            "needles": self._needles,
        }
        self.parts: list[Part] = []
        failed: dict[str, UnmeasurableError] = {}
        for name in (name for name in MEASUREMENTS if name in settings.measurements):
            try:
                self.parts += makers[name]()
            except UnmeasurableError as error:
                if name in asked or (name in CUT_BY_LENGTH and isinstance(error, TextTooShortError)):
                    raise
                failed[name] = error
                self.parts += [self._left_out(name, length, str(error)) for length in settings.lengths]
        if len(failed) == len(settings.measurements):
            raise next(iter(failed.values()))

    def learn(self, rows: Mapping[str, Any]) -> None:
        """Take over what later parts need from the rows of a finished part, JSON-ready: the choice of key tokens."""
        if CHOICE.name not in rows:
            return
        chosen = rows[CHOICE.name]
        self._no_keys = next((row["note"] for row in chosen if row["note"]), "")
        self._keys = torch.zeros(self._targets, dtype=torch.bool)
        self._keys[[row["target"] for row in chosen if row["target"] is not None]] = True

    def _left_out(self, name: str, length: int, reason: str) -> Part:
        """Return a part of a measurement that is not possible at any length: it reads nothing and returns gaps."""
        names = USUAL_PROTOCOLS if name == "loss" else (name,)
        return Part(f"{name}-{length}", 0, lambda _: self._gaps(names, length, reason))

    def _gaps(self, names: Sequence[str], length: int, reason: str) -> Rows:
        """Return rows without values of measurements, or of protocols of the loss, at one length."""
        found: dict[Kind, list[Any]] = {}
        for name in names:
            kind = KIND_OF.get(name, LENGTHS)
            rows: Sequence[Any]
            if kind == POSITIONS:
                rows = [positions.gap_row(length, reason)]
            elif kind == PASSKEY:
                rows = passkey_retrieval.gap_rows(self.settings.depths, length, reason)
            elif kind == RETRIEVAL:
                rows = document_retrieval.gap_rows(length, reason)
            elif kind == RULER:
                rows = ruler.gap_rows(self.settings.tasks, length, reason)
            elif kind == NEEDLES:
                rows = needle_retrieval.gap_rows(self.settings.most_documents, length, reason)
            else:
                rows = [gap_row(name, length, reason)]
            found.setdefault(kind, []).extend(rows)
        return dict(found)

    def _part(self, names: Sequence[str], length: int, tokens: int, measure: Callable[[Reader, int], Rows]) -> Part:
        """Return a part with the name of the first of the measurements, or protocols of the loss, that it serves."""
        asked = any(("loss" if name in USUAL_PROTOCOLS else name) in self.asked for name in names)
        gaps = None if asked else (lambda reason: self._gaps(names, length, reason))
        return Part(f"{names[0]}-{length}", tokens, lambda reader: measure(reader, length), gaps)

    def _loss(self) -> list[Part]:
        measured = self.settings.measurements
        windows = self._windows(("windows", "positions") if "positions" in measured else ("windows",))
        # The windows of the same targets give the loss of key tokens too, so both are read together.
        return windows if KEY_TOKENS in measured else [*windows, *self._protocol("same-targets")]

    def _key_tokens(self) -> list[Part]:
        """Return the part that chooses the key tokens, then the part of each length."""
        settings = self.settings
        names = ("same-targets", KEY_TOKENS) if "loss" in settings.measurements else (KEY_TOKENS,)
        plans = plan_texts("same-targets", self.ids, settings.lengths, settings.tokens)
        train_length = getattr(stock_config(self.config), "max_position_embeddings", settings.lengths[-1])
        plan = plan_keys(self.ids, settings.lengths, settings.tokens, train_length)
        self._targets = sum(window.targets for _, windows in plan.long_windows for window in windows)

        def choice(reader: Reader) -> Rows:
            return {CHOICE: [KeyToken(int(target)) for target in choose(reader, plan, settings.key_gain).nonzero()]}

        def measure(reader: Reader, length: int) -> Rows:
            assert self._keys is not None, "the part that chooses key tokens comes before"
            both = measure_same_targets(reader, length, plans[length], settings.seed, self._keys)
            rows = dict(zip(("same-targets", KEY_TOKENS), both, strict=True))
            if self._no_keys:
                rows[KEY_TOKENS] = gap_row(KEY_TOKENS, length, self._no_keys)
            return {LENGTHS: [rows[name] for name in names]}

        def no_choice(reason: str) -> Rows:
            return {CHOICE: [KeyToken(None, reason)]}

        gaps = None if KEY_TOKENS in self.asked else no_choice
        by_stock = settings.pos_scheme is not None or is_checkpoint(self.config)
        return [
            Part(f"{KEY_TOKENS}-choice", plan.tokens, choice, gaps, by_stock),
            *(self._part(names, length, _tokens(plans[length]), measure) for length in plans),
        ]

    def _sliding(self) -> list[Part]:
        return self._protocol("sliding")

    def _positions(self) -> list[Part]:
        """Return the parts of the loss by position; none if the loss is measured, whose windows give it too."""
        return [] if "loss" in self.settings.measurements else self._windows(("positions",))

    def _windows(self, names: Sequence[str]) -> list[Part]:
        settings = self.settings
        plans = plan_texts("windows", self.ids, settings.lengths, settings.tokens)

        def measure(reader: Reader, length: int) -> Rows:
            row, by_position = measure_windows(reader, length, plans[length], settings.bins, settings.seed)
            rows: Rows = {LENGTHS: [row], POSITIONS: by_position}
            return {kind: rows[kind] for kind in (KIND_OF.get(name, LENGTHS) for name in names)}

        return [self._part(names, length, _tokens(plans[length]), measure) for length in plans]

    def _protocol(self, protocol: Protocol) -> list[Part]:
        """Return the parts of a protocol of the loss."""
        settings = self.settings
        plans = plan_texts(protocol, self.ids, settings.lengths, settings.tokens, settings.stride)

        def measure(reader: Reader, length: int) -> Rows:
            return {LENGTHS: [measure_length(reader, protocol, length, plans[length], settings.seed)]}

        return [self._part((protocol,), length, _tokens(plans[length]), measure) for length in plans]

    def _passkey(self) -> list[Part]:
        settings = self.settings
        task = PasskeyTask(self.tokenizer, settings.depths, settings.trials, settings.seed)

        def measure(reader: Reader, length: int) -> Rows:
            return {PASSKEY: task.measure(reader, length)}

        return [self._part(("passkey",), length, task.tokens(length), measure) for length in settings.lengths]

    def _masked(self) -> list[Part]:
        settings = self.settings
        plans = plan_masked(self.tokenizer, self.ids, settings.lengths, settings.tokens, settings.seed)

        def measure(reader: Reader, length: int) -> Rows:
            return {LENGTHS: [measure_masked(reader, length, plans[length], settings.seed)]}

        tokens = {length: sum(len(window.ids) for window in windows) for length, windows in plans.items()}
        return [self._part(("masked",), length, tokens[length], measure) for length in plans]

    def _retrieval(self) -> list[Part]:
        settings = self.settings
        document_tokens = settings.document_tokens or settings.lengths[-1]
        self.collection = make_collection(
            self.tokenizer, self.texts, document_tokens, settings.most_documents, settings.seed
        )
        task = RetrievalTask(self.tokenizer, self.collection, settings.pooling, settings.seed)

        def measure(reader: Reader, length: int) -> Rows:
            return {RETRIEVAL: task.measure(reader, length)}

        return [self._part(("retrieval",), length, task.tokens(length), measure) for length in settings.lengths]

    def _ruler(self) -> list[Part]:
        settings = self.settings
        task = RulerTask(self.tokenizer, self.texts, settings.tasks, settings.trials, settings.seed)

        def measure(reader: Reader, length: int) -> Rows:
            return {RULER: task.measure(reader, length)}

        return [self._part(("ruler",), length, task.tokens(length), measure) for length in settings.lengths]

    def _needles(self) -> list[Part]:
        settings = self.settings
        task = NeedleTask(self.tokenizer, self.texts, settings.most_documents, settings.pooling, settings.seed)

        def measure(reader: Reader, length: int) -> Rows:
            return {NEEDLES: task.measure(reader, length)}

        return [self._part(("needles",), length, task.tokens(length), measure) for length in settings.lengths]


def _tokens(planned: Sequence[PlannedText]) -> int:
    return sum(window.size for _, windows in planned for window in windows)
