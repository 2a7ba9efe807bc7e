"""The parts of an evaluation, each one measurement at one length; a resumed run skips finished parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hf_posswap.evaluation import document_retrieval, masked, passkey_retrieval, positions
from hf_posswap.evaluation.collection import Collection, make_collection
from hf_posswap.evaluation.document_retrieval import RetrievalTask
from hf_posswap.evaluation.errors import TextTooShortError, UnmeasurableError
from hf_posswap.evaluation.masked import measure_masked, plan_masked
from hf_posswap.evaluation.passkey_retrieval import PasskeyTask
from hf_posswap.evaluation.perplexity import PROTOCOLS, PlannedText, gap_row, measure_length, plan_texts
from hf_posswap.evaluation.positions import measure_windows
from hf_posswap.evaluation.reading import Reader
from hf_posswap.evaluation.settings import MEASUREMENTS, EvaluationSettings
from hf_posswap.results.kinds import LENGTHS, PASSKEY, POSITIONS, RETRIEVAL, Kind

KIND_OF = {"loss": LENGTHS, "positions": POSITIONS, "passkey": PASSKEY, "masked": LENGTHS, "retrieval": RETRIEVAL}
"""Kind of result of each measurement."""

CUT_BY_LENGTH = ("loss", "positions", "masked")
"""Measurements that require a text as long as the longest length; a shorter text is an error, not a gap."""

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
    """

    name: str
    tokens: int
    measure: Callable[[Reader], Rows] = field(repr=False)
    gaps: Callable[[str], Rows] | None = field(default=None, repr=False)


class Measurements:
    """Plans the parts of all measurements, without running a model.

    A measurement that the user did not name, and that is not possible with this model and these texts, still has parts:
    their rows are gaps with the reason.

    Args:
        settings: settings completed by `completed`.
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
        tokenizer: Any,
        texts: Sequence[str],
        ids: Sequence[Tensor],
        asked: Sequence[str] = (),
    ) -> None:
        self.settings, self.tokenizer, self.texts, self.ids, self.asked = settings, tokenizer, texts, ids, asked
        self.collection: Collection | None = None
        makers: dict[str, Callable[[], list[Part]]] = {
            "loss": self._loss,
            "positions": self._positions,
            "passkey": self._passkey,
            "masked": self._masked,
            "retrieval": self._retrieval,
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

    def _left_out(self, name: str, length: int, reason: str) -> Part:
        """Return a part of a measurement that is not possible at any length: it reads nothing and returns gaps."""
        return Part(f"{name}-{length}", 0, lambda _: self._gaps(name, length, reason))

    def _gaps(self, name: str, length: int, reason: str) -> Rows:
        """Return the rows of one measurement, or of one protocol of the loss, at one length, without values."""
        if name == "loss":
            return {LENGTHS: [gap_row(protocol, length, reason) for protocol in PROTOCOLS]}
        if name == "windows" and "positions" in self.settings.measurements:
            return {LENGTHS: [gap_row(name, length, reason)], POSITIONS: [positions.gap_row(length, reason)]}
        if name in (*PROTOCOLS, masked.PROTOCOL):
            return {LENGTHS: [gap_row(name, length, reason)]}
        if name == "positions":
            return {POSITIONS: [positions.gap_row(length, reason)]}
        if name == "passkey":
            return {PASSKEY: passkey_retrieval.gap_rows(self.settings.depths, length, reason)}
        return {RETRIEVAL: document_retrieval.gap_rows(length, reason)}

    def _part(self, name: str, length: int, tokens: int, measure: Callable[[Reader, int], Rows]) -> Part:
        """Return a part; `name` is a measurement, or a protocol of the loss."""
        measurement = {"windows": "loss", "same-targets": "loss"}.get(name, name)
        asked = measurement in self.asked or (name == "windows" and "positions" in self.asked)
        gaps = None if asked else (lambda reason: self._gaps(name, length, reason))
        return Part(f"{name}-{length}", tokens, lambda reader: measure(reader, length), gaps)

    def _loss(self) -> list[Part]:
        by_position = "positions" in self.settings.measurements
        return [*self._windows((LENGTHS, POSITIONS) if by_position else (LENGTHS,)), *self._same_targets()]

    def _positions(self) -> list[Part]:
        """Return the parts of the loss by position; none if the loss is measured, whose windows give it too."""
        return [] if "loss" in self.settings.measurements else self._windows((POSITIONS,))

    def _windows(self, kinds: Sequence[Kind]) -> list[Part]:
        settings = self.settings
        plans = plan_texts("windows", self.ids, settings.lengths, settings.tokens)

        def measure(reader: Reader, length: int) -> Rows:
            row, by_position = measure_windows(reader, length, plans[length], settings.bins, settings.seed)
            rows: Rows = {LENGTHS: [row], POSITIONS: by_position}
            return {kind: rows[kind] for kind in kinds}

        return [self._part("windows", length, _tokens(plans[length]), measure) for length in plans]

    def _same_targets(self) -> list[Part]:
        protocol, settings = "same-targets", self.settings
        plans = plan_texts("same-targets", self.ids, settings.lengths, settings.tokens)

        def measure(reader: Reader, length: int) -> Rows:
            return {LENGTHS: [measure_length(reader, protocol, length, plans[length], settings.seed)]}

        return [self._part(protocol, length, _tokens(plans[length]), measure) for length in plans]

    def _passkey(self) -> list[Part]:
        settings = self.settings
        task = PasskeyTask(self.tokenizer, settings.depths, settings.trials, settings.seed)

        def measure(reader: Reader, length: int) -> Rows:
            return {PASSKEY: task.measure(reader, length)}

        return [self._part("passkey", length, task.tokens(length), measure) for length in settings.lengths]

    def _masked(self) -> list[Part]:
        settings = self.settings
        plans = plan_masked(self.tokenizer, self.ids, settings.lengths, settings.tokens, settings.seed)

        def measure(reader: Reader, length: int) -> Rows:
            return {LENGTHS: [measure_masked(reader, length, plans[length], settings.seed)]}

        tokens = {length: sum(len(window.ids) for window in windows) for length, windows in plans.items()}
        return [self._part("masked", length, tokens[length], measure) for length in plans]

    def _retrieval(self) -> list[Part]:
        settings = self.settings
        document_tokens = settings.document_tokens or settings.lengths[-1]
        self.collection = make_collection(
            self.tokenizer, self.texts, document_tokens, settings.most_documents, settings.seed
        )
        task = RetrievalTask(self.tokenizer, self.collection, settings.pooling, settings.seed)

        def measure(reader: Reader, length: int) -> Rows:
            return {RETRIEVAL: task.measure(reader, length)}

        return [self._part("retrieval", length, task.tokens(length), measure) for length in settings.lengths]


def _tokens(planned: Sequence[PlannedText]) -> int:
    return sum(window.size for _, windows in planned for window in windows)
