"""The proof of a swap: what no test has run is verified on the model itself, or refused with what was measured."""

import functools
from typing import Any

import pytest
import torch
import transformers
from transformers.cache_utils import Cache
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama

import hf_posswap
from hf_posswap.errors import UnsupportedError
from hf_posswap.swapped.cache_view import cache_among
from hf_posswap.swapped.questions import proof_of
from tests.matrix.cells import default_cells, random_tokens, small_config, small_model


def test_a_swap_says_what_was_proved() -> None:
    model = hf_posswap.swap(small_model("gpt2", True), "alibi")
    proof = proof_of(model)
    assert proof is not None
    assert (proof.untouched, proof.removed, proof.layers, proof.cached) == (True, True, 3, True)
    assert "proof:" in str(hf_posswap.describe(model))


def test_a_swap_that_is_not_to_be_verified_says_so() -> None:
    model = hf_posswap.swap(small_model("llama", True), "alibi", verify=False)
    assert proof_of(model) is None
    assert "not verified" in str(hf_posswap.describe(model))


def test_a_loaded_checkpoint_says_what_was_proved(tmp_path: Any) -> None:
    hf_posswap.swap(small_model("llama", True), "alibi").save_pretrained(tmp_path)
    proof = proof_of(hf_posswap.AutoModelForCausalLM.from_pretrained(tmp_path))
    assert proof is not None
    assert (proof.untouched, proof.removed, proof.layers, proof.cached) == (None, True, 3, True)


def test_a_loaded_checkpoint_is_proved_too(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hf_posswap.swap(small_model("llama", True), "alibi").save_pretrained(tmp_path)
    monkeypatch.setattr(
        modeling_llama.LlamaAttention, "forward", hides_the_cache(modeling_llama.LlamaAttention.forward)
    )
    with pytest.raises(UnsupportedError, match="attends to 1 keys where 16 were expected"):
        hf_posswap.AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("spread", [0.02, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", sorted({cell.architecture for cell in default_cells()}))
def test_scores_close_to_zero_do_not_hide_that_angles_are_read(family: str, dtype: torch.dtype, spread: float) -> None:
    """A model as it is before training: in half precision its outputs are the same with and without angles."""
    causal = True in {cell.causal for cell in default_cells() if cell.architecture == family}
    model = small_model(family, causal, initializer_range=spread).to(dtype)
    proof = proof_of(hf_posswap.swap(model, "alibi"))
    assert proof is not None
    assert (proof.untouched, proof.removed) == (True, True)


def refused(model: Any, match: str) -> None:
    """Assert that a swap is refused with what was measured, and that the model is as it was."""
    tokens = random_tokens(2, 16)
    with torch.no_grad():
        before, classes = model(tokens).logits, [type(module) for module in model.modules()]
        config = model.config
        with pytest.raises(UnsupportedError, match=match) as refusal:
            hf_posswap.swap(model, "alibi")
        assert transformers.__version__ in str(refusal.value)
        assert [type(module) for module in model.modules()] == classes
        assert model.config is config
        assert not hasattr(config, "pos_scheme")
        assert torch.equal(model(tokens).logits, before)


def hides_the_cache(stock: Any) -> Any:
    """A forward that stores other keys than it attends to, as a release that handles the cache elsewhere would."""

    @functools.wraps(stock)
    def forward(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        later = {name: None if isinstance(value, Cache) else value for name, value in kwargs.items()}
        cache = cache_among(kwargs.values())
        if cache is not None:
            shape = (*hidden_states.shape[:-1], -1, self.head_dim)
            key, value = (layer(hidden_states).view(shape).transpose(1, 2) for layer in (self.k_proj, self.v_proj))
            cache.update(key, value, self.layer_idx)
        return stock(self, hidden_states, *args, **later)

    return forward


def test_a_release_that_renames_the_cache_and_loses_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("llama", True)
    monkeypatch.setattr(
        modeling_llama.LlamaAttention, "forward", hides_the_cache(modeling_llama.LlamaAttention.forward)
    )
    with pytest.raises(UnsupportedError, match="attends to 1 keys where 16 were expected"):
        hf_posswap.swap(model, "alibi")


def test_positions_that_enter_elsewhere_are_found_by_running(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = modeling_gpt2.GPT2Model.forward

    @functools.wraps(stock)
    def forward(self: Any, input_ids: Any = None, position_ids: Any = None, **kwargs: Any) -> Any:
        embeds = self.wte(input_ids)
        steps = torch.arange(embeds.shape[1])[None] if position_ids is None else position_ids
        embeds = embeds + torch.sin(steps.float()[..., None] * torch.arange(embeds.shape[-1]))
        kwargs.pop("inputs_embeds", None)
        return stock(self, inputs_embeds=embeds, position_ids=position_ids, **kwargs)

    monkeypatch.setattr(modeling_gpt2.GPT2Model, "forward", forward)
    refused(small_model("gpt2", True), "positions 3 times as far apart change its outputs by")


def test_a_rotary_module_that_returns_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Angles as one tensor of both parts are no form that is known, so the old mechanism stays, and is seen."""
    rotary, attention = modeling_llama.LlamaRotaryEmbedding, modeling_llama.LlamaAttention.forward
    stock = rotary.forward
    monkeypatch.setattr(rotary, "forward", lambda self, *args, **kwargs: torch.stack(stock(self, *args, **kwargs)))

    @functools.wraps(attention)
    def unstacked(self: Any, hidden_states: Any, position_embeddings: Any = None, **kwargs: Any) -> Any:
        return attention(self, hidden_states, position_embeddings=tuple(position_embeddings), **kwargs)

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", unstacked)
    refused(small_model("llama", True), "AttentionInterface|positions 3 times as far apart")


def test_attention_without_the_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = modeling_llama.LlamaAttention.forward

    def written_out(self: Any, *args: Any, **kwargs: Any) -> Any:
        return attention(self, *args, **kwargs)

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", written_out)
    with pytest.raises(UnsupportedError, match="chooses its attention function from transformers' AttentionInterface"):
        hf_posswap.swap(small_model("llama", True), "alibi")


def test_a_replaced_scheme_that_is_refused_leaves_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = hf_posswap.swap(small_model("gpt2", True), "t5"), random_tokens(2, 16)
    before = model(tokens).logits
    monkeypatch.setattr("hf_posswap.swapped.proof._prove_cached", lambda *_: 1 / 0)
    with pytest.raises(UnsupportedError, match="ZeroDivisionError"):
        hf_posswap.swap(model, "alibi", replace=True)
    assert model.config.pos_scheme["name"] == "t5"
    assert torch.equal(model(tokens).logits, before)


def test_the_proof_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(small_config("gpt2", True)).train()
    model.transformer.h[0].eval()
    state = torch.get_rng_state()
    hf_posswap.swap(model, "relative_bias")
    assert [module.training for module in (model, model.transformer.h[0], model.transformer.h[1])] == [
        True,
        False,
        True,
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
