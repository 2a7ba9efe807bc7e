"""RULER's synthetic tasks for causal models: exact matches, and the answer's log-probability against chance.

Weak models hardly ever give an exact answer. The log-probability of the right answer tells them apart nevertheless: it
is compared with that of a wrong answer of the same form after the same prompt, such as another key's code number. A
model that does not use the text gives both the same log-probability on average.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from hf_posswap.errors import PositionError
from hf_posswap.evaluation.bootstrap import interval_of_mean
from hf_posswap.evaluation.errors import EvaluationError
from hf_posswap.evaluation.processes import ALONE, Processes
from hf_posswap.evaluation.reading import Progress, Reader
from hf_posswap.evaluation.ruler_tasks import TASKS, Material, Sample, score
from hf_posswap.evaluation.settings import RULER_TASKS, TRIALS
from hf_posswap.evaluation.texts import begin_token, tokenise
from hf_posswap.evaluation.token_loss import token_losses
from hf_posswap.evaluation.windows import check_lengths


@dataclass(frozen=True)
class RulerRow:
    """One task at one length.

    Attributes:
        length: tokens of prompt and generated text.
        task: name of the task, a key of `TASKS`.
        score: mean share of the answers that occur in the generated text; None if it could not be measured, see `note`.
        log_probability: mean log-probability of a token of the right answer, in nats.
        chance_log_probability: that of a wrong answer of the same form.
        gain: log_probability − chance_log_probability; 0 for a model that does not use the text.
        gain_low: lower end of the 95% bootstrap interval of the gain over trials; None with a single trial.
        gain_high: upper end of that interval.
        trials: number of prompts.
        note: reason why `score` is missing, otherwise empty.
    """

    length: int
    task: str
    score: float | None
    log_probability: float | None
    chance_log_probability: float | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    trials: int
    note: str = ""


@dataclass(frozen=True)
class RulerPrompt:
    """A sample as token ids: prompt, right and wrong answer, int64 (n,) each."""

    sample: Sample
    ids: Tensor
    right: Tensor
    wrong: Tensor


def ruler_rows(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    lengths: Sequence[int],
    *,
    tasks: Sequence[str] = RULER_TASKS,
    trials: int = TRIALS,
    seed: int = 0,
    batch_tokens: int = 4096,
    processes: Processes = ALONE,
    progress: Progress | None = None,
) -> list[RulerRow]:
    """Measure how well a model does RULER's synthetic tasks, by length.

    Args:
        model: a causal language model that generates, swapped or stock. It is measured in evaluation mode.
        tokenizer: the model's tokenizer.
        texts: long texts, such as books, which give the filler and the words.
        lengths: tokens of prompt and generated text.
        tasks: names of the tasks.
        trials: prompts for each task and length.
        seed: seed of the prompts and of the bootstrap.
        batch_tokens: maximum tokens of one forward pass; a longer prompt is a batch of its own.
        processes: the processes that share the work (`joined_processes()` yields them under `accelerate launch`).
        progress: called after each forward pass with the number of tokens it read.

    Returns:
        For each length, in ascending order, a row for each task. A length that the model cannot read, or that is too
        short for a task, has rows without values, with the reason in their note.

    Raises:
        EvaluationError: an unknown task, no trial, an unsuitable model, or texts with too few words.
    """
    task = RulerTask(tokenizer, texts, tasks, trials, seed)
    with Reader(model, batch_tokens=batch_tokens, processes=processes, progress=progress) as reader:
        _ = reader.head
        return [row for length in check_lengths(lengths) for row in task.measure(reader, length)]


class RulerTask:
    """The tasks of a measurement.

    Args:
        tokenizer: the model's tokenizer.
        texts: the texts that give filler and words.
        tasks: names of the tasks.
        trials: prompts for each task and length.
        seed: seed of the prompts and of the bootstrap.

    Raises:
        EvaluationError: an unknown task, no trial, or texts with too few words.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], tasks: Sequence[str], trials: int, seed: int) -> None:
        for name in tasks:
            if name not in TASKS:
                raise EvaluationError(f"unknown task {name!r}. Allowed: {', '.join(TASKS)}.")
        if trials < 1:
            raise EvaluationError(f"the number of trials is {trials}. Give at least 1.")
        self.tokenizer, self.trials, self.seed = tokenizer, trials, seed
        self.names = [name for name in TASKS if name in tasks]
        self.material = Material(texts)

    def tokens(self, length: int) -> int:
        """Return about the number of tokens read at a length, for progress bars."""
        return 3 * length * len(self.names) * self.trials

    def measure(self, reader: Reader, length: int) -> list[RulerRow]:
        """Measure every task at one length."""
        try:
            reader.require_length(length)
        except PositionError as error:
            return gap_rows(self.names, length, str(error))
        return [self._measure(reader, name, length) for name in self.names]

    def prompt(self, name: str, length: int, trial: int) -> RulerPrompt | int:
        """Return the longest prompt of a task that fits, or how many tokens the shortest one needs if none does."""
        room = length - TASKS[name].generated
        shortest = self._made(name, length, trial, 0)
        if len(shortest.ids) > room:
            return len(shortest.ids) + TASKS[name].generated
        fitting, size, too_much = shortest, 0, max(1, room)
        while too_much - size > 1:
            middle = (size + too_much) // 2
            made = self._made(name, length, trial, middle)
            if len(made.ids) <= room:
                fitting, size = made, middle
            else:
                too_much = middle
        return fitting

    def _made(self, name: str, length: int, trial: int, size: int) -> RulerPrompt:
        chance = random.Random(f"{self.seed} {name} {trial}")  # the same needles at every length
        sample = TASKS[name].make(chance, self.material, size, length)
        begin = torch.tensor(begin_token(self.tokenizer), dtype=torch.int64)
        ids, right, wrong = (tokenise(self.tokenizer, text) for text in (sample.prompt, sample.answer, sample.wrong))
        return RulerPrompt(sample, torch.cat([begin, ids]), right, wrong)

    def _measure(self, reader: Reader, name: str, length: int) -> RulerRow:
        found = [self.prompt(name, length, trial) for trial in range(self.trials)]
        needed = max((prompt for prompt in found if isinstance(prompt, int)), default=None)
        if needed is not None:
            return gap_rows([name], length, f"a prompt of {name} needs at least {needed} tokens")[0]
        prompts = [prompt for prompt in found if isinstance(prompt, RulerPrompt)]
        texts = self._generated(reader, prompts, TASKS[name].generated)
        scores = [score(prompt.sample.answers, text) for prompt, text in zip(prompts, texts, strict=True)]
        right = _log_probabilities(reader, [(prompt.ids, prompt.right) for prompt in prompts])
        wrong = _log_probabilities(reader, [(prompt.ids, prompt.wrong) for prompt in prompts])
        gains = [of_right - of_wrong for of_right, of_wrong in zip(right, wrong, strict=True)]
        low, high = interval_of_mean(gains, [1] * len(gains), self.seed) or (None, None)
        found_share, of_right, of_wrong, gain = (fmean(values) for values in (scores, right, wrong, gains))
        return RulerRow(length, name, found_share, of_right, of_wrong, gain, low, high, len(prompts))

    def _generated(self, reader: Reader, prompts: Sequence[RulerPrompt], count: int) -> list[str]:
        """Return the text that the model generates greedily after each prompt."""
        own = getattr(reader.model, "generation_config", None)
        stops = getattr(own, "eos_token_id", None)
        pad = (stops[0] if isinstance(stops, list) else stops) or 0
        how = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=stops, pad_token_id=pad)

        def generate(batch: list[Tensor]) -> list[str]:
            ids = torch.stack(batch).to(reader.device)
            made = reader.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)
            reader.was_read(ids)
            return [self.tokenizer.decode(row, skip_special_tokens=True) for row in made[:, ids.shape[1] :].tolist()]

        return reader.read_alike([prompt.ids for prompt in prompts], lambda ids: (len(ids),), generate)


def _log_probabilities(reader: Reader, pieces: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    """Return the mean log-probability of a token of each answer, given the prompt and the answer's tokens before it."""

    def read(batch: list[tuple[Tensor, Tensor]]) -> list[float]:
        ids = torch.stack([torch.cat(piece) for piece in batch]).to(reader.device)
        losses = token_losses(reader.model, reader.head, ids, len(batch[0][0]), reader.positions_per_chunk)
        reader.was_read(ids)
        return [float(-of_answer.double().mean()) for of_answer in losses]

    return reader.read_alike(pieces, lambda piece: (len(piece[0]) + len(piece[1]), len(piece[1])), read)


def gap_rows(tasks: Sequence[str], length: int, note: str) -> list[RulerRow]:
    """Return the rows of a length that was not measured, with the reason."""
    return [RulerRow(length, task, None, None, None, None, None, None, 0, note) for task in tasks]
