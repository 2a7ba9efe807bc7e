"""Native export: a swapped model as a stock checkpoint, where a stock class of transformers can express its scheme.

`Scheme.as_stock` gives the form of a scheme in stock models, `Architecture.write_stock` the weights and config values
for the form. This module combines them, and verifies the folder by loading it.
"""

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_posswap.architectures import Architecture, architecture_named, architecture_of
from hf_posswap.architectures.stock import StockModel
from hf_posswap.errors import NotSwappedError, PosSwapError, UnsupportedError
from hf_posswap.loading.configuration import stock_config_class
from hf_posswap.results.files import OutputError, prepare_folder
from hf_posswap.schemes import schemes
from hf_posswap.schemes.base import Scheme
from hf_posswap.swapped.offloading import device_of
from hf_posswap.swapped.plan import core_of
from hf_posswap.swapped.questions import is_swapped, longest_position

PROBE_LENGTH = 64
PROBE_SEED = 0
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest relative difference of the outputs (root mean square), by the dtype of both models."""
OF_THE_SWAP = ("pos_scheme", "auto_map", "model_type", "architectures", "transformers_version", "_name_or_path")
"""Entries of a swapped config that a stock config does not have."""


class ExportError(PosSwapError):
    """An export whose outputs would differ from the swapped model's; nothing was written."""


@dataclass(frozen=True)
class Export:
    """The result of `export_native`.

    Attributes:
        folder: the folder that was written.
        model: name of the stock model's class.
        scheme: name of the swapped model's scheme.
        written_as: description of the mechanism that the stock model has for it.
        max_length: longest text that the stock config states.
        typical: root mean square of the difference to the swapped model's outputs over that of the outputs.
        largest: largest absolute difference.
        note: what else a user of the stock model should know, or None.
    """

    folder: str
    model: str
    scheme: str
    written_as: str
    max_length: int
    typical: float
    largest: float
    note: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the export as a JSON-ready dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"model:      {self.model}, stock transformers",
            f"scheme:     {self.scheme}, written as {self.written_as}",
            f"reads:      {self.max_length} tokens, as its config states",
            f"check:      loaded again; outputs differ by up to {self.largest:.3g} ({self.typical:.2g} of their size)",
        ]
        return "\n".join(lines if self.note is None else [*lines, f"note:       {self.note}"])


def export_native(model: Any, directory: str | Path, max_length: int | None = None) -> Export:
    """Write a swapped model as a stock checkpoint, which loads without hf_posswap and gives the same outputs.

    The folder is loaded by the stock class and compared with the model before it appears, so memory for a second copy
    of the weights is needed. The model does not change. Tokenizers are saved by their own `save_pretrained`.

    Args:
        model: a swapped model, in memory as a whole.
        directory: a new or an empty folder.
        max_length: longest text of the stock model. None: the natural one; for a formula without a limit that becomes
            a table, four times the train length.

    Raises:
        NotSwappedError: the model is stock: `save_pretrained` writes it.
        UnsupportedError: no stock class of this family can express the scheme; the message names the schemes that can
            be exported.
        ExportError: the outputs of the stock model differ; nothing was written.
        OutputError: the folder is not empty or cannot be written to.
    """
    folder = Path(directory)
    _check(model, max_length)
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{str(folder)!r} is not empty. Give a new folder: an export leaves no older file in it.")
    architecture = architecture_of(model.config)
    form = _form(core_of(model), architecture)
    stock = architecture.write_stock(core_of(model), form, longest_position(model), max_length)
    skeleton = _fill(_skeleton(model, architecture, stock), model, stock)
    prepare_folder(folder.parent)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        skeleton.save_pretrained(draft)
        loaded = type(skeleton).from_pretrained(
            draft, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
        typical, largest = _compare(model, loaded, architecture, stock.max_length)
        _move(draft, folder)
    except OSError as error:
        raise OutputError(f"cannot write to {str(folder)!r}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Export(
        str(folder), type(skeleton).__name__, core_of(model).pos_scheme.name, stock.words, stock.max_length,
        typical, largest, form.note,
    )  # fmt: skip


def _check(model: Any, max_length: int | None) -> None:
    """Refuse anything but a swapped model with plain, final weights in memory."""
    if isinstance(model, PreTrainedModel) and not is_swapped(model):
        raise NotSwappedError(f"the model is a stock {type(model).__name__} already: model.save_pretrained writes it.")
    if not isinstance(model, PreTrainedModel) or vars(model).get("peft_config"):
        raise UnsupportedError(
            f"{type(model).__name__} carries adapters or wraps the model. peft's merge_and_unload() makes a plain "
            "model of it, which can be exported."
        )
    if core_of(model).pos_ramp is not None:
        raise UnsupportedError(
            "a ramp still mixes the old mechanism in. End it: hf_posswap.ramp.set_ramp(model, None)."
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise UnsupportedError("the weights are quantised. Load the model without quantisation, then export it.")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise UnsupportedError("weights are not in memory (meta device or offloaded). Load the whole model first.")
    if max_length is not None and max_length < 1:
        raise UnsupportedError(f"max_length is {max_length}; it must be at least 1.")


def _form(core: Any, architecture: Architecture) -> Any:
    """Return the form of the scheme in a stock model of the family.

    Raises:
        UnsupportedError: it has none; the message names the schemes that have one.
    """
    scheme: Scheme = core.pos_scheme
    place = f"scheme {scheme.name!r} on {architecture.name!r} cannot be exported to stock transformers"
    known = architecture.stock_forms(core)
    names = [other.name for other in schemes if other.stock_form in known]
    could = f"Of {architecture.name!r} these can be exported: {', '.join(sorted(names)) or 'none'}. Any other swap is "
    could += "saved by save_pretrained, and loaded where hf_posswap is installed."
    try:
        for part in scheme.parts:
            if part.config.window is not None:
                raise UnsupportedError(f"its sliding window of {part.config.window} tokens is no part of any of them.")
            if part.config.log_n:
                raise UnsupportedError("no stock model scales its queries by ln n/ln T (log_n=true).")
        form = scheme.as_stock()
    except UnsupportedError as error:
        raise UnsupportedError(f"{place}: {error} {could}") from error
    if not isinstance(form, known):
        raise UnsupportedError(f"{place}: no stock {architecture.name!r} has {form.words}. {could}")
    return form


def _skeleton(model: Any, architecture: Architecture, stock: StockModel) -> Any:
    """Return the stock model without weights."""
    target = architecture if stock.model_type is None else architecture_named(stock.model_type)
    config_class, old_class = stock_config_class(target), stock_config_class(architecture)
    old, new = (known.__name__.removesuffix("Config") for known in (old_class, config_class))
    name = type(model).stock_class.__name__.replace(old, new, 1)
    model_class = target.model_class(name)
    if model_class is None:
        raise UnsupportedError(f"transformers has no {name}, which this head would need.")
    values = {key: value for key, value in model.config.to_dict().items() if key not in OF_THE_SWAP}
    config = config_class.from_dict(values | stock.values)
    with torch.device("meta"):
        return model_class(config)


def _fill(skeleton: Any, model: Any, stock: StockModel) -> Any:
    """Assign the swapped model's weights, which are shared, and the weights that differ, to the stock model.

    Raises:
        UnsupportedError: the model has weights that no stock model has.
    """
    core = core_of(model)
    prefix = next((f"{name}." for name, module in model.named_modules() if module is core and name), "")
    weights = dict(model.state_dict()) | {prefix + name: value for name, value in stock.weights.items()}
    wanted = skeleton.state_dict()
    # A retired table is stored beside the weight that replaces it.
    retired = {f"{prefix}{name.removesuffix('weight')}table" for name in stock.weights}
    scheme = {name for name in weights if "pos_scheme" in name.split(".")}
    strange = sorted(set(weights) - set(wanted) - scheme - retired)
    if strange:
        raise UnsupportedError(f"the model has weights that stock {type(skeleton).__name__} does not have: {strange}.")
    skeleton.load_state_dict({name: weights[name] for name in wanted if name in weights}, strict=True, assign=True)
    skeleton.tie_weights()
    if model.can_generate():
        skeleton.generation_config = model.generation_config
    skeleton.config.dtype = model.dtype
    return skeleton


@torch.no_grad()
def _compare(model: Any, stock: Any, architecture: Architecture, max_length: int) -> tuple[float, float]:
    """Return the typical and the largest difference of the outputs on random tokens, at the first and last positions.

    Raises:
        ExportError: the difference is larger than rounding explains.
    """
    device = device_of(model.get_input_embeddings())
    stock.to(device).eval()
    length = min(PROBE_LENGTH, max_length)
    generator = torch.Generator().manual_seed(PROBE_SEED)
    tokens = torch.randint(model.config.vocab_size, (1, length), generator=generator).to(device)
    ends = {length, max_length}
    if architecture.table_path(core_of(model)) is None:
        ends.add(2 * max_length)
    training = model.training
    model.eval()
    try:
        pairs = [_outputs(model, stock, tokens, end) for end in sorted(ends)]
    finally:
        model.train(training)
    expected, actual = (torch.cat(outputs).double() for outputs in zip(*pairs, strict=True))
    difference = actual - expected
    typical = float(difference.square().mean().sqrt() / expected.square().mean().sqrt().clamp(min=1e-30))
    if not typical <= TOLERANCE.get(model.dtype, 0.0):
        raise ExportError(
            f"the stock {type(stock).__name__} computes something else: its outputs differ by {typical:.2g} of their "
            f"size, {TOLERANCE.get(model.dtype, 0.0)} is allowed in {model.dtype}. Nothing was written. This is a "
            "defect of hf_posswap, or the model was changed after the swap: please report it."
        )
    return typical, float(difference.abs().max())


def _outputs(model: Any, stock: Any, tokens: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Return the hidden states of both models for tokens whose last position is end − 1."""
    position_ids = torch.arange(end - tokens.shape[1], end, device=tokens.device).unsqueeze(0)
    arguments = {"input_ids": tokens, "position_ids": position_ids}
    return model.base_model(**arguments)[0], stock.base_model(**arguments)[0]


def _move(draft: Path, folder: Path) -> None:
    """Move the finished draft to the folder's place, with the permissions of a new folder."""
    if folder.is_dir():
        folder.rmdir()
    folder.mkdir()
    shutil.copymode(folder, draft)
    folder.rmdir()
    draft.rename(folder)
