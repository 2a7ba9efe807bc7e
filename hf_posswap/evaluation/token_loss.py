"""Loss of each token under a language model, without storing all logits of a window.

The base model reads the whole window; the head then computes the logits of a few positions at a time. At 16,384 tokens
and a vocabulary of 50,000, all logits together would take 3.3 GB in float32.
"""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_posswap.architectures import architecture_of
from hf_posswap.evaluation.errors import UnmeasurableError
from hf_posswap.swapped.plan import core_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE_TOKENS = 8
"""Tokens of the forward passes that check whether a model can be measured."""

Head = Callable[[Tensor], Tensor]


@torch.no_grad()
def find_head(model: "PreTrainedModel") -> Head:
    """Return the function from the base model's last hidden states (n, D) to logits (n, vocabulary).

    It is accepted only if it reproduces the model's own logits on a short probe. The same probe detects a model that
    attends to the tokens it should predict.

    Raises:
        UnmeasurableError: the model has no language modelling head, is not causal, or its head has further inputs.
    """
    ids, hidden = _probe(model)
    if not _is_causal(model, ids, hidden):
        raise UnmeasurableError(
            f"{type(model).__name__} cannot be measured: it reads in both directions, so it sees the very tokens it "
            "is asked to predict. Measure a causal language model, or load this one with is_decoder=True."
        )
    return _matching_head(model, ids, hidden)


@torch.no_grad()
def find_masked_head(model: "PreTrainedModel") -> Head:
    """Return the head of a masked language model, see `find_head`.

    Raises:
        UnmeasurableError: the model has no head, is causal, or its head has further inputs.
    """
    ids, hidden = _probe(model)
    if architecture_of(model.config).is_causal(model.config):
        raise UnmeasurableError(
            f"{type(model).__name__} has no masked-token loss: it reads from left to right and does not see what "
            "follows a masked token. Measure its loss by length instead."
        )
    return _matching_head(model, ids, hidden)


def base_model_of(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return the model without its head.

    Raises:
        UnmeasurableError: `model` has no head.
    """
    base = getattr(model, "base_model", None)
    if not isinstance(base, nn.Module) or base is model:
        raise UnmeasurableError(
            f"{type(model).__name__} has no language-model head, so it has no loss to measure. "
            "Load it with hf_posswap.AutoModelForCausalLM or, an encoder, with hf_posswap.AutoModelForMaskedLM."
        )
    return base


def input_device(model: "PreTrainedModel") -> torch.device:
    """Return the device on which the model expects its token ids."""
    return model.get_input_embeddings().weight.device


def last_hidden(base: "PreTrainedModel", ids: Tensor) -> Tensor:
    """Return the last hidden states (B, L, D) of a base model for ids (B, L)."""
    return base(input_ids=ids, use_cache=False).last_hidden_state


@torch.no_grad()
def token_losses(
    model: "PreTrainedModel", head: Head, ids: Tensor, first_target: int, positions_per_chunk: int
) -> Tensor:
    """Return the loss of each scored token.

    Args:
        model: a causal language model in evaluation mode.
        head: the result of `find_head(model)`.
        ids: int64 (B, L), windows of one length.
        first_target: index within the window of the first scored token, at least 1.
        positions_per_chunk: number of positions whose logits are computed at a time.

    Returns:
        float32 (B, L − first_target) on the CPU: −ln p of tokens first_target … L−1, in nats.
    """
    hidden = last_hidden(base_model_of(model), ids)[:, first_target - 1 : -1]
    targets = ids[:, first_target:]
    return losses_of_hidden(head, hidden.flatten(0, 1), targets.flatten(), positions_per_chunk).view_as(targets.cpu())


@torch.no_grad()
def losses_of_hidden(head: Head, hidden: Tensor, targets: Tensor, positions_per_chunk: int) -> Tensor:
    """Return −ln p of each target, float32 (N,) on the CPU, for hidden states (N, D) and targets int64 (N,)."""
    losses = torch.empty(targets.shape, dtype=torch.float32)
    for start in range(0, len(targets), positions_per_chunk):
        part = slice(start, start + positions_per_chunk)
        logits = head(hidden[part]).float()
        losses[part] = functional.cross_entropy(logits, targets[part].to(logits.device), reduction="none").cpu()
    return losses


def _probe(model: "PreTrainedModel") -> tuple[Tensor, Tensor]:
    """Return a few ids (1, L) and the base model's hidden states for them."""
    base = base_model_of(model)
    ids = (torch.arange(PROBE_TOKENS) % model.config.vocab_size).unsqueeze(0).to(input_device(model))
    return ids, last_hidden(base, ids)


def _is_causal(model: "PreTrainedModel", ids: Tensor, hidden: Tensor) -> bool:
    """Return whether a change of the last token leaves the hidden states before it unchanged."""
    changed = ids.clone()
    changed[:, -1] = ids[:, 0]
    other = last_hidden(base_model_of(model), changed)
    return torch.allclose(hidden[:, :-1], other[:, :-1], rtol=1e-3, atol=1e-3)


def _matching_head(model: "PreTrainedModel", ids: Tensor, hidden: Tensor) -> Head:
    logits = getattr(model(input_ids=ids, use_cache=False), "logits", None)
    head = _OwnHead(model, ids.flip(1))  # different ids, so that a head that depends on them fails
    with contextlib.suppress(RuntimeError, ValueError, TypeError, AttributeError):  # the head has further inputs
        ours = head(hidden[0])
        if (
            logits is not None
            and ours.shape == logits[0].shape
            and torch.allclose(ours, logits[0], rtol=1e-2, atol=1e-2)
        ):
            return head
    raise UnmeasurableError(
        f"{type(model).__name__} cannot be measured: its logits are not made from its last hidden states alone. "
        "Models with a language-model head can, such as GPT2LMHeadModel, LlamaForCausalLM and RobertaForMaskedLM."
    )


class _OwnHead:
    """A model's head as a function: runs the model's own forward with given last hidden states of its base model.

    So it works for every kind of head: one matrix or a small network, with scaled or capped logits.

    Args:
        model: a model with a head.
        ids: a few token ids (1, L).
    """

    def __init__(self, model: "PreTrainedModel", ids: Tensor) -> None:
        self.model = model
        self.ids = ids
        self.core = core_of(model)  # the part of the base model that some models with a head call directly
        self.outputs = self.core(input_ids=ids, use_cache=False)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the logits (n, vocabulary) of hidden states (n, D)."""
        outputs = type(self.outputs)(last_hidden_state=hidden.unsqueeze(0))
        core = self.core
        before = vars(core).get("forward")
        core.forward = lambda *args, **kwargs: outputs  # only during this call
        try:
            return self.model(input_ids=self.ids, use_cache=False).logits[0]
        finally:
            if before is None:
                del core.forward
            else:
                core.forward = before
