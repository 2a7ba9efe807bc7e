"""An evaluation cut into parts, one measurement at one length each: a finished part is never measured again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hf_posswap.evaluation.collection import Collection, make_collection
from hf_posswap.evaluation.document_retrieval import RetrievalTask
from hf_posswap.evaluation.masked import measure_masked, plan_masked
from hf_posswap.evaluation.passkey_retrieval import PasskeyTask
from hf_posswap.evaluation.perplexity import measure_length, plan_texts
from hf_posswap.evaluation.positions import measure_windows
from hf_posswap.evaluation.reading import Reader
from hf_posswap.evaluation.settings import MEASUREMENTS, EvaluationSettings

LOSS, POSITION, PASSKEY, RETRIEVAL = "loss-by-length", "loss-by-position", "passkey", "retrieval"
"""Kinds of result files."""
KINDS = {"loss": LOSS, "positions": POSITION, "passkey": PASSKEY, "masked": LOSS, "retrieval": RETRIEVAL}
"""Kind of result file, by measurement."""
FILES = {LOSS: "lengths", POSITION: "positions", PASSKEY: "passkey", RETRIEVAL: "retrieval"}
"""Names of the result files, by kind."""

Rows = dict[str, Sequence[Any]]
"""Rows, instances of one dataclass for each kind, by kind of result file."""


@dataclass(frozen=True)
class Part:
    """One measurement at one length.

    Attributes:
        name: what it is kept under when it is finished.
        tokens: how many tokens it reads, for progress bars.
        measure: returns its rows.
    """

    name: str
    tokens: int
    measure: Callable[[Reader], Rows] = field(repr=False)


class Measurements:
    """Makes the parts of every measurement asked for. Nothing is read by a model yet.

    Args:
        settings: complete ones.
        tokenizer: the model's tokenizer.
        texts: the texts.
        ids: their token ids, int64 (n,).

    Attributes:
        parts: in the order in which they are measured.
        collection: what is retrieved from, if that is measured.

    Raises:
        EvaluationError: something that cannot be measured as asked.
        TextTooShortError: a text with too few tokens; says how many it has and needs.
    """

    def __init__(
        self, settings: EvaluationSettings, tokenizer: Any, texts: Sequence[str], ids: Sequence[Tensor]
    ) -> None:
        self.settings, self.tokenizer, self.texts, self.ids = settings, tokenizer, texts, ids
        self.collection: Collection | None = None
        makers: dict[str, Callable[[], list[Part]]] = {
            "loss": self._loss,
            "positions": self._positions,
            "passkey": self._passkey,
            "masked": self._masked,
            "retrieval": self._retrieval,
        }
        self.parts = [part for name in MEASUREMENTS if name in settings.measurements for part in makers[name]()]

    def _loss(self) -> list[Part]:
        by_position = "positions" in self.settings.measurements
        return [*self._windows((LOSS, POSITION) if by_position else (LOSS,)), *self._same_targets()]

    def _positions(self) -> list[Part]:
        """Loss by position is read off the windows of the loss, if that is measured too."""
        return [] if "loss" in self.settings.measurements else self._windows((POSITION,))

    def _windows(self, kinds: Sequence[str]) -> list[Part]:
        settings = self.settings
        plans = plan_texts("windows", self.ids, settings.lengths, settings.tokens)

        def measure(reader: Reader, length: int) -> Rows:
            row, by_position = measure_windows(reader, length, plans[length], settings.bins, settings.seed)
            rows: Rows = {LOSS: [row], POSITION: by_position}
            return {kind: rows[kind] for kind in kinds}

        return [_part("windows", length, _tokens(length, plans[length]), measure) for length in plans]

    def _same_targets(self) -> list[Part]:
        protocol, settings = "same-targets", self.settings
        plans = plan_texts("same-targets", self.ids, settings.lengths, settings.tokens)

        def measure(reader: Reader, length: int) -> Rows:
            return {LOSS: [measure_length(reader, protocol, length, plans[length], settings.seed)]}

        return [_part(protocol, length, _tokens(length, plans[length]), measure) for length in plans]

    def _passkey(self) -> list[Part]:
        settings = self.settings
        task = PasskeyTask(self.tokenizer, settings.depths, settings.trials, settings.seed)

        def measure(reader: Reader, length: int) -> Rows:
            return {PASSKEY: task.measure(reader, length)}

        return [_part("passkey", length, task.tokens(length), measure) for length in settings.lengths]

    def _masked(self) -> list[Part]:
        settings = self.settings
        plans = plan_masked(self.tokenizer, self.ids, settings.lengths, settings.tokens, settings.seed)

        def measure(reader: Reader, length: int) -> Rows:
            return {LOSS: [measure_masked(reader, length, plans[length], settings.seed)]}

        return [_part("masked", length, length * len(plans[length]), measure) for length in plans]

    def _retrieval(self) -> list[Part]:
        settings = self.settings
        document_tokens = settings.document_tokens or settings.lengths[-1]
        self.collection = make_collection(
            self.tokenizer, self.texts, document_tokens, settings.documents, settings.seed
        )
        task = RetrievalTask(self.tokenizer, self.collection, settings.pooling, settings.seed)

        def measure(reader: Reader, length: int) -> Rows:
            return {RETRIEVAL: task.measure(reader, length)}

        return [_part("retrieval", length, task.tokens(length), measure) for length in settings.lengths]


def _part(name: str, length: int, tokens: int, measure: Callable[[Reader, int], Rows]) -> Part:
    return Part(f"{name}-{length}", tokens, lambda reader: measure(reader, length))


def _tokens(length: int, planned: Sequence[tuple[Any, Sequence[Any]]]) -> int:
    return length * sum(len(windows) for _, windows in planned)
