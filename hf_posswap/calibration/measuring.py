"""The measure of a model before and after calibration: next-token loss, masked loss or agreement of embeddings."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.architectures import architecture_of
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.questions import without_scheme
from hf_posswap.texts.masking import choose_masked

Quantity = Literal["loss", "masked loss", "agreement"]


class Yardstick:
    """The measure that decides whether a calibration is kept, on texts that it was not fitted to.

    A model with a language modelling head is measured by its loss: of the next token if it is causal, of masked tokens
    if it is an encoder and the tokenizer's mask token is known. Every other model is measured by the cosine of its text
    embeddings, the mean of the last hidden states, to the stock model's.

    Args:
        model: a swapped model.
        texts: token ids, int64 (B, L).
        tokenizer: the model's tokenizer, for the mask token.

    Attributes:
        quantity: "loss" and "masked loss" are mean −ln p, in nats; "agreement" is 1 − the mean cosine. Lower is better.
        stock: the value of the stock model.
    """

    def __init__(self, model: Any, texts: list[Tensor], tokenizer: Any = None) -> None:
        self.texts = texts
        self.quantity: Quantity = "agreement"
        self._masked: list[tuple[Tensor, Tensor]] = []
        self._stock: list[Tensor] = []
        if _predicts_next(model):
            self.quantity = "loss"
        elif model.get_output_embeddings() is not None and getattr(tokenizer, "mask_token_id", None) is not None:
            self._masked = _hide(texts, tokenizer)
            if any(bool(chosen.any()) for _, chosen in self._masked):
                self.quantity = "masked loss"
        with without_scheme(model):
            if self.quantity == "agreement":
                self._stock = _embeddings(model, texts)
            self.stock = self.measure(model)

    @torch.no_grad()
    def measure(self, model: Any) -> float:
        """Return the value of the model in its present state."""
        if self.quantity == "loss":
            loss = mean_loss(model, self.texts)
            assert loss is not None
            return loss
        if self.quantity == "masked loss":
            return self._masked_loss(model)
        pairs = zip(_embeddings(model, self.texts), self._stock, strict=True)
        return 1.0 - float(torch.cat([F.cosine_similarity(own, stock) for own, stock in pairs]).double().mean())

    def _masked_loss(self, model: Any) -> float:
        total = 0.0
        for text, (hidden, chosen) in zip(self.texts, self._masked, strict=True):
            logits = model(hidden).logits[chosen]
            total += float(F.cross_entropy(logits.float(), text[chosen].to(logits.device), reduction="sum"))
        return total / sum(int(chosen.sum()) for _, chosen in self._masked)


def mean_loss(model: Any, texts: list[Tensor]) -> float | None:
    """Return the mean −ln p over the texts' tokens, or None if the model does not predict the next token."""
    if not _predicts_next(model):
        return None
    losses = [_total_loss(model(text, use_cache=False).logits, text) for text in texts]
    return sum(losses) / sum(text[:, 1:].numel() for text in texts)


def _predicts_next(model: Any) -> bool:
    return architecture_of(model.config).is_causal(model.config) and model.get_output_embeddings() is not None


def _total_loss(logits: Tensor, text: Tensor) -> float:
    """Return the sum of −ln p over a batch. Given labels instead, transformers logs a warning about GPT-2's config."""
    targets = text[:, 1:].flatten().to(logits.device)
    return float(F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, reduction="sum"))


def _hide(texts: list[Tensor], tokenizer: Any) -> list[tuple[Tensor, Tensor]]:
    """Return each batch with some of its tokens masked, and a mask of these; every call chooses the same tokens."""
    generator = torch.Generator().manual_seed(0)
    never = torch.tensor(tokenizer.all_special_ids)
    found = []
    for text in texts:
        chosen = torch.stack([choose_masked(row, never, generator) for row in text.cpu()]).to(text.device)
        found.append((text.masked_fill(chosen, tokenizer.mask_token_id), chosen))
    return found


@torch.no_grad()
def _embeddings(model: Any, texts: list[Tensor]) -> list[Tensor]:
    return [core_of(model)(text).last_hidden_state.float().mean(1) for text in texts]
