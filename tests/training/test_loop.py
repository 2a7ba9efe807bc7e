import copy
import math

import pytest
import torch
from transformers import get_wsd_schedule

import hf_posswap
from hf_posswap.errors import UnsupportedError
from hf_posswap.training.checkpoints import checkpoints_in
from hf_posswap.training.loop import HealingObserver, heal
from hf_posswap.training.optimization import parameter_groups, rate_factor, scheme_parameters
from hf_posswap.training.options import HealingError, HealingOptions
from hf_posswap.training.start import mean_loss
from hf_posswap.training.texts import Windows
from tests.training.helpers import WORDS, WordTokenizer, bert, gpt2, learning, llama, text

TEXTS = [text(1500), text(700, 1)]


def options(**changes):
    settings = {"steps": 4, "length": 16, "batch_size": 4, "learning_rate": 1e-2, "checkpoint_every": 0} | changes
    return HealingOptions(**learning(settings))


def swapped(scheme="t5", model=gpt2):
    return hf_posswap.swap(model(), scheme)


def run(model, changes=None, bert=False, **arguments):
    return heal(model, TEXTS, WordTokenizer(bert=bert), options(**(changes or {})), **arguments)


def losses(report):
    return [row["loss"] for row in report.history]


def gpt2_with_dropout():
    return gpt2(attn_pdrop=0.3, resid_pdrop=0.3)


def llama_with_dropout():
    model = llama()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    return model


def bert_with_dropout():
    return bert(attention_probs_dropout_prob=0.3, hidden_dropout_prob=0.3)


def probabilities(model):
    """All probabilities of dropout in a model, by the module's name."""
    found = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    attention = {name: getattr(module, "attention_dropout", None) for name, module in model.named_modules()}
    return found | {name: value for name, value in attention.items() if value is not None}


@pytest.mark.parametrize("model", [gpt2, llama])
@pytest.mark.parametrize("scheme", ["t5", "alibi", "sinusoidal"])
def test_healing_lowers_the_loss_and_counts_its_tokens(model, scheme):
    healed = swapped(scheme, model)
    report = run(healed, {"steps": 25})
    assert losses(report)[-1] < losses(report)[0] - 1
    assert report.tokens == report.history[-1]["tokens"] == 25 * 4 * 16
    assert [row["step"] for row in report.history] == list(range(1, 26))
    assert report.parameters == sum(weight.numel() for weight in healed.parameters() if weight.requires_grad)
    assert not healed.training
    assert hf_posswap.is_swapped(healed)


def test_a_stock_model_heals_as_its_control_on_the_same_windows():
    seen = {}
    for name, model in (("swapped", swapped("alibi")), ("stock", gpt2())):
        seen[name] = []
        model.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: (
                seen[name].append(kwargs["input_ids"].clone()) if module.training else None
            ),
            with_kwargs=True,
        )
        run(model)
    assert len(seen["swapped"]) == 4
    assert all(bool((a == b).all()) for a, b in zip(seen["swapped"], seen["stock"], strict=True))


def test_accumulated_batches_are_one_batch():
    whole, parts = swapped(), swapped()
    one = run(whole, {"batch_size": 8})
    two = run(parts, {"batch_size": 2, "accumulation": 4})
    # The same sums in another order, through Adam, whose first steps divide small gradients by themselves.
    assert losses(one) == pytest.approx(losses(two), abs=1e-4)
    assert one.tokens == two.tokens


def test_uneven_batches_weigh_by_their_tokens():
    """With padding, batches of a step hold unequal numbers of tokens; the mean is over tokens all the same."""
    documents = [text(words, words) for words in (4, 14, 6, 12, 9, 3, 11, 14)]
    found = []
    for batch, accumulation in ((8, 1), (2, 4)):
        settings = options(steps=2, batch_size=batch, accumulation=accumulation, packing=False)
        found.append(losses(heal(swapped(), documents, WordTokenizer(), settings)))
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.parametrize(
    "changes", [{"gradient_checkpointing": True}, {"distill": 0.5, "gradient_checkpointing": True}]
)
def test_gradient_checkpointing_changes_no_loss(changes):
    plain = {key: value for key, value in changes.items() if key != "gradient_checkpointing"}
    model = swapped()
    assert losses(run(model, changes)) == pytest.approx(losses(run(swapped(), plain)), abs=1e-5)
    assert not model.is_gradient_checkpointing


def test_bfloat16_computes_near_float32_and_keeps_float32_weights():
    model = swapped()
    assert losses(run(model, {"precision": "bf16"})) == pytest.approx(losses(run(swapped())), abs=0.05)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_only_the_scheme_learns_when_asked():
    model = swapped("relative_bias")
    before = copy.deepcopy(model.state_dict())
    own = set(scheme_parameters(model))
    report = run(model, {"train": "scheme", "distill": 1.0})
    after = model.state_dict()
    moved = {name for name, value in model.named_parameters() if not torch.equal(before[name], after[name])}
    assert moved == own
    assert any(name.endswith("table") for name in own)
    assert "transformer.wpe.weight" in own
    assert report.parameters == sum(value.numel() for name, value in model.named_parameters() if name in own)
    with pytest.raises(HealingError, match="train='scheme' has nothing to train"):
        run(hf_posswap.swap(llama(), "alibi"), {"train": "scheme"})


@pytest.mark.parametrize("scheme", ["relative_bias", "alibi"])
def test_distillation_brings_the_swapped_model_to_the_stock_one(scheme):
    stock = gpt2()
    with torch.no_grad():
        stock.transformer.wpe.weight.mul_(20)  # positions that matter
        stock.lm_head.weight.mul_(5)  # and a model that is sure of something
    report = run(hf_posswap.swap(copy.deepcopy(stock), scheme), {"distill": 1.0, "steps": 80})
    assert losses(report)[-1] < 0.5 * losses(report)[0]
    given = run(hf_posswap.swap(copy.deepcopy(stock), scheme), {"distill": 1.0, "steps": 80}, teacher=stock)
    assert losses(given) == losses(report)


def test_a_healed_model_does_not_pass_for_its_own_teacher(tmp_path):
    model = swapped("t5")
    run(model, {"distill": 1.0})
    before = copy.deepcopy(model.state_dict())
    model.save_pretrained(tmp_path)
    again = hf_posswap.AutoModelForCausalLM.from_pretrained(tmp_path)
    for healed in (model, again, hf_posswap.swap(again, "alibi", replace=True)):
        with pytest.raises(HealingError, match="healed before.*pass it as teacher="):
            run(healed, {"distill": 1.0})
    with pytest.raises(UnsupportedError, match="healed before.*swap that model anew"):
        hf_posswap.calibrate(model, [torch.arange(5, 20)[None]])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    with pytest.raises(UnsupportedError, match="healed before.*Load that one anew"):
        hf_posswap.restore(model)
    assert hf_posswap.is_swapped(model)
    with pytest.raises(HealingError, match="healed before.*A ramp would begin with neither"):
        run(model, {"ramp": 0.5})
    run(model, {"distill": 1.0}, teacher=gpt2())
    run(model)


def test_what_leaves_the_weights_alone_leaves_the_teacher_in_place():
    class Interrupting(HealingObserver):
        def started(self, steps, done):
            raise KeyboardInterrupt

    model = swapped("t5")
    run(model, {"distill": 1.0, "train": "scheme"})
    with pytest.raises(KeyboardInterrupt):
        run(model, observer=Interrupting())
    run(model, {"distill": 1.0})


def test_a_ramp_begins_at_the_stock_model_and_ends_at_the_swapped_one():
    ramped, swapped_at_once = (run(swapped("alibi"), {"ramp": share, "steps": 6}) for share in (0.5, 0.0))
    stock = run(gpt2(), {"steps": 6})
    assert losses(ramped)[0] == pytest.approx(losses(stock)[0], abs=1e-6)
    assert losses(ramped)[0] != losses(swapped_at_once)[0]
    model = swapped("alibi")
    ids = torch.arange(5, 20)[None]
    run(model, {"ramp": 1.0})
    through = model(ids).logits
    fresh = swapped("alibi")
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(ids).logits, through)


def test_the_teacher_never_learns_and_shares_what_is_frozen():
    from hf_posswap.training.teacher import stock_copy

    model = swapped("t5")
    teacher = stock_copy(model)
    assert not hf_posswap.is_swapped(teacher)
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert all(weight.requires_grad for weight in model.parameters())
    assert teacher.lm_head.weight is not model.lm_head.weight
    model.requires_grad_(False)
    assert stock_copy(model).lm_head.weight is model.lm_head.weight
    assert stock_copy(model, share=False).lm_head.weight is not model.lm_head.weight
    ids = torch.arange(5, 20)[None]
    torch.testing.assert_close(teacher(ids).logits, gpt2()(ids).logits, atol=0, rtol=0)


@pytest.mark.parametrize("head", [True, False])
def test_encoders_heal_on_masked_tokens_or_embeddings(head):
    model = hf_posswap.swap(bert(head=head), "rope")
    report = run(model, {"steps": 40, "distill": 0.0 if head else 1.0}, bert=True)
    assert math.fsum(losses(report)[-5:]) < 0.9 * math.fsum(losses(report)[:5])
    with pytest.raises(HealingError, match="packing=True does not fit objective"):
        run(model, {"packing": True}, bert=True)


@pytest.mark.parametrize("rate", [1e30])
def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(rate, tmp_path):
    model = swapped("alibi")
    with pytest.raises(HealingError, match=r"step \d: the loss is .*training has diverged.*learning_rate \(1e\+30\)"):
        run(model, {"learning_rate": rate, "clip": 1e30, "checkpoint_every": 1, "steps": 6}, output_dir=tmp_path)
    assert checkpoints_in(tmp_path)
    assert not list(tmp_path.glob(".*partial"))


def test_a_gradient_that_is_not_finite_leaves_the_weights_as_they_were():
    model = swapped("alibi")
    before = copy.deepcopy(model.state_dict())
    model.transformer.h[0].mlp.c_fc.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(HealingError, match="step 1: the loss is .* and the gradient's norm"):
        run(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_a_tokenizer_of_another_model_is_found_out_by_the_stock_loss():
    model = gpt2()
    run(model, {"steps": 30})
    hf_posswap.swap(model, "alibi")
    run(copy.deepcopy(model))
    shuffled = WordTokenizer()
    order = torch.randperm(WORDS - 5, generator=torch.Generator().manual_seed(0)) + 5
    stock_call = WordTokenizer.__call__
    shuffled.__class__ = type(
        "Shuffled",
        (WordTokenizer,),
        {
            "__call__": lambda self, words, **_: {
                "input_ids": [int(order[i - 5]) for i in stock_call(self, words)["input_ids"]]
            }
        },
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(12)  # sure of itself, as a model with long training is
    with pytest.raises(
        HealingError, match=r"cannot read this text.*4\.11 would be guessing.*tokenizer is not the model's own"
    ):
        heal(model, TEXTS, shuffled, options())


def test_learning_rates_rise_and_fall_to_zero():
    factors = [rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 1e-3
    assert max(factors) == 1
    assert rate_factor(0, 1, 0.0) == 1


@pytest.mark.parametrize(("steps", "rising"), [(100, 10), (7, 3), (4, 2)])
def test_learning_rates_are_those_of_transformers_schedule(steps: int, rising: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_wsd_schedule(optimizer, rising, num_decay_steps=steps - rising, num_stable_steps=1)
    for step in range(steps):
        optimizer.step()
        schedule.step()
        assert rate_factor(step, steps, 0.1) == schedule.get_last_lr()[0]


def test_a_short_run_does_not_take_its_first_step_at_the_peak():
    assert [rate_factor(step, 28, 0.05) for step in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [rate_factor(step, 4, 0.05) for step in range(3)] == pytest.approx([1 / 2, 1, 1])
    assert rate_factor(0, 1, 0.05) == 1
    assert rate_factor(0, 28, 0.0) == 1  # none was asked for


def test_every_parameter_is_in_one_group_with_its_own_rate():
    model = swapped("relative_bias")
    settings = options(learning_rate=1e-3, scheme_learning_rate=2e-2, weight_decay=0.1)
    groups = parameter_groups(model, settings)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    scheme, matrices, vectors = groups
    assert {id(weight) for weight in scheme["params"]} == {id(w) for w in scheme_parameters(model).values()}
    assert [(g["peak"], g["weight_decay"]) for g in groups] == [(2e-2, 0.0), (1e-3, 0.1), (1e-3, 0.0)]
    assert all(weight.dim() >= 2 for weight in matrices["params"])
    assert all(weight.dim() < 2 for weight in vectors["params"])


def test_the_observer_hears_every_step_and_checkpoint(tmp_path):
    heard = []

    class Observer(HealingObserver):
        def started(self, steps, done):
            heard.append(("started", steps, done))

        def step(self, row):
            heard.append(("step", row["step"]))

        def saved(self, step):
            heard.append(("saved", step))

    run(swapped(), {"checkpoint_every": 3}, output_dir=tmp_path, observer=Observer())
    steps = [("step", number) for number in (1, 2, 3)]
    assert heard == [("started", 4, 0), *steps, ("saved", 3), ("step", 4), ("saved", 4)]


def test_the_healed_model_is_saved_whole(tmp_path):
    model = swapped("relative_bias")
    run(model, {"checkpoint_every": 0}, output_dir=tmp_path)
    loaded = hf_posswap.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(5, 20)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert not checkpoints_in(tmp_path)


@pytest.mark.parametrize("model", [gpt2_with_dropout, llama_with_dropout, bert_with_dropout])
def test_a_model_that_has_its_own_teacher_loses_nothing_to_dropout(model):
    model = model()
    is_bert = hasattr(model, "encoder")
    before = {name: value for name, value in probabilities(model).items() if value}
    assert before
    report = run(model, {"distill": 1.0, "steps": 1}, bert=is_bert)
    assert losses(report) == pytest.approx([0.0], abs=1e-6)
    assert {name: value for name, value in probabilities(model).items() if value} == before
    report = run(model, {"distill": 1.0, "steps": 1, "dropout": True}, bert=is_bert)
    assert losses(report)[0] > 1e-4


def test_without_a_teacher_dropout_is_the_models_own():
    model, silent = gpt2(resid_pdrop=0.3), gpt2(resid_pdrop=0.3)
    plain = losses(run(gpt2(), {"steps": 2}))
    assert losses(run(model, {"steps": 2})) != plain
    assert losses(run(silent, {"steps": 2, "dropout": False})) == plain


@pytest.mark.parametrize("head", [True, False])
def test_an_encoder_with_a_tokenizer_of_another_model_is_refused(head):
    model = hf_posswap.swap(bert(head=head), "alibi")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(HealingError, match="does not match the model: its padding token is None, the model's 0"):
        run(model, {"distill": 1.0})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_arguments_of_another_kind_are_refused():
    with pytest.raises(HealingError, match="options is a dict. Give HealingOptions, such as"):
        heal(gpt2(), text(1000), WordTokenizer(), {"steps": 1})
    with pytest.raises(HealingError, match="the documents are a int. Give a list of texts or a dataset."):
        heal(gpt2(), 5, WordTokenizer(), HealingOptions(steps=1))


def test_float16_weights_are_refused_before_anything_changes():
    model = swapped().half()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(HealingError, match=r'to train are float16, such as .* dtype="float32"'):
        run(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_whether_a_model_knows_the_language_is_asked_of_each_document_alone() -> None:
    """Short documents that are read as one text have a loss that says nothing of the model."""
    model, tokenizer = gpt2(), WordTokenizer()
    windows = Windows([text(5, seed) for seed in range(9)], tokenizer, 18, packing=True).first(2)
    losses = []
    for window in windows:
        begins = [place for place, position in enumerate(window.positions) if position == 0]
        for start, stop in zip(begins, [*begins[1:], len(window.ids)], strict=True):
            ids = torch.tensor([window.ids[start:stop]])
            with torch.no_grad():
                logits = model(ids).logits[0, :-1]
            losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
    assert len(losses) > 4
    with torch.no_grad():
        found = mean_loss(model, windows, 18)
    assert found == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)
