"""What to compare."""

from dataclasses import dataclass

STOCK = "stock"


@dataclass(frozen=True)
class Settings:
    """What to compare.

    Attributes:
        model: a folder, a Hub name, a GGUF file or a `demo:` name.
        schemes: scheme specifications such as "alibi" or "rope:yarn:factor=4".
        texts: files or `demo:` names.
        lengths: tokens to read at once.
        tokens: about how many tokens are read for each length, protocol and scheme.
        seed: of the bootstrap and of anything a scheme draws at random.
        dtype: in which the model computes.
        device: on which it computes, such as "cpu" or "cuda"; None picks CUDA where there is one.
    """

    model: str
    schemes: tuple[str, ...]
    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    tokens: int = 8192
    seed: int = 0
    dtype: str = "float32"
    device: str | None = None
