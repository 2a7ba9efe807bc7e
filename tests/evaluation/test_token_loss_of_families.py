"""Losses of tokens in families with heads of their own: networks, scaled and capped logits, norms in the head."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from hf_posswap.evaluation.token_loss import base_model_of, find_head, find_masked_head, last_hidden, losses_of_hidden
from hf_posswap.swapped.plan import core_of
from tests.families.configs import tiny_model

CAUSAL = ["gpt2", "llama", "gemma2", "cohere", "granite", "gpt_neox", "opt", "mixtral", "bloom"]
MASKED = ["bert", "roberta", "distilbert", "electra", "albert", "mpnet", "modernbert", "esm", "camembert"]


@torch.no_grad()
@pytest.mark.parametrize(
    ("model_type", "causal"), [(name, True) for name in CAUSAL] + [(name, False) for name in MASKED]
)
def test_losses_are_those_of_the_models_own_logits(model_type: str, causal: bool) -> None:
    model = tiny_model(model_type, causal)
    base, core = base_model_of(model), core_of(model)
    own = vars(core).get("forward")
    ids = torch.randint(6, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    expected = cross_entropy(model(input_ids=ids).logits.flatten(0, 1), ids.flatten(), reduction="none")
    head = (find_head if causal else find_masked_head)(model)
    actual = losses_of_hidden(head, last_hidden(base, ids).flatten(0, 1), ids.flatten(), positions_per_chunk=5)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert vars(core).get("forward") is own, "the model is as it was"
