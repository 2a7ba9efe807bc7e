import math

import pytest
import torch
from torch.nn import functional as F

from hf_posswap import swap
from hf_posswap.training.objectives import (
    Embedding,
    LanguageModelling,
    MaskedLanguageModelling,
    divergence,
    objective_for,
    objectives,
)
from hf_posswap.training.options import HealingError
from hf_posswap.training.supervision import Supervision
from hf_posswap.training.texts import Window
from tests.training.helpers import SPECIAL, WordTokenizer, bert, gpt2, llama


def window(length: int, seed: int = 0, bert: bool = False) -> Window:
    ids = torch.randint(5, 60, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    if bert:
        ids = [SPECIAL["[CLS]"], *ids[2:], SPECIAL["[SEP]"]]
    return Window(ids, list(range(length)))


def make(objective, *words, readable=32, bert=False):
    return objective(Supervision.of(words or ("labels",)), readable, WordTokenizer(bert=bert))


def batch_of(objective, windows, seed=0):
    return objective.batch(windows, torch.Generator().manual_seed(seed))


def noisy(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.mark.parametrize("model", [gpt2, llama])
def test_language_modelling_is_transformers_own_loss(model):
    objective, model = make(LanguageModelling), model()
    batch = batch_of(objective, [window(12, 0), window(12, 1)])
    stock = model(batch["input_ids"], labels=batch["input_ids"]).loss
    assert objective.count(batch) == 22
    torch.testing.assert_close(objective.loss(model, None, batch) / 22, stock, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scheme", [None, "alibi", "t5"])
def test_packed_documents_count_and_lose_what_they_do_apart(scheme):
    objective, model = make(LanguageModelling), gpt2()
    if scheme is not None:
        swap(model, scheme)
    first, second = window(7, 0), window(5, 1)
    packed = Window(first.ids + second.ids, first.positions + second.positions)
    together = batch_of(objective, [packed])
    apart = [batch_of(objective, [part]) for part in (first, second)]
    assert objective.count(together) == sum(map(objective.count, apart)) == 10
    expected = sum(objective.loss(model, None, batch) for batch in apart)
    torch.testing.assert_close(objective.loss(model, None, together), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("objective", "model"), [(LanguageModelling, gpt2), (Embedding, bert)])
def test_padding_changes_nothing(objective, model):
    is_bert = objective is Embedding
    objective = make(objective, *(("logits", "hidden") if is_bert else ()), bert=is_bert)
    model, teacher = model(), noisy(model())
    long, short = window(12, 0, is_bert), window(5, 1, is_bert)
    together = batch_of(objective, [long, short])
    apart = [batch_of(objective, [part]) for part in (long, short)]
    assert objective.count(together) == sum(map(objective.count, apart))
    expected = sum(objective.loss(model, teacher, batch) for batch in apart)
    torch.testing.assert_close(objective.loss(model, teacher, together), expected, atol=1e-5, rtol=1e-5)


def test_divergence_is_kl_from_the_teacher():
    student, teacher = torch.randn(3, 7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    expected = torch.zeros(3, dtype=torch.float64)
    for row in range(3):
        p, q = F.softmax(teacher[row], 0), F.softmax(student[row], 0)
        for token in range(7):
            expected[row] += p[token] * math.log(p[token] / q[token])
    torch.testing.assert_close(divergence(student, teacher).double(), expected, atol=1e-6, rtol=1e-6)
    assert float(divergence(student, student).abs().max()) == 0


def test_distillation_mixes_the_teacher_in_where_it_can_read():
    model, teacher = gpt2(), noisy(gpt2())
    batch = batch_of(make(LanguageModelling), [window(12)])
    own = F.cross_entropy(model(batch["input_ids"]).logits[0], batch["labels"][0], reduction="none")
    kl = divergence(model(batch["input_ids"]).logits, teacher(batch["input_ids"]).logits)[0]
    expected = own.clone()
    expected[:8] = 0.25 * own[:8] + 0.75 * kl[:8]
    found = make(LanguageModelling, "labels=0.25", "logits=0.75", readable=8).loss(model, teacher, batch)
    torch.testing.assert_close(found, expected[:11].sum(), atol=1e-5, rtol=1e-5)


def test_a_teacher_that_is_the_student_has_nothing_to_teach():
    model = gpt2()
    batch = batch_of(make(LanguageModelling), [window(12)])
    loss = make(LanguageModelling, "logits", "hidden").loss(model, model, batch)
    assert loss.item() == pytest.approx(0, abs=1e-4)


def test_masking_follows_bert_and_the_generator():
    objective = make(MaskedLanguageModelling, bert=True)
    windows = [window(400, seed, bert=True) for seed in range(20)]
    batch, again = batch_of(objective, windows), batch_of(objective, windows)
    assert all(bool((batch[name] == again[name]).all()) for name in batch)
    original = torch.tensor([w.ids for w in windows])
    chosen = batch["labels"] != -100
    ids = batch["input_ids"]
    assert bool((ids == original)[~chosen].all())
    assert bool((batch["labels"] == original)[chosen].all())
    assert not bool(chosen[:, [0, -1]].any())
    share = chosen.float().mean()
    masked = (ids[chosen] == SPECIAL["[MASK]"]).float().mean()
    kept = (ids[chosen] == original[chosen]).float().mean()
    # Of 8000 tokens about 1200 are chosen: three standard deviations are 0.012 and 0.035.
    assert abs(float(share) - 0.15 * 398 / 400) < 0.012
    assert abs(float(masked) - 0.8) < 0.035
    assert abs(float(kept) - 0.1 - 0.1 / 61) < 0.035


def test_masked_language_modelling_is_transformers_own_loss():
    objective, model = make(MaskedLanguageModelling, bert=True), bert(head=True)
    batch = batch_of(objective, [window(30, seed, bert=True) for seed in range(4)])
    expected = model(batch["input_ids"], labels=batch["labels"]).loss
    found = objective.loss(model, None, batch) / objective.count(batch)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def layer_outputs(model, ids):
    """What each layer gives, in float64, found by hooks."""
    found = []
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    hooks = [
        layer.register_forward_hook(
            lambda _, __, output: found.append(output[0] if isinstance(output, tuple) else output)
        )
        for layer in layers
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    return [hidden.double() for hidden in found]


def test_embedding_distillation_is_cosine_of_texts_and_of_tokens_in_each_layer():
    objective = make(Embedding, "logits", "hidden=2", bert=True)  # the mean over two layers, twice
    model, teacher = bert(), noisy(bert())
    batch = batch_of(objective, [window(9, seed, bert=True) for seed in range(3)])
    pairs = list(zip(*(layer_outputs(m, batch["input_ids"]) for m in (model, teacher)), strict=True))
    assert len(pairs) == 2
    expected = 0.0
    for row in range(3):
        h, t = pairs[-1]
        expected += 1 - float(F.cosine_similarity(h[row].mean(0), t[row].mean(0), dim=0))
        for h, t in pairs:
            expected += sum(1 - float(F.cosine_similarity(h[row, i], t[row, i], dim=0)) for i in range(9)) / 9
    assert float(objective.loss(model, teacher, batch)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("make_model", [gpt2, llama, lambda: bert(head=True)])
def test_hidden_states_are_compared_by_their_cosine_at_every_layer_and_token(make_model):
    """Also where texts differ in length: each counts as often as it has scored tokens."""
    is_bert = make_model not in (gpt2, llama)
    kind = MaskedLanguageModelling if is_bert else LanguageModelling
    objective = make(kind, "hidden=3", bert=is_bert)
    model, teacher = make_model(), noisy(make_model())
    windows = [window(9, 0, is_bert), window(6, 1, is_bert)]
    batch = batch_of(objective, windows)
    expected = 0.0
    for row, length in enumerate((9, 6)):
        ids = batch["input_ids"][row : row + 1, :length]
        scored = int((batch["labels"][row] != -100).sum())
        pairs = list(zip(*(layer_outputs(m, ids) for m in (model, teacher)), strict=True))
        assert len(pairs) == 2
        apart = sum(1 - float(F.cosine_similarity(h[0, i], t[0, i], dim=0)) for h, t in pairs for i in range(length))
        expected += 3 * scored * apart / (2 * length)
    assert objective.loss(model, teacher, batch).item() == pytest.approx(expected, abs=1e-5)


def test_contrast_prefers_halves_of_one_text():
    objective = make(Embedding, bert=True)
    model = bert()
    alike = [Window([ids] * 12, list(range(12))) for ids in (7, 20, 33, 50)]
    crossed = [Window([a] * 6 + [b] * 6, list(range(12))) for a, b in ((7, 20), (20, 33), (33, 50), (50, 7))]
    low, high = (float(objective.loss(model, None, batch_of(objective, part))) for part in (alike, crossed))
    assert low < high


@pytest.mark.parametrize("words", [("labels",), ("labels=0.5", "logits=0.5")])
def test_contrast_needs_two_texts(words):
    objective = make(Embedding, *words, bert=True)
    objective.check(12, 2)
    with pytest.raises(HealingError, match="batch_size is 1; objective 'embedding' with supervision 'labels="):
        objective.check(12, 1)
    make(Embedding, "logits", bert=True).check(12, 1)


def test_some_token_is_masked_in_every_batch():
    objective = make(MaskedLanguageModelling, bert=True)
    window = Window([1, 7, 2], [0, 1, 2])
    for seed in range(20):
        batch = objective.batch([window], torch.Generator().manual_seed(seed))
        assert batch["labels"].tolist() == [[-100, 7, -100]]


def test_the_objective_follows_the_head():
    assert objective_for(gpt2(), None) is LanguageModelling
    assert objective_for(bert(head=True), None) is MaskedLanguageModelling
    assert objective_for(bert(), None) is Embedding
    with pytest.raises(HealingError, match="'mlm' does not fit GPT2LMHeadModel.*AutoModelForMaskedLM.*'lm'"):
        objective_for(gpt2(), "mlm")


@pytest.mark.parametrize("objective", [o for o in objectives if o is not LanguageModelling])
def test_an_encoder_cannot_learn_from_a_teacher_that_cannot_read_its_text(objective):
    make(objective, "logits", bert=True).check(32, 4)
    make(objective, bert=True).check(99, 4)
    with pytest.raises(HealingError, match="the stock model reads 32 tokens.*length 33"):
        make(objective, "logits", bert=True).check(33, 4)
