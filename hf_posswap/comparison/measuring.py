"""Measures a cell: by the loss of the model's head, or by the agreement of its embeddings with the stock model's."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hf_posswap.architectures import architecture_of
from hf_posswap.comparison.settings import Settings
from hf_posswap.evaluation import agreement, masked
from hf_posswap.evaluation.agreement import agreement_row, embeddings, windows_of
from hf_posswap.evaluation.masked import masked_loss_rows, plan_masked
from hf_posswap.evaluation.perplexity import PROTOCOLS, LengthRow, gap_row, perplexity_rows, planned_tokens
from hf_posswap.evaluation.settings import has_masked_head
from hf_posswap.evaluation.windows import share_out
from hf_posswap.swapped.tokenizers import special_tokens

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROTOCOLS_OF = {"lm": PROTOCOLS, "mlm": (masked.PROTOCOL,), "embedding": (agreement.PROTOCOL,)}
"""Protocols by objective."""
AUTO_CLASSES = {"lm": "AutoModelForCausalLM", "mlm": "AutoModelForMaskedLM", "embedding": "AutoModel"}
"""The Auto class that loads a model for an objective."""


def objective_of(config: "PretrainedConfig") -> str:
    """Return a model's objective: "lm", "mlm", or "embedding" if it is an encoder without a masked-token head."""
    if architecture_of(config).is_causal(config):
        return "lm"
    return "mlm" if has_masked_head(config) else "embedding"


class CellMeasure:
    """Measures every cell of a comparison on the same documents.

    Args:
        settings: settings of the comparison.
        objective: see `objective_of`.
        tokenizer: the model's tokenizer.
        documents: token ids of each document, int64 (n,).

    Attributes:
        protocols: the protocols that it measures by.
        tokens: number of tokens read to measure one cell, for progress; approximate for embeddings.

    Raises:
        EvaluationError: an invalid length or budget.
        TextTooShortError: no document has as many tokens as the longest length.
    """

    def __init__(self, settings: Settings, objective: str, tokenizer: Any, documents: list[Tensor]) -> None:
        self.settings, self.objective, self.tokenizer = settings, objective, tokenizer
        self.documents = documents
        self.protocols: tuple[str, ...] = PROTOCOLS_OF[objective]
        self._stock: dict[int, tuple[list[Tensor], Tensor]] = {}
        self._notes: dict[int, str] = {}
        counts, budget, lengths = [len(ids) for ids in documents], settings.tokens, settings.lengths
        if objective == "lm":
            self.tokens = sum(planned_tokens(counts, lengths, protocol, budget) for protocol in PROTOCOLS)
        elif objective == "mlm":
            plans = plan_masked(tokenizer, documents, lengths, budget, settings.seed)
            self.tokens = sum(len(window.ids) for windows in plans.values() for window in windows)
        else:
            frame = special_tokens(tokenizer)
            places, share = share_out(counts, lengths[-1], budget, sum(map(len, frame)))
            self.documents = [documents[place][: max(share, lengths[-1])] for place in places]
            self.tokens = sum(map(len, self.documents)) * len(lengths)

    def remember(self, stock: Any) -> None:
        """Store the stock model's embeddings, if they are needed, before its scheme is swapped."""
        if self.objective != "embedding" or self._stock or self._notes:
            return
        for length in self.settings.lengths:
            windows, note = windows_of(stock, self.documents, length, *special_tokens(self.tokenizer))
            if note:
                self._notes[length] = note
            else:
                self._stock[length] = windows, embeddings(stock, windows)

    def rows(self, model: Any, progress: Callable[[int], None]) -> list[LengthRow]:
        """Return the rows of a model, one for each protocol and length."""
        settings, seed = self.settings, self.settings.seed
        if self.objective == "lm":
            return perplexity_rows(
                model, self.documents, settings.lengths, PROTOCOLS, budget=settings.tokens, seed=seed, progress=progress
            )
        if self.objective == "mlm":
            return masked_loss_rows(
                *(model, self.tokenizer, self.documents, settings.lengths),
                budget=settings.tokens,
                seed=seed,
                progress=progress,
            )
        return [self._agreement(model, length, progress) for length in settings.lengths]

    def gaps(self, reason: str) -> list[LengthRow]:
        """Return rows without a loss, with the reason in each."""
        return [gap_row(protocol, length, reason) for protocol in self.protocols for length in self.settings.lengths]

    def _agreement(self, model: Any, length: int, progress: Callable[[int], None]) -> LengthRow:
        if length in self._notes:
            return gap_row(agreement.PROTOCOL, length, self._notes[length])
        windows, stock = self._stock[length]
        row = agreement_row(model.eval(), stock, length, windows, self.settings.seed)
        progress(sum(map(len, windows)))
        return row
