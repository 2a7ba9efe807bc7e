"""A causal model that continues what it reads as it went on before: it finds every pass key."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config


class Copier(nn.Module):
    """Predicts the token after the latest place where the last two tokens stood before; else token 0.

    Args:
        vocabulary: number of tokens.
        longest: the longest position it says it has.
        reach: how many tokens it looks back.
        sure: the logit of the token it predicts; all others have 0.
    """

    def __init__(self, vocabulary: int, longest: int = 10_000, reach: int = 10_000, sure: float = 1.0) -> None:
        super().__init__()
        self.config = GPT2Config(vocab_size=vocabulary, n_positions=longest)
        self.base_model = _Base(vocabulary, reach, sure, self.config)
        self.head = nn.Identity()

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def generate(self, input_ids: Tensor, *, generation_config: Any, **_: Any) -> Tensor:
        """Append the most likely token, one after another."""
        for _step in range(generation_config.max_new_tokens):
            following = self.base_model(input_ids).last_hidden_state[:, -1].argmax(-1, keepdim=True)
            input_ids = torch.cat([input_ids, following], dim=1)
        return input_ids

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.base_model(input_ids).last_hidden_state)


class _Base(nn.Module):
    def __init__(self, vocabulary: int, reach: int, sure: float, config: GPT2Config) -> None:
        super().__init__()
        self.config, self.reach, self.sure = config, reach, sure
        self.embedding = nn.Embedding(vocabulary, 1)
        self.positions = nn.Embedding(config.n_positions, 1)  # read by nobody: it is how long a text may be

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        vocabulary = self.embedding.num_embeddings
        rows = [functional.one_hot(self._next(row.tolist()), vocabulary) * self.sure for row in input_ids]
        return SimpleNamespace(last_hidden_state=torch.stack(rows))

    def _next(self, ids: list[int]) -> Tensor:
        places: dict[tuple[int, int], int] = {}
        predicted = [0]
        for place in range(1, len(ids)):
            pair = (ids[place - 1], ids[place])
            known = places.get(pair, -self.reach)
            predicted.append(ids[known + 1] if place - known < self.reach else 0)
            places[pair] = place
        return torch.tensor(predicted)
