"""Sharing work: in order, in every process, errors too; and a launch that Accelerate does not join."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import accelerate
import accelerate.utils
import pytest

from hf_posswap.errors import PositionError
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.key_token_choice import key_tokens
from hf_posswap.evaluation.needle_retrieval import needle_rows
from hf_posswap.evaluation.perplexity import perplexity_rows
from hf_posswap.evaluation.processes import ALONE, Processes, joined_processes
from hf_posswap.evaluation.ruler import ruler_rows
from hf_posswap.evaluation.texts import tokenise
from hf_posswap.sources import load_model, load_tokenizer
from hf_posswap.texts.sources import resolve_texts


class Thirds(Processes):
    """Three processes that take turns in this one: each computes its share, and all get everything."""

    def share(self, work: Sequence[Any], do: Callable[[Any], Any]) -> list[Any]:
        everyone = [Processes(index, 3) for index in range(3)]
        found = [one._outcome(number, do, work[number]) for one in everyone for number in one._own(len(work))]
        return [result for _, result in sorted(found, key=lambda pair: pair[0])]


class Pool:
    """Three processes in one: what each gathers is found by computing the shares of the others too."""

    count = 3

    def __init__(self, monkeypatch: pytest.MonkeyPatch, work: list[int], do: Any) -> None:
        self.work, self.do = work, do
        monkeypatch.setattr(accelerate.utils, "gather_object", self.gather)

    def gather(self, own: list[Any]) -> list[Any]:
        everyone = [Processes(index, self.count) for index in range(self.count)]
        found = [
            [process._outcome(number, self.do, self.work[number]) for number in process._own(len(self.work))]
            for process in everyone
        ]
        assert any(share == own or len(share) == len(own) for share in found)
        return [pair for share in found for pair in share]

    def results(self) -> Iterator[list[Any]]:
        for index in range(self.count):
            yield Processes(index, self.count).share(self.work, self.do)


@pytest.mark.parametrize("pieces", [0, 1, 3, 7])
def test_shares_come_together_in_order_in_every_process(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    work = list(range(pieces))
    expected = [str(piece) for piece in work]
    assert list(Pool(monkeypatch, work, str).results()) == [expected] * 3
    assert ALONE.share(work, str) == expected


def test_an_error_in_one_share_is_raised_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def do(piece: int) -> int:
        if piece == 4:
            raise PositionError("longest position 256")
        return piece

    Pool(monkeypatch, list(range(6)), do)
    for index in range(3):
        with pytest.raises(PositionError, match="longest position 256"):
            Processes(index, 3).share(list(range(6)), do)
    with pytest.raises(PositionError):
        ALONE.share([4], do)


def test_what_the_main_process_finds_or_raises_reaches_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def broadcast(held: list[Any]) -> list[Any]:
        if held != [None]:
            sent[:] = held
        return list(sent)

    def refuse() -> str:
        raise EvaluationError("no")

    monkeypatch.setattr(accelerate.utils, "broadcast_object_list", broadcast)
    everyone = [Processes(index, 2) for index in range(2)]
    assert [process.on_main(lambda: "found") for process in everyone] == ["found", "found"]
    for process in everyone:
        with pytest.raises(EvaluationError, match="no"):
            process.on_main(refuse)


@dataclass
class Joined:
    """Stands for Accelerate's state of the processes."""

    num_processes: int
    process_index: int = 0
    device: str = "cpu"
    groups: int = 1

    def destroy_process_group(self) -> None:
        self.groups -= 1


def launched(monkeypatch: pytest.MonkeyPatch, started: int, joined: int) -> Joined:
    """Pretend that `accelerate launch` has started processes, and that Accelerate joins so many of them."""
    state = Joined(joined)
    monkeypatch.setattr(accelerate, "PartialState", lambda **_: state)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(started))
    return state


def test_without_a_launch_this_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with joined_processes() as processes:
        assert processes is ALONE


def test_processes_that_accelerate_does_not_join_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, started=2, joined=1)
    with pytest.raises(EvaluationError, match="2 processes were started, but Accelerate joins 1"), joined_processes():
        raise AssertionError("joined")


def test_processes_part_after_their_work_and_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they do not, Python now and then aborts while it ends, and a finished measurement counts as failed."""
    state = launched(monkeypatch, started=2, joined=2)
    with joined_processes() as processes:
        assert processes == Processes(0, 2, "cpu")
        assert state.groups == 1
    assert state.groups == 0
    state = launched(monkeypatch, started=2, joined=2)
    with pytest.raises(EvaluationError, match="no"), joined_processes():
        raise EvaluationError("no")
    assert state.groups == 0


def test_a_shared_measurement_has_the_numbers_of_one_process() -> None:
    book = resolve_texts("demo:book/test")[0].read()[:30_000]
    tokenizer, gpt2 = load_tokenizer("demo:gpt2"), load_model("demo:gpt2")
    ids = tokenise(tokenizer, book)
    rows = []
    for processes in (ALONE, Thirds(0, 3)):
        shared: dict[str, Any] = {"processes": processes, "batch_tokens": 256}
        keys = key_tokens(gpt2, ids, [64, 128], budget=512, gain=0.2, least=-6.0, **shared)
        protocols: Any = ("same-targets", "sliding")
        losses = perplexity_rows(gpt2, ids, [64, 128], protocols, budget=512, keys=keys, stride=16, **shared)
        tasks = ruler_rows(gpt2, tokenizer, [book], [240], tasks=["single-book"], trials=3, **shared)
        found = needle_rows(load_model("demo:bert"), load_tokenizer("demo:bert"), [book], [32], documents=11, **shared)
        rows.append([*(replace(row, seconds=0.0) for row in losses), *tasks, *found])
        assert 0 < int(keys.sum()) < len(keys)
    assert rows[0] == rows[1]
