"""Loads the model once for each scheme, swaps and measures."""

import copy
import hashlib
from dataclasses import asdict
from typing import Any

from hf_posswap.comparison.observer import Observer
from hf_posswap.comparison.preparation import Prepared
from hf_posswap.comparison.settings import STOCK, Settings
from hf_posswap.demo import TextSource, load_model
from hf_posswap.errors import PosSwapError
from hf_posswap.evaluation.environment import collect_environment
from hf_posswap.evaluation.perplexity import PROTOCOLS, LengthRow, gap_row, perplexity_rows
from hf_posswap.schemes import parse_scheme

FORMAT_VERSION = 1


def run(prepared: Prepared, observer: Observer | None = None) -> dict[str, Any]:
    """Measure stock and each scheme, and return the content of compare.json.

    A scheme whose swap is refused only once the model is there becomes rows without a loss, which say why.
    """
    observer = observer or Observer()
    settings = prepared.settings
    reasons = {refusal.scheme: refusal.reason for refusal in prepared.refusals}
    rows: list[dict[str, Any]] = []
    train_length = None
    for scheme in (STOCK, *settings.schemes):
        if scheme in reasons:
            measured = _gap_rows(settings, reasons[scheme])
        else:
            measured, train_length = _measure_scheme(prepared, scheme, observer)
        labelled = [{"model": settings.model, "scheme": scheme, **asdict(row)} for row in measured]
        rows += labelled
        observer.scheme_done(scheme, labelled)
    return {
        "format_version": FORMAT_VERSION,
        "model": settings.model,
        "train_length": train_length,
        "seed": settings.seed,
        "settings": asdict(settings),
        "texts": [
            {"name": source.name, "tokens": len(ids), "sha256": _sha256(source)} for source, ids in prepared.texts
        ],
        "environment": collect_environment(),
        "rows": rows,
    }


def _measure_scheme(prepared: Prepared, scheme: str, observer: Observer) -> tuple[list[LengthRow], int]:
    """Load, swap and measure one scheme; return its rows and the stock model's train length."""
    import torch

    import hf_posswap

    settings = prepared.settings
    observer.stage(scheme, "loading")
    # A copy, for a swap changes the configuration of its model.
    model = load_model(
        settings.model, hf_posswap.AutoModelForCausalLM, config=copy.deepcopy(prepared.config), dtype=settings.dtype
    ).to(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    train_length = hf_posswap.train_length(model)
    if scheme != STOCK:
        torch.manual_seed(settings.seed)  # a scheme may start from random numbers
        try:
            hf_posswap.swap(model, parse_scheme(scheme))
        except PosSwapError as error:
            return _gap_rows(settings, str(error)), train_length
    rows: list[LengthRow] = []
    for protocol in PROTOCOLS:
        observer.stage(scheme, protocol)
        rows += perplexity_rows(
            model,
            [ids for _, ids in prepared.texts],
            settings.lengths,
            (protocol,),
            budget=settings.tokens,
            seed=settings.seed,
            progress=observer.tokens,
        )
    return rows, train_length


def _gap_rows(settings: Settings, reason: str) -> list[LengthRow]:
    return [gap_row(protocol, length, reason) for protocol in PROTOCOLS for length in settings.lengths]


def _sha256(source: TextSource) -> str:
    return hashlib.sha256(source.path.read_bytes()).hexdigest()
