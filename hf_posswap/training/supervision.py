"""What a model learns from in healing, by name: the text, the stock model's outputs, hidden states and attention."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field

from hf_posswap.common.registry import unknown_name_message

ATTENTION_SHARE = 0.25
"""Default share of the tokens that the attention stage reads, if another supervision follows."""
LABELS = ("labels",)
"""The words for learning from the text alone."""


def _weight(default: float, meaning: str) -> float:
    weight: float = field(default=0.0, metadata={"weight": default, "meaning": meaning})
    return weight


@dataclass(frozen=True)
class Supervision:
    """The weight of each supervision; 0: the model does not learn from it.

    Attributes:
        labels: weight of the objective's own loss.
        logits: weight of the distance of the outputs to the stock model's: KL divergence in nats, or for objective
            "embedding" 1 − the cosine of the texts' embeddings.
        hidden: weight of the distance of the hidden states to the stock model's: 1 − their cosine, the mean over
            tokens and layers.
        attention: share of the tokens that a stage of its own reads before the rest; see `AttentionTransfer`.
    """

    labels: float = _weight(1.0, "the text itself, by the objective's own loss")
    logits: float = _weight(1.0, "the stock model's outputs")
    hidden: float = _weight(10.0, "the stock model's hidden states after every layer")
    attention: float = _weight(
        ATTENTION_SHARE, "the stock model's attention, layer by layer, in a stage before the rest; its weight is the "
        "stage's share of the tokens"
    )  # fmt: skip

    @classmethod
    def of(cls, words: Iterable[str]) -> "Supervision":
        """Return the supervision that words such as "logits" and "hidden=10" name.

        Without a number, a word has its usual weight; "attention" alone is the whole run.

        Raises:
            ValueError: a word is unknown or given twice, or a weight is no positive number or does not fit.
        """
        usual = {each.name: each.metadata["weight"] for each in dataclasses.fields(cls)}
        weights: dict[str, float] = {}
        words = list(words)
        for word in words:
            name, equals, number = (part.strip() for part in word.partition("="))
            if name not in usual:
                raise ValueError(unknown_name_message("supervision", name, tuple(usual)))
            if name in weights:
                raise ValueError(f"supervision {name!r} is given twice, in {','.join(words)!r}. Leave one out.")
            alone = name == "attention" and len(words) == 1
            weights[name] = _number(word, number) if equals else 1.0 if alone else usual[name]
        found = cls(**weights)
        if found.attention > 1 or (found.attention == 1 and found.trains_outputs):
            raise ValueError(
                f"supervision 'attention={found.attention:g}' is a share of the tokens: it must be less than 1 if "
                "another supervision follows, and 1 alone."
            )
        if found.attention and found.attention < 1 and not found.trains_outputs:
            raise ValueError(
                f"supervision 'attention={found.attention:g}' leaves tokens over that nothing would read. Give "
                "another supervision too, such as logits, or attention alone."
            )
        return found

    @property
    def words(self) -> tuple[str, ...]:
        """The words that `of` reads, each with its weight."""
        return tuple(f"{name}={weight:g}" for name, weight in dataclasses.asdict(self).items() if weight)

    @property
    def trains_outputs(self) -> bool:
        """Whether there is a stage in which the whole model runs."""
        return max(self.labels, self.logits, self.hidden) > 0

    @property
    def has_teacher(self) -> bool:
        """Whether the model learns from the stock model."""
        return max(self.logits, self.hidden, self.attention) > 0

    def __str__(self) -> str:
        return ",".join(self.words)


def _number(word: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1e6:
        raise ValueError(
            f"supervision {word!r} has no weight that can be used: write a positive number, such as 'hidden=10', or "
            "leave the supervision out."
        )
    return number


def supervision_help() -> str:
    """Return what each word means, for the help of the option."""
    meanings = (f"{each.name}: {each.metadata['meaning']}" for each in dataclasses.fields(Supervision))
    return "; ".join(meanings)
