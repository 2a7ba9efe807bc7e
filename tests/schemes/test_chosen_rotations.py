"""What self_extend, rerope and dual_chunk have in common: RoPE in short texts, the model's own RoPE, cost, refusals."""

import pytest
import torch

import hf_posswap
from hf_posswap.attention.sdpa import BLOCK_BYTES
from hf_posswap.common.chosen_scores import ChosenScores
from hf_posswap.common.positions import Positions
from hf_posswap.errors import BackendError, SchemeConfigError, UnsupportedError
from hf_posswap.evaluation.bias_by_distance import bias_by_distance
from hf_posswap.schemes import SchemeConfig, check_supported
from hf_posswap.schemes.dual_chunk import DualChunkConfig
from hf_posswap.schemes.rerope import ReropeConfig
from hf_posswap.schemes.rope import Rope
from hf_posswap.schemes.rope_config import RopeConfig
from hf_posswap.schemes.self_extend import SelfExtendConfig
from tests.attention.test_memory import LargestStorage
from tests.matrix.cells import random_tokens, small_model
from tests.reference import CALLS, build, make_call, model_facts, run_scheme

CONFIGS: list[SchemeConfig] = [
    SelfExtendConfig(neighbours=12, group=3),
    ReropeConfig(neighbours=12),
    ReropeConfig(neighbours=12, leak=4.0),
    DualChunkConfig(chunk=12, local=4),
]
ALONE = pytest.mark.parametrize("config", CONFIGS, ids=["self_extend", "rerope", "leaky", "dual_chunk"])


@ALONE
@pytest.mark.parametrize(("causal", "kind"), CALLS)
def test_a_text_within_the_window_is_rope_bit_for_bit(config, causal, kind):
    if kind == "skipping" or not (causal or config.scheme_type().supports_encoder):
        return
    facts = model_facts(causal=causal)
    call = make_call(kind, facts)
    # Only dual_chunk cannot tell from the indices that no chunk ends, and writes out scores that sdpa does not.
    backend = "eager" if config.name == "dual_chunk" else "sdpa"
    actual = run_scheme(*build(config, facts), call, backend)
    assert torch.equal(actual, run_scheme(*build(RopeConfig(), facts), call, backend))


@ALONE
def test_a_llama_reads_short_texts_as_before_and_long_ones_otherwise(config):
    stock = small_model("llama", True)
    model = hf_posswap.swap(small_model("llama", True), config)
    tokens = random_tokens(2, 40)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens[:, :12]).logits, stock(tokens[:, :12]).logits, atol=1e-5, rtol=1e-5)
        ours, theirs = model(tokens).logits, stock(tokens).logits
    torch.testing.assert_close(ours[:, :12], theirs[:, :12], atol=1e-5, rtol=1e-5)
    assert (ours[:, -8:] - theirs[:, -8:]).abs().max() > 0.1


@ALONE
@pytest.mark.parametrize(
    "native",
    [
        {"scaling": "none", "base": 500000.0},
        {"scaling": "linear", "base": 100.0, "factor": 2.0},
        {"scaling": "yarn", "base": 100.0, "factor": 4.0, "original_length": 8},
        {"scaling": "dynamic", "base": 100.0, "factor": 2.0, "original_length": 8},
        {"scaling": "none", "base": 100.0, "partial_rotary_factor": 0.5},
    ],
    ids=["base", "linear", "yarn", "dynamic", "partial"],
)
def test_the_rotation_is_that_of_the_models_own_rope(config, native):
    facts = model_facts(native_rope=native)
    call = make_call("whole", facts)
    scheme, layer = build(config, facts)
    rope = RopeConfig().resolve(facts)
    assert scheme.config.base == rope.base
    assert scheme.length_dependent() == Rope(rope, facts).length_dependent()
    expected = run_scheme(*build(RopeConfig(), facts), call)
    torch.testing.assert_close(run_scheme(scheme, layer, call), expected)
    assert build(config, model_facts())[0].config.base == 10000.0


def long_call(length: int, facts):
    scheme_positions = torch.arange(length)[None]
    return (
        torch.randn(1, facts.num_heads, length, facts.head_dim),
        torch.randn(1, facts.num_key_value_heads, length, facts.head_dim),
        Positions(scheme_positions, scheme_positions, 0, facts.causal),
    )


@ALONE
@pytest.mark.parametrize("causal", [True, False])
def test_scores_are_computed_for_keys_at_distances_that_need_them(config, causal):
    """Blocks, whose other rotations leave keys out, equal the same scores with nothing left out."""
    if not (causal or config.scheme_type().supports_encoder):
        return
    facts = model_facts(causal=causal)
    scheme, layer = build(config, facts)
    q, k, positions = long_call(60, facts)
    bias = layer.bias(layer.score_inputs(q, k, positions, scheme.prepare(positions), 1.0))
    assert isinstance(bias, ChosenScores)
    assert bias.offset == 0
    whole = ChosenScores(bias.query, bias.key, bias.alternatives, bias.choice, bias.scaling, offset=None)
    visible = torch.ones(60, 60, dtype=torch.bool).tril() if causal else torch.ones(60, 60, dtype=torch.bool)
    for start, stop in [(0, 60), (0, 7), (12, 13), (30, 45), (59, 60)]:
        ours, theirs = bias.rows(start, stop), whole.rows(start, stop)
        torch.testing.assert_close(ours[..., visible[start:stop]], theirs[..., visible[start:stop]])
    assert bias.rows(0, 60)[0, 0].ne(0).any()


@ALONE
def test_memory_grows_with_a_block_of_queries_and_not_with_the_square_of_the_text(config):
    model = hf_posswap.swap(small_model("llama", True, layers=1), config)
    largest = []
    for length in (512, 1024):
        with torch.no_grad(), LargestStorage() as storage:
            model(random_tokens(1, length), logits_to_keep=1)
        largest.append(storage.bytes)
    assert largest[1] <= 2.1 * largest[0]
    assert largest[1] <= BLOCK_BYTES


@ALONE
@pytest.mark.parametrize("backend", ["flex_attention", "flash_attention_2"])
def test_flex_and_flash_are_refused_for_every_length(config, backend):
    facts = model_facts()
    with pytest.raises(BackendError, match=r"ChosenScores.*Backends that work: eager, sdpa"):
        run_scheme(*build(config, facts), make_call("whole", facts), backend)


@ALONE
def test_the_picture_is_rope_up_to_the_window_and_no_bias(config):
    model = hf_posswap.swap(small_model("llama", True), config)
    rows = bias_by_distance(model, 40)
    assert {row["quantity"] for row in rows} == {"cosine-sum"}
    stock = bias_by_distance(hf_posswap.swap(small_model("llama", True), "rope:linear:factor=1.0001"), 40)
    ours, theirs = ({row["distance"]: row["value"] for row in each} for each in (rows, stock))
    near = 4 if config.name == "dual_chunk" else 12
    assert all(ours[distance] == pytest.approx(theirs[distance], abs=1e-3) for distance in range(near))
    assert any(abs(ours[distance] - theirs[distance]) > 0.05 for distance in range(near, 40))


@ALONE
def test_models_whose_rotation_is_unknown_or_not_of_whole_heads_are_refused(config):
    with pytest.raises(UnsupportedError, match="Choose rope with a scaling"):
        check_supported(config, model_facts(turns_whole_heads=False))
    unread = model_facts(native_rope_unread="its config has no rope_parameters")
    with pytest.raises(UnsupportedError, match="which are unknown: its config has no rope_parameters"):
        check_supported(config, unread)
    with pytest.raises(UnsupportedError, match="dimensions turn in pairs"):
        check_supported(config, model_facts(head_dim=7))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: SelfExtendConfig(neighbours=0), "self_extend option 'neighbours' is 0"),
        (lambda: SelfExtendConfig(group=1), "self_extend option 'group' is 1"),
        (lambda: ReropeConfig(leak=1), "rerope option 'leak' is 1"),
        (lambda: ReropeConfig(base=1), "rerope option 'base' is 1"),
        (lambda: DualChunkConfig(chunk=4, local=5), "dual_chunk needs local <= chunk, not 5 > 4"),
    ],
)
def test_bad_options_are_refused(config, message):
    with pytest.raises(SchemeConfigError, match=message):
        config()
