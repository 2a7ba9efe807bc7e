"""The prompts of the synthetic tasks of RULER (Hsieh et al., 2404.06654), made from words and sentences of the texts.

The tasks and their numbers are the suite's; the sentences are our own. A prompt asks its question last and ends just
before the answer. Its filler is as long as the length permits, with room for as many generated tokens as the suite's.

- `single-repeated`, `single-book`: a code number of seven digits in repeated sentences, or in a book.
- `multi-key`: four keys with a code number each, in a book; one is asked for.
- `multi-value`: a key with four code numbers, in a book; all are asked for.
- `variables`: a chain of five assignments in repeated sentences; all variables with the value are asked for. An example
  with its answer comes before it.
- `common-words`: a numbered list in which ten words occur often (6 times and others once, from 4,096 tokens on 30 and 3
  times); the ten are asked for. An example with its answer comes before it.
- `frequent-words`: invented words with frequencies by a zeta distribution (α = 2); the three most frequent are asked
  for, after the very most frequent one, which is "...".
"""

import itertools
import math
import random
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hf_posswap.evaluation.errors import UnmeasurableError

FILLER = "The road is long. The night is cold. The lamp is lit. We walk on. Then we rest."
CODE = "The code number of {key} is: {value}."
NEEDLES = (
    "The following text hides code numbers. Keep them in mind: a question about them comes at the end.\n{context}\n"
    "What {number} of {key} in the text above? The {number_is} of {key} in the text above {verb}"
)
ASSIGNMENTS = (
    "The following text hides assignments of variables. Follow the chain of assignments.\n\n{context}\n"
    "Question: Which variables have the value {value} in the text above? Answer: By the assignments in the text above, "
    "the {count} variables with the value {value} are:"
)
COMMON = (
    "This is a numbered list of words. Some words occur more often than others; keep these in mind.\n{context}\n"
    "Question: Which 10 words occur most often in the list above? Answer: The 10 words that occur most often in the "
    "list above are:"
)
FREQUENT = (
    "Count how often each invented word occurs in the following text. Find the three most frequent ones. {context}\n"
    "Question: Which three words occur most often in the text above? Do not count the dots '...', and explain nothing. "
    "Answer: The three words that occur most often in the text above are:"
)
KEYS, VALUES, VARIABLES, COMMON_WORDS, FREQUENT_WORDS = 4, 4, 5, 10, 3
LONG_LIST = 4096
"""From this length on, the words of a list occur five times as often."""
ZETA = math.pi**2 / 6
"""Riemann's zeta function at 2, the exponent of the frequencies of words."""
LEAST_FREQUENT = 60
"""Least number of words in a text of frequent words: with fewer, the fourth and the fifth rank are equally frequent."""
LEAST_WORDS = 100
"""Least number of different words that the texts must have."""


@dataclass(frozen=True)
class Sample:
    """A prompt with its answers.

    Attributes:
        prompt: the text that the model continues.
        answers: the strings that its continuation must contain.
        answer: the answers as a continuation of the prompt.
        wrong: a wrong answer of the same form.
    """

    prompt: str
    answers: tuple[str, ...]
    answer: str
    wrong: str


class Material:
    """The words and sentences that prompts are made of.

    Args:
        texts: long texts.

    Raises:
        UnmeasurableError: the texts have too few different words, or no sentences.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.sentences = [" ".join(part.split()) for text in texts for part in re.split(r"(?<=[.!?])\s+", text)]
        self.sentences = [sentence for sentence in self.sentences if sentence]
        self.words = sorted(set(re.findall(r"\b[a-z]{5,9}\b", " ".join(texts))))
        if len(self.words) < LEAST_WORDS:
            raise UnmeasurableError(
                f"the tasks of RULER are made of the words of the texts, and these have {len(self.words)} words of 5 "
                f"to 9 Latin letters; {LEAST_WORDS} are needed. Give longer texts."
            )


Make = Callable[[random.Random, Material, int, int], Sample]
"""Makes a sample from random numbers, material, an amount of filler from 0 on, and the length in tokens."""


@dataclass(frozen=True)
class Task:
    """A task of RULER.

    Attributes:
        generated: number of tokens that the suite lets a model generate.
        make: function that makes a sample.
    """

    generated: int
    make: Make


def _number(chance: random.Random) -> str:
    return str(chance.randint(10**6, 10**7 - 1))


def _placed(chance: random.Random, filler: Sequence[str], hidden: Sequence[str]) -> list[str]:
    """Return the filler with the hidden sentences, in order, each at a place of its own as far as there are places."""
    places = range(len(filler) + 1)
    chosen = chance.sample(places, len(hidden)) if len(places) >= len(hidden) else chance.choices(places, k=len(hidden))
    found = list(filler)
    for place, sentence in reversed(list(zip(sorted(chosen), hidden, strict=True))):
        found.insert(place, sentence)
    return found


def _needles(keys: int, values: int, in_book: bool) -> Make:
    def make(chance: random.Random, material: Material, size: int, length: int) -> Sample:
        names = [f"{first}-{second}" for first, second in (chance.sample(material.words, 2) for _ in range(keys))]
        numbers = {name: [_number(chance) for _ in range(values)] for name in names}
        hidden = [CODE.format(key=name, value=value) for name in names for value in numbers[name]]
        chance.shuffle(hidden)
        start = chance.randrange(len(material.sentences))
        looped = [material.sentences[(start + n) % len(material.sentences)] for n in range(size if in_book else 0)]
        filler = looped if in_book else [FILLER] * size
        context = (" " if in_book else "\n").join(_placed(chance, filler, hidden))
        key = chance.choice(names)
        answers = sorted(numbers[key], key=context.index)
        others = [value for name in names if name != key for value in numbers[name]]
        wrong = chance.sample(others, 1) if others else [_number(chance) for _ in answers]
        one = values == 1
        prompt = NEEDLES.format(
            context=context,
            key=key,
            number="is the code number" if one else "are all the code numbers",
            number_is="code number" if one else "code numbers",
            verb="is" if one else "are",
        )
        return Sample(prompt, tuple(answers), _listed(answers), _listed(wrong))

    return make


def _variables(chance: random.Random, material: Material, size: int, length: int) -> Sample:
    example, right = _chain(chance, 3, 0)
    asked, answers = _chain(chance, 5, size)
    wrong = ["".join(chance.choices(string.ascii_uppercase, k=5)) for _ in answers]
    return Sample(
        f"{example} {' '.join(right)}\n\n{asked}", tuple(answers), " " + " ".join(answers), f" {' '.join(wrong)}"
    )


def _chain(chance: random.Random, letters: int, size: int) -> tuple[str, list[str]]:
    """Return a prompt with a chain of assignments among `size` fillers, and its variables."""
    names = _different(chance, VARIABLES, lambda: "".join(chance.choices(string.ascii_uppercase, k=letters)))
    value = str(chance.randint(10_000, 99_998))
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {name} = VAR {before}" for before, name in itertools.pairwise(names)]
    context = "\n".join(_placed(chance, [FILLER] * size, chain))
    return ASSIGNMENTS.format(context=context, value=value, count=len(names)), names


def _common_words(chance: random.Random, material: Material, size: int, length: int) -> Sample:
    long = length >= LONG_LIST
    example, right, _ = _list(chance, material, 10, *((10, 3) if long else (3, 1)))
    asked, answers, others = _list(chance, material, 10 + size, *((30, 3) if long else (6, 1)))
    prompt = f"{example}{_numbered(right)}\n{asked}"
    return Sample(prompt, tuple(answers), _numbered(answers), _numbered(others[:COMMON_WORDS]))


def _list(
    chance: random.Random, material: Material, rare: int, often: int, seldom: int
) -> tuple[str, list[str], list[str]]:
    """Return a prompt with a list, its common words and its rare words."""
    drawn = chance.sample(material.words, min(COMMON_WORDS + rare, len(material.words)))
    common, others = drawn[:COMMON_WORDS], drawn[COMMON_WORDS:]
    entries = common * often + others * seldom
    chance.shuffle(entries)
    return COMMON.format(context=_numbered(entries).strip()), common, others


def _frequent_words(chance: random.Random, material: Material, size: int, length: int) -> Sample:
    words = _different(chance, max(20, length // 50), lambda: "".join(chance.choices(string.ascii_lowercase, k=6)))
    scale = (LEAST_FREQUENT + size) / ZETA
    words[0] = "..."
    entries = [word for rank, word in enumerate(words, start=1) for _ in range(int(scale / rank**2))]
    chance.shuffle(entries)
    answers, wrong = words[1 : 1 + FREQUENT_WORDS], words[1 + FREQUENT_WORDS : 1 + 2 * FREQUENT_WORDS]
    return Sample(FREQUENT.format(context=" ".join(entries)), tuple(answers), _listed(answers), _listed(wrong))


TASKS = {
    "single-repeated": Task(128, _needles(keys=1, values=1, in_book=False)),
    "single-book": Task(128, _needles(keys=1, values=1, in_book=True)),
    "multi-key": Task(128, _needles(keys=KEYS, values=1, in_book=True)),
    "multi-value": Task(128, _needles(keys=1, values=VALUES, in_book=True)),
    "variables": Task(30, _variables),
    "common-words": Task(120, _common_words),
    "frequent-words": Task(50, _frequent_words),
}
"""Tasks by name, in the order of tables."""


def score(answers: Sequence[str], text: str) -> float:
    """Return the share of the answers that occur in a text, in any case of letters: the suite's scoring rule."""
    return sum(answer.lower() in text.lower() for answer in answers) / len(answers)


def _listed(items: Sequence[str]) -> str:
    return " " + ", ".join(items)


def _numbered(items: Sequence[str]) -> str:
    return "".join(f" {number}. {item}" for number, item in enumerate(items, start=1))


def _different(chance: random.Random, count: int, draw: Callable[[], str]) -> list[str]:
    """Draw until there are `count` different strings."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw()] = None
    return list(found)
