"""Hidden tokens do not count, whatever the form of the mask: the logits are those of the text without them."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import DynamicCache, StaticCache

import hf_posswap
from hf_posswap.errors import BackendError, PositionError
from tests.matrix.cells import (
    Cell,
    default_cells,
    given,
    one_of_each_kind,
    random_tokens,
    randomise,
    small_config,
    small_model,
    traced_layers,
)
from tests.matrix.test_decoding import reads_distances

CAUSAL = [cell for cell in default_cells() if cell.causal]
TRACED_CAUSAL = [cell for cell in one_of_each_kind() if cell.causal]
LENGTH = 16
LOWEST = torch.finfo(torch.float32).min
CLOSE = {"atol": 2e-4, "rtol": 1e-4}
FORMS = ("boolean", "additive", "infinite")


def shown_tokens(left: int = 0) -> Tensor:
    """Which tokens of a text are shown: all but four in the middle, and some on the left."""
    shown = torch.ones(LENGTH, dtype=torch.bool)
    shown[5:9] = False
    shown[:left] = False
    return shown


def counted(shown: Tensor) -> Tensor:
    """Positions counted along what is shown, (1, L)."""
    return (shown.long().cumsum(0) - 1).clamp(min=0)[None]


def whole_mask(shown: Tensor, causal: bool, form: str = "boolean", keys: int = LENGTH) -> Tensor:
    """The 4D mask (1, 1, L, keys) that shows some tokens; keys after the text are free places of a static cache."""
    mask = shown[None, None, None].expand(1, 1, LENGTH, -1)
    if causal:
        mask = mask & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    mask = torch.nn.functional.pad(mask, (0, keys - LENGTH))
    if form == "boolean":
        return mask
    return torch.zeros(mask.shape).masked_fill(~mask, LOWEST if form == "additive" else float("-inf"))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_a_4d_mask_and_positions_counted_along_it(cell: Cell, backend: str) -> None:
    model, tokens = cell.swapped(), random_tokens(2, LENGTH)
    model.set_attn_implementation(backend)
    with torch.no_grad():
        for form in FORMS:
            shown = shown_tokens(left=0 if form == "infinite" else 2)  # a row of −inf is NaN in stock attention
            expected = model(tokens[:, shown]).logits
            mask = whole_mask(shown, cell.causal, form).expand(2, -1, -1, -1)
            actual = model(tokens, attention_mask=mask, position_ids=counted(shown)).logits[:, shown]
            torch.testing.assert_close(actual, expected, **CLOSE)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("cell", CAUSAL, ids=str)
def test_a_4d_mask_and_positions_counted_along_it_through_a_cache(cell: Cell, kind: str) -> None:
    model, tokens, shown = cell.swapped(), random_tokens(2, LENGTH), shown_tokens()
    windowed = getattr(model.config, "sliding_window", None) is not None  # whose layers need a mask each beyond it
    keys = LENGTH if kind == "dynamic" or windowed else LENGTH + 4
    cache = DynamicCache() if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=keys)
    mask, positions, cached = whole_mask(shown, True, "additive", keys), counted(shown), given(model, cache)
    parts = []
    with torch.no_grad():
        expected = model(tokens[:, shown], use_cache=False).logits
        for start, stop in ((0, 11), (11, 12), (12, LENGTH)):
            seen = stop if kind == "dynamic" else keys
            part = {"attention_mask": mask[:, :, start:stop, :seen].expand(2, -1, -1, -1)}
            part["position_ids"] = positions[:, start:stop]
            parts.append(model(tokens[:, start:stop], use_cache=True, **part, **cached).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1)[:, shown], expected, **CLOSE)


@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_packed_texts_under_a_4d_mask_stay_apart(cell: Cell) -> None:
    model = cell.swapped()
    texts = [random_tokens(1, length, seed=length) for length in (5, 11)]
    positions = torch.cat([torch.arange(text.shape[1]) for text in texts])[None]
    apart = torch.block_diag(*[torch.ones(len(text[0]), len(text[0])) for text in texts]).bool()
    if cell.causal:
        apart = apart.tril()
    with torch.no_grad():
        separate = torch.cat([model(text).logits for text in texts], dim=1)
        packed = model(torch.cat(texts, 1), attention_mask=apart[None, None], position_ids=positions).logits
    torch.testing.assert_close(packed, separate, **CLOSE)


@pytest.mark.parametrize("cell", one_of_each_kind(), ids=str)
def test_a_compiled_model_does_not_count_hidden_tokens(cell: Cell) -> None:
    model, tokens = cell.swapped(layers=traced_layers(cell.architecture)), random_tokens(2, LENGTH)
    rows = (shown_tokens(), torch.arange(LENGTH) >= 3)  # hidden in the middle; padded on the left
    mask = torch.stack(rows).long()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        actual = compiled(tokens, attention_mask=mask).logits
        for row, shown in enumerate(rows):
            expected = model(tokens[row : row + 1, shown]).logits[0]
            torch.testing.assert_close(actual[row, shown], expected, **CLOSE)


@pytest.mark.parametrize("scheme", ["alibi", "t5", "shaw", "rope:dynamic"])
@pytest.mark.parametrize("form", ["2D", "4D"])
def test_a_compiled_decoding_step_does_not_count_hidden_tokens(scheme: str, form: str) -> None:
    model = hf_posswap.swap(small_model("llama", True, layers=traced_layers("llama")), scheme)
    randomise(model)
    tokens, shown = random_tokens(2, LENGTH), shown_tokens()
    keys = LENGTH + 4
    cache = given(model, StaticCache(config=model.config, max_cache_len=keys))
    masks = whole_mask(shown, True, keys=keys).expand(2, -1, -1, -1)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = model(tokens[:, shown], use_cache=False).logits[:, -2:]
        model(
            tokens[:, :14],
            attention_mask=masks[:, :, :14],
            position_ids=counted(shown)[:, :14],
            use_cache=True,
            **cache,
        )
        steps = []
        for step in (14, 15):
            mask = masks[:, :, step : step + 1] if form == "4D" else shown[None, : step + 1].long().expand(2, -1)
            steps.append(
                compiled(
                    tokens[:, step : step + 1], attention_mask=mask, use_cache=True,
                    position_ids=counted(shown)[:, step : step + 1], **cache,
                ).logits
            )  # fmt: skip
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, **CLOSE)


WINDOWED = {"sliding_window": 8, "head_dim": 8, "max_position_embeddings": 64}


@pytest.mark.parametrize("hidden", ["left", "middle"])
@pytest.mark.parametrize("scheme", ["alibi", "t5", "shaw"])
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_generating_from_a_static_cache_gives_what_recomputing_does(
    architecture: str, scheme: str, hidden: str
) -> None:
    torch.manual_seed(0)
    config = small_config(architecture, True, **(WINDOWED if architecture == "mistral" else {}))
    model = hf_posswap.swap(transformers.AutoModelForCausalLM.from_config(config).eval(), scheme)
    randomise(model)
    model.generation_config.eos_token_id = None
    tokens = random_tokens(2, 14)
    mask = torch.ones_like(tokens)
    mask[0, : 5 if hidden == "left" else 0] = 0
    mask[1, 4 : 8 if hidden == "middle" else 4] = 0
    settings: dict[str, Any] = {
        "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "attention_mask": mask, "output_logits": True,
        "return_dict_in_generate": True,
    }  # fmt: skip
    recomputed = model.generate(tokens, use_cache=False, **settings)
    static = model.generate(tokens, cache_implementation="static", disable_compile=True, **settings)
    torch.testing.assert_close(torch.stack(static.logits), torch.stack(recomputed.logits), **CLOSE)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("cell", default_cells(), ids=str)
def test_masks_that_may_be_meant_either_way_are_refused(cell: Cell, backend: str) -> None:
    model, tokens = cell.swapped(randomised=False), random_tokens(2, LENGTH)
    model.set_attn_implementation(backend)
    mask = whole_mask(shown_tokens(), cell.causal)
    with pytest.raises(PositionError, match=r"4D attention mask of torch.int64 .*mask.bool\(\)"):
        model(tokens, attention_mask=mask.long())
    with pytest.raises(PositionError, match=r"has 3 dimensions, shape \(1, 16, 16\)"):
        model(tokens, attention_mask=mask[0])


def test_flash_attention_refuses_a_4d_mask() -> None:
    model = hf_posswap.swap(small_model("gpt2", True), "alibi")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(BackendError, match="'flash_attention_2' reads no 4D attention mask"):
        model(random_tokens(1, LENGTH), attention_mask=whole_mask(shown_tokens(), True))


@pytest.mark.parametrize(
    ("cell", "backend"),
    [
        *((cell, backend) for cell in CAUSAL for backend in ("eager", "sdpa")),
        *((cell, "compiled") for cell in TRACED_CAUSAL),
    ],
    ids=str,
)
def test_a_4d_mask_that_shows_a_causal_bias_the_future_is_refused(cell: Cell, backend: str) -> None:
    model, tokens = cell.swapped(layers=traced_layers(cell.architecture)), random_tokens(2, LENGTH)
    biased = any(module.pos_scheme.adds_bias for module in model.base_model.pos_layers)
    run: Any = model
    if backend == "compiled":
        torch._dynamo.reset()
        run = torch.compile(model, fullgraph=True, backend="eager")
    else:
        model.set_attn_implementation(backend)
    causal = whole_mask(torch.ones(LENGTH, dtype=torch.bool), True)
    prefix = causal.clone()
    prefix[..., :6, :6] = True
    low = torch.zeros(causal.shape).masked_fill(~causal, -1e4)
    with torch.no_grad():
        expected = model(tokens).logits
        for mask in (causal, low):
            torch.testing.assert_close(run(tokens, attention_mask=mask).logits, expected, **CLOSE)
        if biased:
            with pytest.raises((PositionError, RuntimeError), match="shows a query keys that come after it"):
                run(tokens, attention_mask=prefix)
        else:
            assert (run(tokens, attention_mask=prefix).logits[:, 0] - expected[:, 0]).abs().max() > 1e-3


def outcome(model: Any, compiled: Any, positions: list[int]) -> str:
    """What a decoding step at some positions comes to, after a text of 6 tokens that was cached at 0…5."""
    tokens = random_tokens(1, 6 + len(positions))
    cache = given(model, DynamicCache())
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits[:, 6:]
        model(tokens[:, :6], use_cache=True, **cache)
        try:
            actual = compiled(tokens[:, 6:], position_ids=torch.tensor([positions]), use_cache=True, **cache).logits
        except (PositionError, RuntimeError) as error:
            return "refused" if "do not continue the cached tokens" in str(error) else repr(error)
    return "as without a cache" if torch.allclose(actual, expected, **CLOSE) else "other"


@pytest.mark.parametrize("cell", TRACED_CAUSAL, ids=str)
def test_positions_that_do_not_continue_the_cache_come_to_the_same_when_compiled(cell: Cell) -> None:
    model = cell.swapped(layers=traced_layers(cell.architecture))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert outcome(model, compiled, [6, 7]) == outcome(model, model, [6, 7]) == "as without a cache"
    assert outcome(model, compiled, [9, 10]) == outcome(model, model, [9, 10])
    assert (outcome(model, model, [9, 10]) == "refused") == reads_distances(cell, model)


@pytest.mark.parametrize("scheme", ["alibi", "t5", "shaw", "rope:dynamic"])
def test_a_compiled_model_refuses_positions_that_do_not_continue_the_cache(scheme: str) -> None:
    """Also where a compiler might drop what refuses, as its result is not used: one scheme of each kind that does."""
    model = hf_posswap.swap(small_model("llama", True, layers=traced_layers("llama")), scheme)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert outcome(model, compiled, [9]) == "refused"


@pytest.mark.slow
def test_inductors_one_graph_takes_positions_that_fit_and_refuses_others() -> None:
    model = hf_posswap.swap(small_model("llama", True, layers=traced_layers("llama")), "t5")
    randomise(model)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend="inductor")
    found = [outcome(model, compiled, positions) for positions in ([6], [9], [6])]
    assert found == ["as without a cache", "refused", "as without a cache"]
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_inductors_graph_refuses_positions_past_the_longest() -> None:
    model = hf_posswap.swap(small_model("gpt2", True, layers=traced_layers("gpt2")), "learned")
    limit = hf_posswap.longest_position(model)
    assert limit is not None
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="inductor")
    tokens, last = random_tokens(1, 10), torch.arange(limit - 10, limit)[None]
    with torch.no_grad():
        expected = model(tokens, position_ids=last, use_cache=False).logits
        torch.testing.assert_close(compiled(tokens, position_ids=last, use_cache=False).logits, expected, **CLOSE)
        with pytest.raises(RuntimeError, match=f"position past the longest position {limit}"):
            compiled(tokens, position_ids=last + 1, use_cache=False)


@pytest.mark.parametrize("scheme", ["alibi", "shaw", "t5"])
def test_a_mask_for_more_keys_than_a_window_has_is_refused(scheme: str) -> None:
    model = hf_posswap.swap(small_model("gemma3_text", True), scheme)
    cache = given(model, StaticCache(config=model.config, max_cache_len=LENGTH + 4))
    mask = whole_mask(shown_tokens(), True, keys=LENGTH + 4)
    with pytest.raises(PositionError, match="a layer attends to 16 keys, and its attention mask is for 20"):
        model(random_tokens(1, LENGTH), attention_mask=mask, use_cache=True, **cache)
