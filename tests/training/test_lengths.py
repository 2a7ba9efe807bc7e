import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_posswap import swap
from hf_posswap.training import HealingError, HealingOptions, heal
from hf_posswap.training.lengths import Lengths
from hf_posswap.training.texts import Window
from tests.training.helpers import SPECIAL, WordTokenizer, bert, gpt2, text

ENCODER = WordTokenizer(bert=True)


def window(inner: int) -> Window:
    ids = [SPECIAL["[CLS]"], *range(5, 5 + inner), SPECIAL["[SEP]"]]
    return Window(ids, list(range(len(ids))))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_lengths_halve_down_to_the_shortest():
    assert Lengths(256, 32, ENCODER).choices == [256, 128, 64, 32]
    assert Lengths(250, 40, ENCODER).choices == [250, 125, 62]
    assert Lengths(32, 32, ENCODER).choices == [32]


def test_every_length_is_drawn_and_follows_from_the_generator():
    lengths = Lengths(32, 8, ENCODER)
    drawn = {len(lengths.cut([window(30)], generator(seed))[0].ids) for seed in range(40)}
    assert drawn == {8, 16, 32}
    assert lengths.cut([window(30)], generator(3)) == lengths.cut([window(30)], generator(3))


@given(length=st.integers(4, 80), shortest=st.integers(3, 80), inner=st.integers(2, 78), seed=st.integers(0, 20))
def test_parts_are_whole_texts_in_order(length, shortest, inner, seed):
    if shortest > length or inner + 2 > length:
        return
    whole = window(inner)
    parts = Lengths(length, shortest, ENCODER).cut([whole], generator(seed))
    assert parts
    assert len({len(part.ids) for part in parts}) == 1
    for part in parts:
        assert (part.ids[0], part.ids[-1]) == (SPECIAL["[CLS]"], SPECIAL["[SEP]"])
        assert part.positions == list(range(len(part.ids)))
    read = [token for part in parts for token in part.ids[1:-1]]
    assert read == whole.ids[1:-1][: len(read)]
    # What is left over is less than one more text.
    assert inner - len(read) < len(parts[0].ids) - 2


def test_nothing_is_drawn_where_there_is_no_choice():
    drawing, windows = generator(), [window(30)]
    before = drawing.get_state()
    assert Lengths(32, 32, ENCODER).cut(windows, drawing) is windows
    assert torch.equal(drawing.get_state(), before)


@pytest.mark.parametrize("shortest", [2, 33])
def test_a_shortest_length_that_does_not_fit_is_refused(shortest):
    with pytest.raises(HealingError, match=f"shortest_length is {shortest}; at length 32 it must be between 3 and 32"):
        Lengths(32, shortest, ENCODER)


def lengths_read(model, **options):
    """Heal for some steps, and return the lengths of the texts that reached the model."""
    read = set()
    handle = model.get_input_embeddings().register_forward_hook(
        lambda module, arguments, output: read.add(arguments[0].shape[1])
    )
    tokenizer = WordTokenizer(bert=not hasattr(model, "lm_head"))
    heal(model, [text(400)], tokenizer, HealingOptions(steps=12, batch_size=2, checkpoint_every=0, **options))
    handle.remove()
    return read


def test_embeddings_are_healed_on_texts_of_all_lengths():
    model = swap(bert(max_position_embeddings=64), "alibi")
    assert lengths_read(model, length=64, distill=1.0) == {32, 64}


def test_a_window_shorter_than_that_is_read_whole():
    assert lengths_read(swap(bert(), "alibi"), length=16, distill=1.0) == {16}


def test_masked_tokens_are_healed_on_whole_windows_unless_asked_otherwise():
    assert lengths_read(swap(bert(head=True), "alibi"), length=16) == {16}
    assert lengths_read(swap(bert(head=True), "alibi"), length=16, shortest_length=8) == {8, 16}


def test_a_causal_model_needs_no_short_texts():
    model = swap(gpt2(), "t5")
    options = HealingOptions(steps=1, length=16, shortest_length=8, train="scheme")
    with pytest.raises(HealingError, match="shortest_length=8 does not fit objective 'lm'"):
        heal(model, [text(400)], WordTokenizer(), options)
    assert all(weight.requires_grad for weight in model.parameters())
