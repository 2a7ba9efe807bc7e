"""Measures a model at a stage: by the loss of its head, or by the agreement of embeddings with the stock model's."""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hf_posswap.architectures import architecture_of
from hf_posswap.evaluation import agreement, masked
from hf_posswap.evaluation.agreement import AgreementRow, agreement_row, cosine_row, embeddings, windows_of
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.key_token_choice import key_tokens
from hf_posswap.evaluation.masked import masked_loss_rows, plan_masked
from hf_posswap.evaluation.perplexity import LengthRow, gap_row, perplexity_rows, planned_tokens
from hf_posswap.evaluation.preparation import has_masked_head
from hf_posswap.evaluation.windows import USUAL_PROTOCOLS, Protocol, check_lengths, share_out
from hf_posswap.results.kinds import KEY_TOKENS
from hf_posswap.swapped.tokenizers import special_tokens

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROTOCOLS_OF = {"lm": (*USUAL_PROTOCOLS, KEY_TOKENS), "mlm": (masked.PROTOCOL,), "embedding": (agreement.PROTOCOL,)}
"""Protocols by objective."""
AUTO_CLASSES = {"lm": "AutoModelForCausalLM", "mlm": "AutoModelForMaskedLM", "embedding": "AutoModel"}
"""The Auto class that loads a model for an objective."""


def objective_of(config: "PretrainedConfig") -> str:
    """Return a model's objective: "lm", "mlm", or "embedding" if it is an encoder without a masked-token head."""
    if architecture_of(config).is_causal(config):
        return "lm"
    return "mlm" if has_masked_head(config) else "embedding"


class Measure:
    """Measures models of one objective at several lengths, all on the same documents.

    Args:
        objective: the objective: "lm", "mlm" or "embedding".
        tokenizer: the models' tokenizer.
        documents: token ids of each document, int64 (n,).
        lengths: context lengths in tokens.
        budget: approximate number of tokens to read for each length and protocol.
        seed: seed of masked tokens and of the bootstrap.
        losses: protocols of the loss of causal models.
        keys: whether to report the loss of key tokens of causal models too.
        cosines: whether to report the agreement of embeddings as `AgreementRow` instead of as a loss.

    Attributes:
        lengths: the lengths, in ascending order.
        protocols: the protocols of the measurement.
        tokens: number of tokens read to measure one model, for progress; approximate for embeddings.

    Raises:
        EvaluationError: a length or the budget is invalid, or the objective cannot be measured by length.
        TextTooShortError: no document has as many tokens as the longest length.
    """

    def __init__(
        self,
        objective: str,
        tokenizer: Any,
        documents: Sequence[Tensor],
        lengths: Sequence[int],
        *,
        budget: int,
        seed: int,
        losses: Sequence[Protocol] = USUAL_PROTOCOLS,
        keys: bool = True,
        cosines: bool = False,
    ) -> None:
        if objective not in PROTOCOLS_OF:
            raise EvaluationError(f"objective {objective!r} is not measured by length; leave out --eval-file.")
        self.objective, self.tokenizer, self.documents = objective, tokenizer, list(documents)
        self.lengths, self.budget, self.seed = check_lengths(lengths), budget, seed
        self.losses, self.cosines = tuple(losses), cosines
        of_causal: tuple[str, ...] = (*self.losses, KEY_TOKENS) if keys else self.losses
        self.protocols: tuple[str, ...] = of_causal if objective == "lm" else PROTOCOLS_OF[objective]
        self._keys: Tensor | None = None
        self._stock: dict[int, tuple[list[Tensor], Tensor]] = {}
        self._notes: dict[int, str] = {}
        counts = [len(ids) for ids in documents]
        if objective == "lm":
            self.tokens = sum(planned_tokens(counts, self.lengths, protocol, budget) for protocol in self.losses)
        elif objective == "mlm":
            plans = plan_masked(tokenizer, self.documents, self.lengths, budget, seed)
            self.tokens = sum(len(window.ids) for windows in plans.values() for window in windows)
        else:
            frame, longest = special_tokens(tokenizer), self.lengths[-1]
            places, share = share_out(counts, longest, budget, sum(map(len, frame)))
            self.documents = [documents[place][: max(share, longest)] for place in places]
            self.tokens = sum(map(len, self.documents)) * len(self.lengths)

    def remember(self, stock: Any) -> None:
        """Store the stock model's choice of key tokens, or its embeddings. Call this before `rows`."""
        if self.objective == "lm" and KEY_TOKENS in self.protocols and self._keys is None:
            self._keys = key_tokens(stock, self.documents, self.lengths, budget=self.budget)
        if self.objective != "embedding" or self._stock or self._notes:
            return
        for length in self.lengths:
            windows, note = windows_of(stock, self.documents, length, *special_tokens(self.tokenizer))
            if note:
                self._notes[length] = note
            else:
                self._stock[length] = windows, embeddings(stock, windows)

    def rows(
        self, model: Any, progress: Callable[[int], None] | None = None, only: Collection[int] | None = None
    ) -> Sequence[LengthRow | AgreementRow]:
        """Return the rows of a model, one for each protocol and length.

        Args:
            model: the model.
            progress: called with the numbers of tokens read.
            only: of a model with a loss the lengths to measure; None: all of them.
        """
        how: dict[str, Any] = {"budget": self.budget, "seed": self.seed, "progress": progress, "only": only}
        if self.objective == "lm":
            return perplexity_rows(model, self.documents, self.lengths, self.losses, keys=self._keys, **how)
        if self.objective == "mlm":
            return masked_loss_rows(model, self.tokenizer, self.documents, self.lengths, **how)
        rows = []
        for length in self.lengths:
            rows.append(self._agreement(model.eval(), length))
            if progress is not None and length in self._stock:
                progress(sum(map(len, self._stock[length][0])))
        return rows

    def gaps(self, reason: str) -> list[LengthRow]:
        """Return rows without a loss; each row contains the reason."""
        return [gap_row(protocol, length, reason) for protocol in self.protocols for length in self.lengths]

    def _agreement(self, model: Any, length: int) -> LengthRow | AgreementRow:
        note = self._notes.get(length)
        if note is not None:
            gap = AgreementRow(length, None, None, 0, note)
            return gap if self.cosines else gap_row(agreement.PROTOCOL, length, note)
        windows, stock = self._stock[length]
        if self.cosines:
            return cosine_row(model, stock, length, windows)
        return agreement_row(model, stock, length, windows, self.seed)
