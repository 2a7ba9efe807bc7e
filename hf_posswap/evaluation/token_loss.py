"""Loss of each token under a causal language model, with memory bounded in the length.

The base model reads the whole window; its head then turns a few positions at a time into logits. At 16,384 tokens and
a vocabulary of 50,000, all logits at once would be 3.3 GB in float32.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_posswap.evaluation.errors import EvaluationError

PROBE_TOKENS = 8
"""Tokens of the forward passes that check that a model can be measured."""

Head = Callable[[Tensor], Tensor]


def find_head(model: nn.Module) -> Head:
    """Return the module that turns the base model's last hidden states (B, L, D) into logits (B, L, vocabulary).

    It is the output embedding in most models and a small network in others (BERT). A candidate is accepted only if it
    gives the model's own logits on a short probe, so a model that scales or caps its logits cannot be misread. The
    same probe finds a model that sees the tokens it should predict.

    Raises:
        EvaluationError: the model has no language-model head, is not causal, or no candidate reproduces its logits.
    """
    base = base_model_of(model)
    ids = (torch.arange(PROBE_TOKENS) % model.config.vocab_size).unsqueeze(0).to(input_device(model))  # type: ignore[union-attr,operator]
    with torch.no_grad():
        hidden = base(input_ids=ids, use_cache=False).last_hidden_state
        _require_causal(model, base, ids, hidden)
        logits = getattr(model(input_ids=ids, use_cache=False), "logits", None)
        for candidate in (model.get_output_embeddings(), getattr(model, "cls", None)):  # type: ignore[operator]
            if logits is None or not isinstance(candidate, nn.Module):
                continue
            ours = candidate(hidden)
            if ours.shape == logits.shape and torch.allclose(ours, logits, rtol=1e-2, atol=1e-2):
                return candidate
    raise EvaluationError(
        f"{type(model).__name__} cannot be measured: its logits are not its head applied to its last hidden states. "
        "Models with a plain language-model head can, such as GPT2LMHeadModel, LlamaForCausalLM and BertLMHeadModel."
    )


def base_model_of(model: nn.Module) -> nn.Module:
    """Return the model without its head.

    Raises:
        EvaluationError: `model` has no head.
    """
    base = getattr(model, "base_model", None)
    if not isinstance(base, nn.Module) or base is model:
        raise EvaluationError(
            f"{type(model).__name__} has no language-model head, so it has no loss to measure. "
            "Load it with hf_posswap.AutoModelForCausalLM."
        )
    return base


def input_device(model: nn.Module) -> torch.device:
    """Device on which the model expects its token ids."""
    return model.get_input_embeddings().weight.device  # type: ignore[operator]


def _require_causal(model: nn.Module, base: nn.Module, ids: Tensor, hidden: Tensor) -> None:
    """Refuse a model in which a changed last token changes what came before it."""
    changed = ids.clone()
    changed[:, -1] = ids[:, 0]
    other = base(input_ids=changed, use_cache=False).last_hidden_state
    if not torch.allclose(hidden[:, :-1], other[:, :-1], rtol=1e-3, atol=1e-3):
        raise EvaluationError(
            f"{type(model).__name__} cannot be measured: it reads in both directions, so it sees the very tokens it "
            "is asked to predict. Measure a causal language model, or load this one with is_decoder=True."
        )


def token_losses(model: nn.Module, head: Head, ids: Tensor, first_target: int, positions_per_chunk: int) -> Tensor:
    """Return the loss of each scored token.

    Args:
        model: a causal language model in evaluation mode.
        head: what `find_head(model)` returned.
        ids: int64 (B, L), windows of one length.
        first_target: index within the window of the first token scored, at least 1.
        positions_per_chunk: number of positions of one window turned into logits at a time.

    Returns:
        float32 (B, L − first_target) on the CPU: −ln p of tokens first_target … L−1, in nats.
    """
    base = base_model_of(model)
    with torch.no_grad():
        hidden = base(input_ids=ids, use_cache=False).last_hidden_state[:, first_target - 1 : -1]
        targets = ids[:, first_target:]
        losses = torch.empty(targets.shape, dtype=torch.float32)
        for row in range(ids.shape[0]):
            for start in range(0, targets.shape[1], positions_per_chunk):
                part = slice(start, start + positions_per_chunk)
                logits = head(hidden[row, part]).float()
                losses[row, part] = functional.cross_entropy(
                    logits, targets[row, part].to(logits.device), reduction="none"
                ).cpu()
    return losses
