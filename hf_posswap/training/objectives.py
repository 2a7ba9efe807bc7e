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
from hf_posswap.training.options import HealingError
from hf_posswap.training.texts import Window, collate

IGNORED = -100
"""Label of a token that is not scored, as in transformers."""
TEMPERATURE = 0.05

Inputs = dict[str, Tensor]


class Objective(ABC):
    """One objective.

    Args:
        distill: weight in [0, 1] of the teacher's outputs as the target.
        readable: length of the longest text that the teacher can read.
        tokenizer: the model's tokenizer.
    """

    name: ClassVar[str]
    auto_class: ClassVar[str]
    """The Auto class that loads a model for this objective."""
    shortest_length: ClassVar[int | None] = None
    """Default length of the shortest training texts, in tokens; None: windows are not cut into shorter texts."""

    def __init__(self, distill: float, readable: int, tokenizer: Any) -> None:
        self.distill, self.readable, self.tokenizer = distill, readable, tokenizer
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
    def count(self, batch: Inputs) -> int:
        """Return the number of tokens or texts that the batch's loss sums over."""

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


def _labelled(model: Any, batch: Inputs) -> tuple[Inputs, Tensor]:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return inputs, batch["labels"]


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

    def count(self, batch: Inputs) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def loss(self, model: Any, teacher: Any, batch: Inputs) -> Tensor:
        """Return the sum of losses; tokens beyond the teacher's length have the objective's own loss only."""
        inputs, labels = _labelled(model, batch)
        logits = model(**inputs, use_cache=False).logits
        scored = labels != IGNORED
        weight = torch.zeros_like(labels, dtype=torch.float32)
        if teacher is not None:
            weight[:, : self.readable] = self.distill
        losses = logits.new_zeros(labels.shape, dtype=torch.float32)
        if bool((weight[scored] < 1).any()):
            flat = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
            losses = losses + (1 - weight) * flat.view_as(losses)
        if teacher is not None:
            readable = {name: value[:, : self.readable] for name, value in inputs.items()}
            with torch.no_grad():
                target = teacher(**readable, use_cache=False).logits
            kl = divergence(logits[:, : self.readable], target)
            losses = losses + weight * F.pad(kl, (0, losses.shape[1] - kl.shape[1]))
        return losses[scored].sum()


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

    def count(self, batch: Inputs) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def loss(self, model: Any, teacher: Any, batch: Inputs) -> Tensor:
        inputs, labels = _labelled(model, batch)
        chosen = labels != IGNORED
        logits = model(**inputs).logits[chosen]
        total = logits.new_zeros((), dtype=torch.float32)
        if self.distill < 1:
            own = F.cross_entropy(logits.float(), labels[chosen], reduction="sum")
            total = total + (1 - self.distill) * own
        if teacher is not None:
            with torch.no_grad():
                target = teacher(**inputs).logits[chosen]
            total = total + self.distill * divergence(logits, target).sum()
        return total

    def check(self, length: int, batch_size: int) -> None:
        _require_readable(self, length)


@register_objective
class Embedding(Objective):
    """A loss on the direction of a text's embedding, the mean of its last hidden states.

    Without the teacher it is contrastive: the embeddings of two halves of a text should be closer than those of halves
    of different texts in the batch (independent cropping, Izacard et al., 2112.09118, with an in-batch softmax at
    temperature 0.05). With the teacher it is 1 − cosine to the stock model's embedding, plus, for each layer, the mean
    over the text's tokens of 1 − cosine to the stock model's hidden state (hidden-state distillation, Jiao et al.,
    TinyBERT, 1909.10351, section 3.2). A text has one embedding but a hidden state for each token and layer, so the
    second term has many more targets per text, and a separate one for each layer.
    """

    name = "embedding"
    auto_class = "AutoModel"
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

    def count(self, batch: Inputs) -> int:
        return batch["input_ids"].shape[0]

    def loss(self, model: Any, teacher: Any, batch: Inputs) -> Tensor:
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        distilled = teacher is not None
        outputs = model(**batch, output_hidden_states=distilled)
        hidden = outputs.last_hidden_state.float()
        total = hidden.new_zeros(())
        if self.distill < 1:
            total = total + (1 - self.distill) * _contrast(hidden, mask)
        if distilled:
            with torch.no_grad():
                target = teacher(**batch, output_hidden_states=True)
            wanted = pooled(target.last_hidden_state.float(), mask)
            distance = 1 - F.cosine_similarity(pooled(hidden, mask), wanted, dim=-1)
            for own, stock in zip(outputs.hidden_states[1:], target.hidden_states[1:], strict=True):
                distance = distance + _mean_distance(own, stock, mask)
            total = total + self.distill * distance.sum()
        return total

    def check(self, length: int, batch_size: int) -> None:
        _require_readable(self, length)
        if self.distill < 1 and batch_size < 2:
            raise HealingError(
                f"batch_size is {batch_size}; objective 'embedding' with distill={self.distill} contrasts texts, so it "
                "must be at least 2, or distill 1."
            )


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, D) of hidden states (B, L, D) where the mask (B, L) is 1."""
    kept = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * kept).sum(1) / kept.sum(1).clamp(min=1)


def _mean_distance(hidden: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of 1 − cosine over each text's tokens, (B,), of hidden states (B, L, D)."""
    apart = 1 - F.cosine_similarity(hidden.float(), target.float(), dim=-1)
    return (apart * mask).sum(1) / mask.sum(1)


def _contrast(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the sum over texts of −ln softmax, over all right halves, of the cosine of left and right half."""
    left = (mask.cumsum(1) * 2 <= mask.sum(1, keepdim=True)) & (mask == 1)
    right = ~left & (mask == 1)
    halves = [F.normalize(pooled(hidden, half), dim=-1) for half in (left, right)]
    scores = halves[0] @ halves[1].t() / TEMPERATURE
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="sum")


def _require_readable(objective: Objective, length: int) -> None:
    if objective.distill > 0 and length > objective.readable:
        raise HealingError(
            f"the stock model reads {objective.readable} tokens, so it cannot teach objective {objective.name!r} at "
            f"length {length}. Give a length of at most {objective.readable}, or distill=0."
        )
