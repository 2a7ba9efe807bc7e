"""Training objectives of healing: next token, masked tokens or text embeddings, each with or without a teacher.

Each objective returns a sum over tokens or texts and their count, so that a mean over several batches and processes is
the mean over all of their tokens or texts.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_posswap.architectures import architecture_of
from hf_posswap.common.registry import Registry
from hf_posswap.texts.masking import MASKED_SHARE
from hf_posswap.training.hidden_states import hidden_states, mean_distance
from hf_posswap.training.options import HealingError
from hf_posswap.training.supervision import Supervision
from hf_posswap.training.texts import Window, collate

IGNORED = -100
"""Label of a token that is not scored, as in transformers."""
TEMPERATURE = 0.05

SKIPPED = "skipped_positions"
"""Name in a batch of the positions that only the student reads, int64 (B, L)."""

Inputs = dict[str, Tensor]


class Objective(ABC):
    """One objective.

    Args:
        supervision: weights of the own loss and of the distances to the teacher's outputs and hidden states.
        readable: length of the longest text that the teacher can read.
        tokenizer: the model's tokenizer.
    """

    name: ClassVar[str]
    auto_class: ClassVar[str]
    """The Auto class that loads a model for this objective."""
    has_head: ClassVar[bool] = True
    """Whether a head turns the last hidden states into the outputs."""
    shortest_length: ClassVar[int | None] = None
    """Default length of the shortest training texts, in tokens; None: windows are not cut into shorter texts."""

    def __init__(self, supervision: Supervision, readable: int, tokenizer: Any) -> None:
        self.supervision, self.readable, self.tokenizer = supervision, readable, tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.pad_token_id = 0 if pad is None else pad

    @classmethod
    @abstractmethod
    def suits(cls, model: Any) -> bool:
        """Return whether a model has the head that this objective trains."""

    def batch(self, windows: list[Window], generator: torch.Generator) -> Inputs:
        """Return the model's inputs (B, L), and `labels` if the objective has them."""
        return collate(windows, self.pad_token_id)

    @abstractmethod
    def counts(self, batch: Inputs) -> Tensor:
        """Return the number of tokens or texts that the loss of each row sums over, int64, (B,)."""

    def count(self, batch: Inputs) -> int:
        """Return the number of tokens or texts that the batch's loss sums over."""
        return int(self.counts(batch).sum())

    @abstractmethod
    def loss(self, model: Any, teacher: Any, batch: Inputs) -> Tensor:
        """Return the sum of the losses of the tokens or texts that `count` counts, a float32 scalar."""

    def check(self, length: int, batch_size: int) -> None:
        """Refuse a length that the teacher cannot read, or too small a batch; raise `HealingError`."""
        return

    @staticmethod
    def freeze_idle(model: Any) -> None:
        """Freeze weights without a gradient: distributed processes would wait for their gradients."""
        return


objectives: Registry[type[Objective]] = Registry("objective")


def register_objective(objective: type[Objective]) -> type[Objective]:
    """Class decorator that adds an objective to the registry under its `name`."""
    return objectives.register(objective)


def objective_for(model: Any, name: str | None) -> type[Objective]:
    """Return the objective called `name`, or the one that trains the model's head.

    Raises:
        HealingError: the model has no head for it; the message names the class to load.
    """
    if name is None:
        return next(objective for objective in objectives if objective.suits(model))
    objective = objectives.get(name)
    if not objective.suits(model):
        fitting = next(other for other in objectives if other.suits(model))
        raise HealingError(
            f"objective {name!r} does not fit {type(model).__name__}. Load the model with "
            f"hf_posswap.{objective.auto_class}, or take objective {fitting.name!r}, which fits."
        )
    return objective


def _has_token_head(model: Any) -> bool:
    return model.get_output_embeddings() is not None


def _inputs_of(batch: Inputs) -> tuple[Inputs, Inputs]:
    """Return the model's inputs and the teacher's: with skipped positions, and without."""
    stock = {name: value for name, value in batch.items() if name not in ("labels", SKIPPED)}
    if SKIPPED not in batch:
        return stock, stock
    # With a mask, a jump of the positions does not begin a new document.
    return stock | {"position_ids": batch[SKIPPED], "attention_mask": _tokens(batch)}, stock


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher ‖ student) of logits (…, V), in nats, (…)."""
    log_student, log_teacher = F.log_softmax(student.float(), dim=-1), F.log_softmax(teacher.float(), dim=-1)
    return F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(-1)


@register_objective
class LanguageModelling(Objective):
    """−ln p of the next token, or the KL divergence to the teacher's distribution within the teacher's length."""

    name = "lm"
    auto_class = "AutoModelForCausalLM"

    @classmethod
    def suits(cls, model: Any) -> bool:
        return _has_token_head(model) and architecture_of(model.config).is_causal(model.config)

    def batch(self, windows: list[Window], generator: torch.Generator) -> Inputs:
        return self.labelled(super().batch(windows, generator))

    @staticmethod
    def labelled(inputs: Inputs) -> Inputs:
        """Return inputs with `labels`: for each token the next one, except the last token of a document."""
        ids = inputs["input_ids"]
        labels = F.pad(ids[:, 1:], (0, 1), value=IGNORED)
        if "attention_mask" in inputs:
            labels = labels.masked_fill(F.pad(inputs["attention_mask"][:, 1:], (0, 1)) == 0, IGNORED)
        if "position_ids" in inputs:
            labels = labels.masked_fill(F.pad(inputs["position_ids"][:, 1:], (0, 1)) == 0, IGNORED)
        return inputs | {"labels": labels}

    def counts(self, batch: Inputs) -> Tensor:
        return (batch["labels"] != IGNORED).sum(1)

    def loss(self, model: Any, teacher: Any, batch: Inputs) -> Tensor:
        """Return the sum of losses; tokens beyond the teacher's length have the objective's own loss only."""
        (inputs, stock_inputs), labels = _inputs_of(batch), batch["labels"]
        weights, taught = self.supervision, teacher is not None
        with hidden_states(model, taught and weights.hidden > 0) as own:
            logits = model(**inputs, use_cache=False).logits
        scored = labels != IGNORED
        weight = torch.ones_like(labels, dtype=torch.float32)
        weight[:, : self.readable] = weights.labels
        losses = logits.new_zeros(labels.shape, dtype=torch.float32)
        if bool((weight[scored] > 0).any()):
            flat = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
            losses = losses + weight * flat.view_as(losses)
        if not taught:
            return losses[scored].sum()
        readable = {name: value[:, : self.readable] for name, value in stock_inputs.items()}
        with torch.no_grad(), hidden_states(teacher, weights.hidden > 0) as stock:
            target = teacher(**readable, use_cache=False).logits
        if weights.logits > 0:
            kl = weights.logits * divergence(logits[:, : self.readable], target)
            losses = losses + F.pad(kl, (0, losses.shape[1] - kl.shape[1]))
        total = losses[scored].sum()
        if weights.hidden > 0:
            near = [states[:, : self.readable] for states in own]
            counts = scored[:, : self.readable].sum(1)
            total = total + weights.hidden * (counts * mean_distance(near, stock, _tokens(readable))).sum()
        return total


@register_objective
class MaskedLanguageModelling(Objective):
    """−ln p of masked tokens, or the KL divergence to the teacher there.

    As in BERT, 15% of the tokens are chosen; of these 80% are masked, 10% replaced and 10% kept.
    """

    name = "mlm"
    auto_class = "AutoModelForMaskedLM"

    @classmethod
    def suits(cls, model: Any) -> bool:
        return _has_token_head(model) and not architecture_of(model.config).is_causal(model.config)

    def batch(self, windows: list[Window], generator: torch.Generator) -> Inputs:
        inputs = super().batch(windows, generator)
        ids = inputs["input_ids"]
        mask_id = self.tokenizer.mask_token_id
        if mask_id is None:
            raise HealingError("objective 'mlm' needs a tokenizer with a mask token; this one has none.")
        special = torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids))
        drawn = torch.rand(ids.shape, generator=generator).masked_fill(special, 1.0)
        # The smallest draw is always masked, so that a step with very short texts has at least one masked token.
        chosen = (drawn < MASKED_SHARE) | ((drawn == drawn.min()) & ~special)
        chance = torch.rand(ids.shape, generator=generator)
        other = torch.randint(len(self.tokenizer), ids.shape, generator=generator)
        hidden = torch.where(chance < 0.8, mask_id, torch.where(chance < 0.9, other, ids))
        labels = ids.masked_fill(~chosen, IGNORED)
        return inputs | {"input_ids": torch.where(chosen, hidden, ids), "labels": labels}

    def counts(self, batch: Inputs) -> Tensor:
        return (batch["labels"] != IGNORED).sum(1)

    def loss(self, model: Any, teacher: Any, batch: Inputs) -> Tensor:
        (inputs, stock_inputs), labels = _inputs_of(batch), batch["labels"]
        weights, chosen = self.supervision, labels != IGNORED
        with hidden_states(model, weights.hidden > 0) as own:
            logits = model(**inputs).logits[chosen]
        total = logits.new_zeros((), dtype=torch.float32)
        if weights.labels > 0:
            loss = F.cross_entropy(logits.float(), labels[chosen], reduction="sum")
            total = total + weights.labels * loss
        if weights.logits > 0 or weights.hidden > 0:
            with torch.no_grad(), hidden_states(teacher, weights.hidden > 0) as stock:
                target = teacher(**stock_inputs).logits[chosen]
            total = total + weights.logits * divergence(logits, target).sum()
        if weights.hidden > 0:
            distance = mean_distance(own, stock, _tokens(inputs))
            total = total + weights.hidden * (self.counts(batch) * distance).sum()
        return total

    def check(self, length: int, batch_size: int) -> None:
        _require_readable(self, length)


@register_objective
class Embedding(Objective):
    """A loss on the direction of a text's embedding, the mean of its last hidden states.

    Without the teacher it is contrastive: the embeddings of two halves of a text should be closer than those of halves
    of different texts in the batch (independent cropping, Izacard et al., 2112.09118, with an in-batch softmax at
    temperature 0.05). "logits" is 1 − cosine to the stock model's embedding, and "hidden" the mean over the text's
    tokens and the layers of 1 − cosine to the stock model's hidden state (hidden-state distillation, Jiao et al.,
    TinyBERT, 1909.10351, section 3.2). A text has one embedding but a hidden state for each token and layer, so
    "hidden" has many more targets per text.
    """

    name = "embedding"
    auto_class = "AutoModel"
    has_head = False
    shortest_length = 32

    @classmethod
    def suits(cls, model: Any) -> bool:
        return not _has_token_head(model)

    @staticmethod
    def freeze_idle(model: Any) -> None:
        """Freeze the pooler: it transforms the first token's hidden state, and the embedding is a mean over tokens."""
        for name, weight in model.named_parameters():
            if "pooler" in name.split("."):
                weight.requires_grad_(False)

    def counts(self, batch: Inputs) -> Tensor:
        return torch.ones_like(batch["input_ids"][:, 0])

    def loss(self, model: Any, teacher: Any, batch: Inputs) -> Tensor:
        weights, mask = self.supervision, _tokens(batch)
        inputs, stock_inputs = _inputs_of(batch)
        with hidden_states(model, weights.hidden > 0) as own:
            hidden = model(**inputs).last_hidden_state.float()
        total = hidden.new_zeros(())
        if weights.labels > 0:
            total = total + weights.labels * _contrast(hidden, mask)
        if weights.logits > 0 or weights.hidden > 0:
            with torch.no_grad(), hidden_states(teacher, weights.hidden > 0) as stock:
                target = teacher(**stock_inputs).last_hidden_state.float()
            distance = 1 - F.cosine_similarity(pooled(hidden, mask), pooled(target, mask), dim=-1)
            total = total + weights.logits * distance.sum()
        if weights.hidden > 0:
            total = total + weights.hidden * mean_distance(own, stock, mask).sum()
        return total

    def check(self, length: int, batch_size: int) -> None:
        _require_readable(self, length)
        if self.supervision.labels > 0 and batch_size < 2:
            raise HealingError(
                f"batch_size is {batch_size}; objective 'embedding' with supervision {str(self.supervision)!r} "
                "contrasts texts, so it must be at least 2, or leave labels out."
            )


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, D) of hidden states (B, L, D) where the mask (B, L) is 1."""
    kept = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * kept).sum(1) / kept.sum(1).clamp(min=1)


def _tokens(inputs: Inputs) -> Tensor:
    """Return 1 for tokens and 0 for padding, int64, (B, L)."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"]) if mask is None else mask


def _contrast(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the sum over texts of −ln softmax, over all right halves, of the cosine of left and right half."""
    left = (mask.cumsum(1) * 2 <= mask.sum(1, keepdim=True)) & (mask == 1)
    right = ~left & (mask == 1)
    halves = [F.normalize(pooled(hidden, half), dim=-1) for half in (left, right)]
    scores = halves[0] @ halves[1].t() / TEMPERATURE
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="sum")


def _require_readable(objective: Objective, length: int) -> None:
    if objective.supervision.has_teacher and length > objective.readable:
        raise HealingError(
            f"the stock model reads {objective.readable} tokens, so it cannot teach objective {objective.name!r} at "
            f"length {length}. Give a length of at most {objective.readable}, or supervise=('labels',)."
        )
