"""Passkey retrieval: whether a causal model can repeat five digits from a long text.

The task is that of Mohtashami and Jaggi (2305.16300): a sentence with a pass key at some depth among irrelevant
sentences, and a question for the key at the end. One forward pass over prompt and key gives three scores:

- `correct`: the model chooses among ten keys that differ in their first digit, by the likelihood of the first token in
  which they differ. Every ten trials have each first digit once, so a model that does not use the key is right in one
  of ten trials, whatever digits it prefers. This separates weak models from guessing.
- `exact`: every token of the key is the most likely one of the whole vocabulary, given the tokens before it, so greedy
  decoding would generate the key.
- `log_probability`: the mean log-probability of a token of the right key, given the tokens before it, in nats. It
  separates models that find every key, or none.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_posswap.errors import PositionError
from hf_posswap.evaluation.errors import EvaluationError, UnmeasurableError
from hf_posswap.evaluation.processes import ALONE, Processes
from hf_posswap.evaluation.reading import Progress, Reader
from hf_posswap.evaluation.settings import DEPTHS, TRIALS
from hf_posswap.evaluation.texts import begin_token, tokenise
from hf_posswap.evaluation.token_loss import base_model_of, last_hidden
from hf_posswap.evaluation.windows import check_lengths

CANDIDATES = 10
CHANCE = 1 / CANDIDATES

OPENING = "There is a pass key hidden in this text. Find it and remember it."
FILLER = (" The grass is green.", " The sky is blue.", " The sun is yellow.", " Here we go.", " There and back again.")
NEEDLE = (" The pass key is #", "{key}", ". Remember it. #", "{key}", " is the pass key.")
QUESTION = " What is the pass key? The pass key is #"
"""The character before a key prevents its first digit from forming one token with a space."""


@dataclass(frozen=True)
class PasskeyRow:
    """One cell: one depth at one length.

    Attributes:
        length: tokens of prompt and key.
        depth: place of the key: 0 at the beginning of the text, 1 just before the question.
        correct: share of trials in which the key is chosen among ten; None if it could not be measured.
        exact: share of trials in which greedy decoding generates the whole key.
        log_probability: mean log-probability of a token of the right key, in nats.
        trials: number of trials.
        chance: expected `correct` of guessing.
        note: reason why `correct` is missing, otherwise empty.
    """

    length: int
    depth: float
    correct: float | None
    exact: float | None
    log_probability: float | None
    trials: int
    chance: float
    note: str = ""


@dataclass(frozen=True)
class Prompt:
    """A prompt with its key at the end.

    Attributes:
        ids: token ids, int64 (L,).
        answer: number of tokens of the key, which are the last ones.
        choice: index, within the key, of the first token in which the ten candidates differ.
        candidates: that token of each candidate, the right one first.
    """

    ids: Tensor
    answer: int
    choice: int
    candidates: list[int]


def passkey_rows(
    model: nn.Module,
    tokenizer: Any,
    lengths: Sequence[int],
    *,
    depths: Sequence[float] = DEPTHS,
    trials: int = TRIALS,
    seed: int = 0,
    batch_tokens: int = 4096,
    processes: Processes = ALONE,
    progress: Progress | None = None,
) -> list[PasskeyRow]:
    """Measure how often a model retrieves a pass key, by depth and length.

    Args:
        model: a causal language model, swapped or stock. It is measured in evaluation mode; its mode is restored.
        tokenizer: the model's tokenizer.
        lengths: tokens of prompt and key.
        depths: places of the key, from 0 (beginning) to 1 (just before the question).
        trials: prompts for each cell, each with another key; all cells have the same keys. With a multiple of ten,
            guessing is right in exactly one of ten trials.
        seed: seed of the keys.
        batch_tokens: maximum tokens of one forward pass; a longer prompt is a batch of its own.
        processes: the processes that share the work (`joined_processes()` yields them under `accelerate launch`).
        progress: called after each forward pass with the number of tokens it read.

    Returns:
        For each length, in ascending order, a row for each depth. A length that the model cannot read, or that is too
        short for a prompt, has rows without values, with the reason in their note.

    Raises:
        EvaluationError: an unsuitable model, an invalid depth or number of trials, or a tokenizer with the same token
            for different digits.
    """
    task = PasskeyTask(tokenizer, depths, trials, seed)
    with Reader(model, batch_tokens=batch_tokens, processes=processes, progress=progress) as reader:
        _ = reader.head
        return [row for length in check_lengths(lengths) for row in task.measure(reader, length)]


class PasskeyTask:
    """The prompts of a measurement.

    Args:
        tokenizer: the model's tokenizer.
        depths: places of the keys.
        trials: prompts for each cell.
        seed: seed of the keys.

    Raises:
        EvaluationError: a depth outside of 0…1, no trial, or a tokenizer with the same token for different digits.
    """

    def __init__(self, tokenizer: Any, depths: Sequence[float], trials: int, seed: int) -> None:
        if not depths or any(not 0 <= depth <= 1 for depth in depths):
            raise EvaluationError(f"the depths are {list(depths)}. Give numbers from 0 (beginning) to 1 (end).")
        if trials < 1:
            raise EvaluationError(f"the number of trials is {trials}. Give at least 1.")
        self.tokenizer, self.depths = tokenizer, sorted(set(depths))
        self.keys = draw_keys(trials, seed)
        self.begin = [*begin_token(tokenizer), *self._ids(OPENING)]
        self.filler = [self._ids(sentence) for sentence in FILLER]
        self.question = self._ids(QUESTION)
        for key in self.keys:
            self._candidates(key)

    def tokens(self, length: int) -> int:
        """Return the number of tokens read at a length, for progress bars."""
        return length * len(self.depths) * len(self.keys)

    def measure(self, reader: Reader, length: int) -> list[PasskeyRow]:
        """Measure every depth at one length."""
        shortest = max(self._fixed_tokens(key) for key in self.keys)
        if length < shortest:
            return gap_rows(self.depths, length, f"a prompt needs at least {shortest} tokens")
        prompts = [self.prompt(key, depth, length) for depth in self.depths for key in self.keys]
        try:
            reader.require_length(length)
            batches = reader.batches(prompts, length)
            found = itertools.chain(*reader.processes.share(batches, lambda batch: _answers(reader, batch)))
            answers = list(found)
        except PositionError as error:
            return gap_rows(self.depths, length, str(error))
        trials = len(self.keys)
        rows = []
        for number, depth in enumerate(self.depths):
            of_depth = answers[number * trials : (number + 1) * trials]
            correct, exact, log_probability = (sum(values) / trials for values in zip(*of_depth, strict=True))
            rows.append(PasskeyRow(length, depth, correct, exact, log_probability, trials, CHANCE))
        return rows

    def prompt(self, key: str, depth: float, length: int) -> Prompt:
        """Return the prompt of `length` tokens with `key` at about `depth`, between two sentences."""
        needle, answer = self._needle(key), self._ids(key)
        room = length - self._fixed_tokens(key)
        sentences = self._filler(room)
        before = _sentences_before(sentences, depth * room)
        ids = [*self.begin, *itertools.chain(*sentences[:before]), *needle, *itertools.chain(*sentences[before:])]
        ids += [*self.question, *answer]
        choice, candidates = self._candidates(key)
        return Prompt(torch.tensor(ids), len(answer), choice, candidates)

    def _candidates(self, key: str) -> tuple[int, list[int]]:
        """Return the index of the first token in which the ten keys differ, and that token of each, right key first.

        Raises:
            UnmeasurableError: the tokenizer has the same token for different digits.
        """
        digits = [key[0], *(digit for digit in "0123456789" if digit != key[0])]
        options = [self._ids(digit + key[1:]) for digit in digits]
        shared = 0
        while all(len(option) > shared + 1 and option[shared] == options[0][shared] for option in options):
            shared += 1
        tokens = [option[shared] for option in options if len(option) > shared]
        if len(set(tokens)) < len(digits):
            raise UnmeasurableError(
                "this tokenizer does not tell the digits apart, so passkey retrieval cannot be measured with it."
            )
        return shared, tokens

    def _filler(self, room: int) -> list[list[int]]:
        """Return sentences with `room` tokens in total; the first one may be cut at its beginning."""
        sentences: list[list[int]] = []
        for sentence in itertools.cycle(reversed(self.filler)):
            if room <= 0:
                break
            sentences.append(sentence[-room:])
            room -= len(sentences[-1])
        return sentences[::-1]

    def _fixed_tokens(self, key: str) -> int:
        return len(self.begin) + len(self._needle(key)) + len(self.question) + len(self._ids(key))

    def _needle(self, key: str) -> list[int]:
        """Return the sentence with the key, whose tokens are the same as at the end of the prompt."""
        return [token for part in NEEDLE for token in self._ids(part.format(key=key))]

    def _ids(self, text: str) -> list[int]:
        return tokenise(self.tokenizer, text).tolist()


def gap_rows(depths: Sequence[float], length: int, note: str) -> list[PasskeyRow]:
    """Return the rows of a length that was not measured, with the reason."""
    return [PasskeyRow(length, depth, None, None, None, 0, CHANCE, note) for depth in sorted(set(depths))]


def draw_keys(trials: int, seed: int) -> list[str]:
    """Draw keys of five digits; every ten of them have ten different first digits."""
    chance = random.Random(seed)
    firsts = itertools.chain.from_iterable(chance.sample("0123456789", 10) for _ in range(0, trials, 10))
    return [first + "".join(chance.choices("0123456789", k=4)) for first in itertools.islice(firsts, trials)]


def _answers(reader: Reader, batch: list[Prompt]) -> list[tuple[bool, bool, float]]:
    """Return for each prompt whether the key is chosen, whether it is decoded exactly, and its log-probability."""
    ids = torch.stack([prompt.ids for prompt in batch]).to(reader.device)
    hidden = last_hidden(base_model_of(reader.model), ids)
    reader.was_read(ids)
    results = []
    for row, prompt in enumerate(batch):
        logits = reader.head(hidden[row, -prompt.answer - 1 : -1]).float().cpu()
        scores = logits[prompt.choice, prompt.candidates]
        # A tie with another candidate, as with constant outputs, does not count as a choice.
        chosen = bool((scores[0] > scores[1:]).all())
        key = prompt.ids[-prompt.answer :]
        log_probability = logits.log_softmax(-1).gather(-1, key[:, None]).mean().item()
        results.append((chosen, logits.argmax(-1).tolist() == key.tolist(), log_probability))
    return results


def _sentences_before(sentences: Sequence[Sequence[int]], tokens: float) -> int:
    """Return the number of sentences whose total is closest to `tokens` tokens."""
    lengths = [0, *itertools.accumulate(len(sentence) for sentence in sentences)]
    return min(range(len(lengths)), key=lambda count: abs(lengths[count] - tokens))
