"""The measure of a stage of an experiment: the loss of the model's head, or the agreement of its embeddings."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from hf_posswap.evaluation.agreement import embedding_agreement
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.masked import masked_loss_rows
from hf_posswap.evaluation.perplexity import perplexity_rows
from hf_posswap.evaluation.windows import share_out
from hf_posswap.swapped.tokenizers import special_tokens


class StageMeasure:
    """Measures models of one objective at several context lengths, all on the same documents.

    Args:
        objective: name of the objective: "lm", "mlm" or "embedding".
        tokenizer: the models' tokenizer.
        documents: token ids of each document, int64 (n,).
        lengths: context lengths in tokens; empty: `usual`, or the length of the longest document if it is shorter.
        usual: tokens of a window in healing.
        budget: approximate number of tokens to read at each length.
        seed: seed of the masked tokens and of the bootstrap.

    Raises:
        EvaluationError: the objective cannot be measured by length.
        TextTooShortError: no document has as many tokens as the longest length.
    """

    def __init__(
        self,
        objective: str,
        tokenizer: Any,
        documents: Sequence[Tensor],
        lengths: Sequence[int],
        usual: int,
        budget: int,
        seed: int,
    ) -> None:
        if objective not in ("lm", "mlm", "embedding"):
            raise EvaluationError(f"objective {objective!r} is not measured by length; leave out --eval-file.")
        self.objective, self.tokenizer, self.budget, self.seed = objective, tokenizer, budget, seed
        self.frame: tuple[list[int], list[int]] = ([], []) if objective == "lm" else special_tokens(tokenizer)
        around = len(self.frame[0]) + len(self.frame[1])
        counts = [len(ids) for ids in documents]
        whole = sum(counts) >= usual  # otherwise there is too little text in total
        self.lengths = tuple(lengths) or (min(usual, max(counts) + around) if whole else usual,)
        longest = max(self.lengths)
        places, share = share_out(counts, longest, budget, around)
        self.documents = list(documents)
        if objective == "embedding":
            self.documents = [documents[place][: max(share, longest)] for place in places]

    def rows(self, model: Any, stock: Any) -> list[dict[str, Any]]:
        """Return a model's rows, JSON-ready.

        Args:
            model: the model.
            stock: the stock model, whose embeddings are the reference for an encoder without a head.
        """
        rows: Sequence[Any]
        if self.objective == "lm":
            rows = perplexity_rows(model, self.documents, self.lengths, ("same-targets",), budget=self.budget)
        elif self.objective == "mlm":
            rows = masked_loss_rows(
                model, self.tokenizer, self.documents, self.lengths, budget=self.budget, seed=self.seed
            )
        else:
            rows = embedding_agreement(model.eval(), stock, self.documents, self.lengths, *self.frame)
        return [asdict(row) for row in rows]
