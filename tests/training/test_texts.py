import itertools

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_posswap
from hf_posswap.training.options import HealingError
from hf_posswap.training.texts import Window, Windows, batches, check_vocabulary, collate
from tests.training.helpers import SPECIAL, WORDS, WordTokenizer, bert, gpt2, llama, text


def one_pass(windows: Windows, count: int) -> list[Window]:
    return list(itertools.islice(windows, count))


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8), length=st.integers(2, 16))
def test_packing_keeps_every_token_in_order_and_restarts_positions(sizes, length):
    documents = [text(size, seed) for seed, size in enumerate(sizes)]
    tokenizer = WordTokenizer()
    expected = [
        token for document in documents if document for token in [*tokenizer(document)["input_ids"], SPECIAL["[END]"]]
    ]
    windows = Windows(documents, tokenizer, length, packing=True)
    packed = list(windows._packed())
    assert [token for window in packed for token in window.ids] == expected[: len(packed) * length]
    assert len(packed) == len(expected) // length
    for window in packed:
        assert window.positions[0] == 0
        for before, token, position in zip(window.ids, window.ids[1:], window.positions[1:], strict=False):
            assert position == 0 or before != SPECIAL["[END]"], token


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), length=st.integers(4, 16))
def test_cutting_frames_each_window_and_never_crosses_documents(sizes, length):
    documents = [text(size, seed) for seed, size in enumerate(sizes)]
    tokenizer = WordTokenizer(bert=True)
    windows = list(Windows(documents, tokenizer, length, packing=False)._cut())
    assert all(w.ids[0] == SPECIAL["[CLS]"] and w.ids[-1] == SPECIAL["[SEP]"] for w in windows)
    assert all(len(w.ids) <= length and w.positions == list(range(len(w.ids))) for w in windows)
    pieces = [tokenizer(document)["input_ids"] for document in documents]
    inner = length - 2
    expected = [ids[start : start + inner] for ids in pieces for start in range(0, len(ids), inner)]
    assert [w.ids[1:-1] for w in windows] == [piece for piece in expected if len(piece) > 1]


def test_the_seed_alone_decides_the_order_and_each_pass_has_another():
    make = lambda seed: Windows([text(400)], WordTokenizer(), 8, packing=True, seed=seed)  # noqa: E731
    first, again, other = (one_pass(make(seed), 100) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert sorted(first[:50], key=str) == sorted(first[50:], key=str)
    assert first[:50] != first[50:]


def test_a_text_larger_than_the_shuffle_buffer_is_read_whole(monkeypatch):
    monkeypatch.setattr("hf_posswap.training.texts.SHUFFLED_TOKENS", 4 * 8)
    windows = Windows([text(400)], WordTokenizer(), 8, packing=True)
    assert sorted(one_pass(windows, 50), key=str) == sorted(windows._packed(), key=str)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_out_the_order_of_one(processes):
    def read(process, of):
        windows = Windows([text(800)], WordTokenizer(), 8, packing=True)
        return list(itertools.islice(batches(windows, 2, process, of, 0), 12))

    alone = read(0, 1)
    together = [read(process, processes) for process in range(processes)]
    rounds = 12 // processes
    assert [batch for number in range(rounds) for batch in (part[number] for part in together)] == alone[:12]


def test_what_was_read_before_a_restart_is_skipped():
    def read(skip, count):
        windows = Windows([text(800)], WordTokenizer(), 8, packing=True)
        return list(itertools.islice(batches(windows, 2, 1, 2, skip), count))

    assert read(3, 5) == read(0, 8)[3:]


def test_datasets_stream_and_a_missing_column_is_named():
    rows = datasets.Dataset.from_dict({"body": [text(40), text(40, 1)]}).to_iterable_dataset()
    windows = Windows(rows, WordTokenizer(), 8, packing=True, column="body")
    assert one_pass(windows, 30) == one_pass(Windows([text(40), text(40, 1)], WordTokenizer(), 8, True), 30)
    with pytest.raises(HealingError, match="no column 'text'. Their columns: body"):
        next(iter(Windows(rows, WordTokenizer(), 8, packing=True)))


def test_texts_that_cannot_fill_a_window_say_how_many_tokens_they_have():
    with pytest.raises(HealingError, match=r"the text has 6 tokens, less than one window of 8.*at most 6"):
        next(iter(Windows([text(6)], WordTokenizer(end=False), 8, packing=True)))
    with pytest.raises(HealingError, match="every document is empty"):
        next(iter(Windows(["", ""], WordTokenizer(), 8, packing=True)))
    with pytest.raises(HealingError, match="iterator that ends after one pass"):
        Windows(iter([text(50)]), WordTokenizer(), 8, packing=True)


def test_a_batch_has_positions_or_a_mask_only_where_they_are_needed():
    whole = Window([5, 6, 7], [0, 1, 2])
    assert set(collate([whole, whole], 0)) == {"input_ids"}
    packed = collate([whole, Window([5, 6, 7], [0, 0, 1])], 0)
    assert packed["position_ids"].tolist() == [[0, 1, 2], [0, 0, 1]]
    padded = collate([whole, Window([5, 6], [0, 1])], 9)
    assert padded["input_ids"].tolist() == [[5, 6, 7], [5, 6, 9]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert padded["input_ids"].dtype == torch.int64


def test_whole_windows_are_full_and_of_one_document():
    windows = Windows([text(20), text(20, 1)], WordTokenizer(), 8, packing=True)
    found = [ids[0].tolist() for ids in windows.whole()]
    assert found == [w.ids for w in windows._packed() if w.positions == list(range(8))]
    assert 0 < len(found) < len(list(windows._packed()))


def test_spread_windows_are_of_as_many_documents_as_there_are():
    documents = [text(20), text(5, 1), text(17, 2), text(40, 3)]
    windows = Windows(documents, WordTokenizer(), 8, packing=False)
    cut = {
        number: [w.ids for w in Windows([document], WordTokenizer(), 8, packing=False)._cut() if len(w.ids) == 8]
        for number, document in enumerate(documents)
    }
    assert [len(found) for found in cut.values()] == [2, 0, 2, 5]
    short = WordTokenizer()(documents[1])["input_ids"]
    rest = [cut[2][1], cut[3][1], cut[3][2], cut[3][3], cut[3][4]]
    in_turn = [cut[0][0], short, cut[2][0], cut[3][0], cut[0][1], *rest]
    for count, tokens in ((1, [8]), (2, [8, 5, 8]), (4, [8, 5, 8, 8, 8]), (9, [8, 5, *[8] * 8])):
        found = [ids[0].tolist() for ids in windows.spread(count)]
        assert list(map(len, found)) == tokens
        assert found == in_turn[: len(found)]
    assert len(windows.spread(100)) == 10
    assert windows.spread(1)[0].dtype == torch.int64


def test_a_document_shorter_than_a_window_is_one_as_a_whole():
    documents = [text(5, seed) for seed in range(40)]
    for framed, around in ((False, 0), (True, 2)):
        tokenizer = WordTokenizer(bert=framed)
        found = Windows(documents, tokenizer, 16, packing=False).spread(3)
        assert {tuple(ids.shape) for ids in found} == {(1, 5 + around)}
        inner = [ids[0, around // 2 : 5 + around // 2].tolist() for ids in found]
        assert inner == [tokenizer(document)["input_ids"] for document in documents[: len(found)]]
        assert 48 <= sum(ids.numel() for ids in found) < 48 + 5 + around


def test_spread_windows_of_an_encoder_have_its_special_tokens():
    found = Windows([text(20)], WordTokenizer(bert=True), 8, packing=False).spread(5)
    assert [ids[0, 0].item() for ids in found] == [1] * 3
    assert [ids[0, -1].item() for ids in found] == [2] * 3
    assert {tuple(ids.shape) for ids in found} == {(1, 8)}


def test_spread_stops_reading_as_soon_as_it_has_enough():
    class Endless:
        def __iter__(self):
            while True:
                yield text(20)

    assert len(Windows(Endless(), WordTokenizer(), 8, packing=False).spread(3)) == 3


def test_too_little_text_is_found_without_reading_on():
    Windows([text(20)], WordTokenizer(), 8, packing=True).require_one()
    for windows in (Windows([text(5)], WordTokenizer(), 8, packing=True), Windows([""], WordTokenizer(), 8, False)):
        with pytest.raises(HealingError, match="tokens, less than one window of 8|every document is empty"):
            windows.require_one()
    with pytest.raises(HealingError, match="the text has 5 tokens, less than one window of 8"):
        Windows([text(5)], WordTokenizer(), 8, packing=False).spread(1)


def test_a_tokenizer_larger_than_the_model_is_refused():
    with pytest.raises(HealingError, match=f"it has {WORDS + 3} tokens, the model has embeddings for {WORDS}"):
        check_vocabulary(WordTokenizer(size=WORDS + 3), gpt2())
    check_vocabulary(WordTokenizer(size=WORDS - 3), gpt2())


def test_columns_or_splits_are_not_read_as_texts():
    with pytest.raises(HealingError, match="a dict with the keys train, test"):
        Windows({"train": [text(20)], "test": [text(20)]}, WordTokenizer(), 8, packing=True)


def test_the_first_window_reads_no_further():
    class Documents:
        def __iter__(self):
            yield text(20)
            raise AssertionError("read on")

    (window,) = Windows(Documents(), WordTokenizer(), 8, packing=True).first()
    assert window.ids == WordTokenizer()(text(20))["input_ids"][:8]


def test_short_documents_make_the_typical_window_shorter():
    documents = [text(6), text(4, 1)]
    assert Windows(documents, WordTokenizer(), 16, packing=False).typical_length() == 5
    assert Windows(documents, WordTokenizer(bert=True), 16, packing=False).typical_length() == 7
    assert Windows(documents, WordTokenizer(), 16, packing=True).typical_length() == 16


def test_documents_that_together_are_less_than_a_window_are_refused():
    windows = Windows([text(6), text(4, 1)], WordTokenizer(), 16, packing=False)
    with pytest.raises(HealingError, match="the text has 10 tokens, less than one window of 16"):
        windows.spread(1)
    with pytest.raises(HealingError, match="longest of the 2 documents has 14 tokens"):
        list(Windows([text(6), text(14, 1)], WordTokenizer(), 16, packing=False).whole())


def test_how_long_documents_are_is_read_off_all_of_them_evenly(monkeypatch):
    monkeypatch.setattr("hf_posswap.training.texts.SAMPLED_DOCUMENTS", 10)
    documents = [text(1 + number // 10, number) for number in range(100)]  # sorted by length, as files often are
    windows = Windows(documents, WordTokenizer(), 16, packing=False)
    assert windows.document_lengths() == (list(range(1, 11)), 100)
    assert windows.typical_length() == pytest.approx(6, abs=0.5)
    rows = datasets.Dataset.from_dict({"text": documents}).to_iterable_dataset()
    assert Windows(rows, WordTokenizer(), 16, packing=False).document_lengths() == ([1] * 10, None)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("scheme", [None, "alibi", "t5:per_layer=true", "rope", "sinusoidal", "shaw", "none"])
def test_a_short_document_among_others_has_the_loss_it_has_alone(family, scheme):
    """Causal models read packed windows, encoders padded ones; stock and swapped alike."""
    if (family, scheme) == ("bert", "none"):
        pytest.skip("an encoder without positions is refused: it would read a bag of words")
    causal = family != "bert"
    model = {"gpt2": gpt2, "llama": llama, "bert": lambda: bert(head=True)}[family]()
    if scheme is not None:
        model = hf_posswap.swap(model, scheme)
    tokenizer = WordTokenizer(bert=not causal)
    documents = [text(size, seed) for seed, size in enumerate((7, 3, 9, 5, 8))]
    windows = list(Windows(documents, tokenizer, 36 if causal else 16, packing=causal)._pass())
    batch = collate(windows, 0)
    with torch.no_grad():
        together = model(**batch, **({"use_cache": False} if causal else {})).logits
    place = [0, 0]  # row and column where the next document begins
    for number, document in enumerate(documents):
        ids = tokenizer(document)["input_ids"]
        ids = [*ids, tokenizer.eos_token_id] if causal else [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
        row, start = (0, place[1]) if causal else (number, 0)
        if start + len(ids) > batch["input_ids"].shape[1]:
            break
        assert batch["input_ids"][row, start : start + len(ids)].tolist() == ids
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([ids])).logits[0]
        targets = torch.tensor(ids[1:])
        found = together[row, start : start + len(ids)]
        own, other = (torch.nn.functional.cross_entropy(logits[:-1], targets) for logits in (found, alone))
        assert float(own) == pytest.approx(float(other), abs=2e-5)
        place[1] += len(ids)
    assert number == len(documents) - 1, "every document was looked at"
