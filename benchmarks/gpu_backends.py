"""The error of each backend against eager attention in float64, for every registered scheme, beside stock's error."""

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_posswap.benchmarking.settings import BenchmarkSettings
from hf_posswap.benchmarking.shapes import stock_model, swapped_copy
from hf_posswap.errors import PosSwapError
from hf_posswap.results.environment import collect_environment
from hf_posswap.results.files import write_text
from hf_posswap.results.writing import to_json
from hf_posswap.swapped.cache_view import cache_keyword

BACKENDS = ("eager", "sdpa", "flex_attention")
WORKS = ("prefill", "padded", "decode", "training")
BATCH, PADDING = 2, 7
STOCK = "stock"
Row = dict[str, Any]


def outputs(model: Any, work: str, tokens: Tensor) -> Tensor:
    """Return what some work computes: hidden states of the tokens that are no padding, or the gradient of the loss.

    Args:
        model: a base model, stock or swapped.
        work: one of `WORKS`. "decode" reads the last token with the others cached; "training" is a backward pass, whose
            gradients of all weights that learn are joined.
        tokens: (B, L).
    """
    mask = torch.ones_like(tokens)
    if work == "training":
        model.zero_grad()
        model(tokens)[0].square().mean().backward()
        return torch.cat([p.grad.flatten() for _, p in sorted(model.named_parameters()) if p.grad is not None])
    with torch.no_grad():
        if work == "padded":
            mask[0, :PADDING] = 0
            return model(tokens, attention_mask=mask)[0][mask.bool()]
        if work == "decode":
            first = model(tokens[:, :-1], use_cache=True)
            return model(tokens[:, -1:], use_cache=True, **{str(cache_keyword(first)): first[cache_keyword(first)]})[0]
        return model(tokens)[0]


def error(found: Tensor, exact: Tensor) -> float:
    """Return the root mean square of a difference, relative to that of the exact values."""
    exact = exact.double()
    return float((found.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def rows(stock: Any, scheme: str, tokens: Tensor, backends: Sequence[str]) -> Iterator[Row]:
    """Yield the errors of a stock model (`STOCK`), or of it with a scheme's defaults, by backend and work.

    A row has the columns scheme, dtype, backend, work, error (None if there is none) and note, which says why.
    """
    about = {"scheme": scheme, "dtype": str(stock.dtype).removeprefix("torch."), "backend": "", "work": ""}
    try:
        model = copy.deepcopy(stock) if scheme == STOCK else swapped_copy(stock, scheme)
    except PosSwapError as refusal:
        yield about | {"error": None, "note": str(refusal)}
        return
    exact_model = copy.deepcopy(model).double()
    exact = {work: outputs(exact_model, work, tokens) for work in WORKS}
    for backend in backends:
        model.set_attn_implementation(backend)
        for work in WORKS:
            row: Row = about | {"backend": backend, "work": work, "error": None, "note": ""}
            try:
                row["error"] = error(outputs(model, work, tokens), exact[work])
            except PosSwapError as refusal:
                row["note"] = str(refusal)
            except Exception as failure:  # a kernel that fails is a result, and the others are to be measured
                row["note"] = f"{type(failure).__name__}: {failure}"
            yield row


def run(settings: BenchmarkSettings, folder: Path, backends: Sequence[str] = BACKENDS) -> int:
    """Write backends.json into a folder, anew after each scheme; go on with one that is there; return 0.

    Args:
        settings: the shape, its number of layers, the schemes, the dtypes, the device, and as the first length that of
            the texts.
        folder: an existing folder.
        backends: the attention backends.
    """
    path = folder / "backends.json"
    known: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    done = {(row["dtype"], row["scheme"]) for row in known}
    facts = {"kind": "backends", "settings": settings.conditions(), "environment": collect_environment()}
    generator = torch.Generator().manual_seed(settings.seed)
    for dtype in settings.dtypes:
        stock = stock_model(settings, dtype, "eager")
        shape = (BATCH, settings.lengths[0])
        tokens = torch.randint(stock.config.vocab_size, shape, generator=generator).to(settings.device)
        for scheme in (STOCK, *settings.schemes):
            if (dtype, scheme) not in done:
                known += rows(stock, scheme, tokens, backends)
                write_text(path, to_json(facts | {"rows": known}))
    return 0
