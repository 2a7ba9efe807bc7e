"""Checks whether a model can use a scheme with its options; adds the entry of a composition to error messages."""

import dataclasses
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hf_posswap.errors import PosSwapError, SchemeConfigError, UnsupportedError
from hf_posswap.schemes.base import ModelFacts, Scheme, SchemeConfig


@contextmanager
def in_entry(number: int, name: object, whole: Sequence[Any]) -> Iterator[None]:
    """Add the number and the scheme of a composition's entry to errors that a `with` block raises.

    If there is only one entry, errors stay unchanged.

    Args:
        number: index of the entry, counted from 0.
        name: name of its scheme.
        whole: all entries.
    """
    try:
        yield
    except PosSwapError as error:
        if len(whole) == 1:
            raise
        raise type(error)(f"entry {number + 1} ({name}): {error}") from error


def check_supported(config: SchemeConfig, facts: ModelFacts) -> None:
    """Refuse a scheme that the model cannot use, or that would have no effect in it.

    Raises:
        UnsupportedError: the model cannot use the scheme; the message gives the reason.
        SchemeConfigError: the config's layers do not exist, or the options would have no effect on this model.
    """
    for number, part in enumerate(config.parts):
        with in_entry(number, part.name, config.parts):
            _check_part(part, facts, composed=part is not config)


def _check_part(config: SchemeConfig, facts: ModelFacts, composed: bool) -> None:
    scheme = config.scheme_type()
    place = f"scheme {config.name!r} cannot enter {facts.architecture!r} ({facts.mode})"
    if not facts.causal and not scheme.fits_encoder(config):
        raise UnsupportedError(f"{place}: {scheme.encoder_refusal}")
    _check_layers(config, scheme, facts)
    # In a composition, other schemes act in the other layers. So the check is the one for a scheme in all layers.
    reason = scheme.refusal(dataclasses.replace(config, layers=None) if composed else config, facts)
    if reason is not None:
        raise UnsupportedError(f"{place}: {reason}")


def _check_layers(config: SchemeConfig, scheme: type[Scheme], facts: ModelFacts) -> None:
    if config.window is not None and not scheme.acts_in_layers:
        raise SchemeConfigError(
            f"scheme {config.name!r} enters at the embeddings, so it has no layers to give a window: leave out "
            f"window={config.window}, or add a window by scheme none:keep_native=true:window={config.window} alone."
        )
    if config.log_n and not scheme.acts_in_layers:
        raise SchemeConfigError(
            f"scheme {config.name!r} enters at the embeddings, so it has no layers whose queries log_n could scale: "
            "leave out log_n, or add it by scheme none:keep_native=true:log_n=true alone."
        )
    if config.layers is None:
        return
    if not scheme.acts_in_layers:
        raise SchemeConfigError(
            f"scheme {config.name!r} enters at the embeddings, so it has no layers to choose from: "
            f"leave out layers={reprlib.repr(list(config.layers))}."
        )
    missing = [layer for layer in config.layers if layer >= facts.num_layers]
    if missing:
        raise SchemeConfigError(
            f"{config.name} option 'layers' names layers {reprlib.repr(missing)}, but the model has layers 0 to "
            f"{facts.num_layers - 1}."
        )
