"""The settings of a swap: the model to load, the scheme to swap in, and the type of the weights."""

from dataclasses import dataclass
from typing import Literal

from hf_posswap.common.options import REQUIRED, check_options, option
from hf_posswap.errors import PosSwapError

MODEL_HELP = "A folder or Hub name, of an adapter too, a GGUF file, or demo:gpt2, demo:bert, demo:llama."
# Not rope:yarn:factor=4: rich prints :yarn: as an emoji.
_FORM = "written name[:variant][:option=value]…, such as alibi, rope:linear:factor=4 or t5:layers=0+1."
SCHEME_HELP = (
    f"Scheme to swap in, {_FORM} Several, each in its own layers, with commas: none:layers=3+7,rope. native: the "
    "relative tables of an old checkpoint, which transformers does not load."
)
SCHEMES_HELP = (
    f"Schemes to swap in, separated by commas, each {_FORM} Several that act in one model, each in its own layers, in "
    "brackets: 'alibi,[none:layers=3+7,rope]'."
)
StoredDtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class SwapSettings:
    """The settings of a swap.

    Raises (on construction):
        PosSwapError: a value that is not allowed; the message gives the allowed ones.
    """

    model: str = option(REQUIRED, MODEL_HELP, metavar="MODEL")
    pos_scheme: str | None = option(None, SCHEME_HELP, metavar="SCHEME")
    dtype: StoredDtype = option("auto", "Dtype of the weights; auto: as stored.")

    def __post_init__(self) -> None:
        check_options(self, PosSwapError)
