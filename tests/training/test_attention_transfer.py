"""The attention stage of healing: its loss, what learns in it, and what it does to the attention distributions."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import hf_posswap
from hf_posswap.architectures import architecture_of
from hf_posswap.schemes import schemes
from hf_posswap.swapped.capabilities import capability
from hf_posswap.swapped.plan import core_of
from hf_posswap.training import attention_transfer
from hf_posswap.training.adapters import add_lora
from hf_posswap.training.attention_transfer import AttentionTransfer
from hf_posswap.training.loop import heal
from hf_posswap.training.options import HealingError, HealingOptions
from hf_posswap.training.teacher import stock_copy
from tests.training.helpers import WORDS, WordTokenizer, bert, gpt2, llama, text

TEXTS = [text(800)]
FAMILIES = {"gpt2": gpt2, "llama": llama, "bert": lambda: bert(head=True)}


def sharp(family: str) -> Any:
    """A model whose attention and positions matter, unlike those of a new model."""
    model = FAMILIES[family]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, attention in architecture_of(model.config).blocks(core_of(model)):
            for weight in attention.parameters():
                if weight.dim() == 2:
                    weight.copy_(0.4 * torch.randn(weight.shape, generator=generator))
        table = architecture_of(model.config).position_table(core_of(model))
        if table is not None:
            table.weight.mul_(20)  # type: ignore[operator]  # a table's weight is a tensor
    return model


def swapped(family: str, scheme: str) -> Any:
    return hf_posswap.swap(sharp(family), scheme)


def entering() -> list[tuple[str, str]]:
    """Every scheme that acts in the layers of each family, from the registries."""
    cells = []
    for family, make in FAMILIES.items():
        architecture, config = architecture_of(make().config), make().config
        for scheme in schemes:
            cell = capability(architecture, architecture.is_causal(config), scheme)
            if cell.supported:
                model = hf_posswap.swap(make(), scheme.name)
                if any(hasattr(module, "pos_scheme") for _, module in architecture.blocks(core_of(model))):
                    cells.append((family, scheme.name))
    return cells


CELLS = entering()


def run(model: Any, **changes: Any) -> Any:
    tokenizer = WordTokenizer(bert=not architecture_of(model.config).is_causal(model.config))
    settings = {"steps": 6, "length": 16, "batch_size": 2, "learning_rate": 3e-3, "checkpoint_every": 0} | changes
    return heal(model, TEXTS, tokenizer, HealingOptions(**{"supervise": ("attention",)} | settings))


def weights(model: Any, ids: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """The attention distributions of an eager model, from transformers itself, float64."""
    model.set_attn_implementation("eager")
    found = core_of(model)(ids, attention_mask=mask, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    return [layer.double() for layer in found]


@pytest.mark.parametrize("blocks", [1, 2**22])
@pytest.mark.parametrize("scheme", ["t5", "alibi", "rope", "shaw"])
def test_the_loss_is_the_divergence_of_the_distributions_that_transformers_returns(
    scheme: str, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a model with a position table each layer gets the swapped model's own states, so a plain forward shows both.

    One text is padded, and its padding does not count.
    """
    monkeypatch.setattr(attention_transfer, "ROWS_OF_SCORES", blocks)
    model = swapped("gpt2", scheme)
    teacher = stock_copy(model)
    ids = torch.randint(5, WORDS, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    transfer = AttentionTransfer(model, teacher, 32)
    loss = transfer.accumulate({"input_ids": ids, "attention_mask": mask}, 1.0)
    expected = 0.0
    for stock, own in zip(weights(teacher, ids, mask), weights(model, ids, mask), strict=True):
        apart = (stock * (stock.clamp(min=1e-300) / own.clamp(min=1e-300)).log()).sum(-1).mean(1)
        expected += float((apart * mask).sum()) / 2
    assert loss == pytest.approx(expected, rel=1e-4)


def test_layers_of_a_rotary_model_get_the_stock_model_s_states() -> None:
    """Then the first layer's loss is that of a plain forward, and a layer's does not depend on the one below it."""
    model = swapped("llama", "none")
    transfer = AttentionTransfer(model, stock_copy(model), 32)
    ids = torch.arange(5, 17)[None]
    before = transfer.accumulate({"input_ids": ids}, 1.0)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(3)
    assert transfer.accumulate({"input_ids": ids}, 1.0) == before


@pytest.mark.parametrize(("family", "scheme"), CELLS)
def test_only_queries_keys_and_the_scheme_learn_and_the_divergence_falls(family: str, scheme: str) -> None:
    model = swapped(family, scheme)
    before = copy.deepcopy(dict(model.named_parameters()))
    teacher = stock_copy(model)
    ids = torch.tensor(WordTokenizer()(TEXTS[0])["input_ids"]).view(-1, 16)
    first = AttentionTransfer(model, teacher, 32).accumulate({"input_ids": ids}, 0.0)
    report = run(model)
    assert {row["stage"] for row in report.history} == {"attention"}
    if first > 0.1 * len(ids):
        assert AttentionTransfer(model, teacher, 32).accumulate({"input_ids": ids}, 0.0) < first
    else:  # schemes that are RoPE in short texts start in a model with RoPE where they should end
        assert family == "llama"
        assert core_of(model).pos_scheme.turns_keys()
    attention = [module for _, module in architecture_of(model.config).blocks(core_of(model))]
    inside = {id(weight) for module in attention for weight in module.parameters()}
    inside |= {id(weight) for weight in core_of(model).pos_scheme.parameters()}
    for name, weight in model.named_parameters():
        moved = not torch.equal(weight, before[name])
        assert id(weight) in inside or not moved, name
        if name.endswith("c_attn.weight"):  # queries, keys and values in one matrix
            assert torch.equal(weight[:, 64:], before[name][:, 64:])
            assert not torch.equal(weight[:, :64], before[name][:, :64])
        elif moved and "pos_scheme" not in name:
            assert not any(part in name for part in ("v_proj", "value", "o_proj", "c_proj", "output")), name


def test_packed_documents_are_compared_apart() -> None:
    model = swapped("llama", "t5")
    transfer = AttentionTransfer(model, stock_copy(model), 32)
    ids = torch.arange(5, 17)[None]
    positions = torch.cat([torch.arange(7), torch.arange(5)])[None]
    together = transfer.accumulate({"input_ids": ids, "position_ids": positions}, 1.0)
    apart = sum(transfer.accumulate({"input_ids": part}, 1.0) for part in (ids[:, :7], ids[:, 7:]))
    assert together == pytest.approx(apart, rel=1e-5)


def test_a_sliding_window_compares_the_keys_within_it() -> None:
    model = swapped("gpt2", "none:window=4")
    teacher = stock_copy(model)
    ids = torch.arange(5, 17)[None]
    index = torch.arange(12)
    seen = (index[:, None] - index < 4) & (index[:, None] >= index)
    expected = 0.0
    for stock, own in zip(weights(teacher, ids), weights(model, ids), strict=True):
        stock = (stock * seen) / (stock * seen).sum(-1, keepdim=True)
        ratio = (stock.clamp(min=1e-300) / own.clamp(min=1e-300)).log()
        expected += float((stock * ratio).sum(-1).mean(1).sum()) / 2
    found = AttentionTransfer(model, teacher, 32).accumulate({"input_ids": ids}, 1.0)
    assert found == pytest.approx(expected, rel=1e-4)


def test_adapters_learn_in_the_attention_stage_too() -> None:
    model = add_lora(swapped("llama", "t5"), rank=2)
    before = copy.deepcopy(dict(model.named_parameters()))
    report = run(model, steps=8)
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert report.history[-1]["loss"] < report.history[0]["loss"]
    assert moved
    assert all("q_proj.lora" in name or "k_proj.lora" in name or "pos_scheme" in name for name in moved)


def test_accumulated_batches_are_one_batch() -> None:
    losses = [
        [row["loss"] for row in run(swapped("llama", "t5"), batch_size=size, accumulation=times).history]
        for size, times in ((4, 1), (2, 2))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_gradient_checkpointing_is_for_the_stage_that_runs_whole_models() -> None:
    words = ("attention=0.5", "logits", "hidden")
    plain, checkpointed = (
        run(swapped("llama", "t5"), supervise=words, gradient_checkpointing=on) for on in (False, True)
    )
    assert [row["loss"] for row in checkpointed.history] == pytest.approx(
        [row["loss"] for row in plain.history], rel=1e-4
    )


def test_the_stage_and_its_cost_are_told() -> None:
    report = run(swapped("llama", "t5"), supervise=("attention=0.5", "logits"), steps=4)
    assert [row["stage"] for row in report.history] == ["attention"] * 2 + ["outputs"] * 2
    assert report.supervision == ["logits=1", "attention=0.5"]
    assert {name: cost["tokens"] for name, cost in report.costs.items()} == {"attention": 64, "outputs": 64}
    assert all(cost["microseconds_per_token"] > 0 for cost in report.costs.values())


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (gpt2, {}, "this model is stock. Leave attention out"),
        (lambda: swapped("bert", "sinusoidal"), {}, "'sinusoidal' acts in no layer of this model"),
        (lambda: swapped("llama", "alibi"), {"train": "scheme"}, "train='scheme' has nothing to train"),
        (lambda: swapped("llama", "t5").requires_grad_(False), {}, "'attention' has nothing to train"),
    ],
)
def test_what_cannot_learn_is_refused(make: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HealingError, match=message):
        run(make(), **changes)


def test_masks_of_an_unknown_form_are_refused() -> None:
    model = swapped("llama", "t5")
    model.set_attn_implementation("flex_attention")
    with pytest.raises(HealingError, match=r"cannot read the masks of backend 'flex_attention'.*sdpa"):
        run(model)
