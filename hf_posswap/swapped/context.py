"""The values of one forward that the base model passes to every layer, and those of a ramp."""

from typing import Any, NamedTuple

from torch import Tensor

from hf_posswap.common.positions import Positions
from hf_posswap.schemes.base import Scheme, SchemeLayer
from hf_posswap.schemes.partial import PartialLayer


class Ramp(NamedTuple):
    """The state of a ramp from the stock mechanism to the scheme, see `hf_posswap.ramp`.

    Attributes:
        share: strength of the scheme, 0…1, 0-dim float32 on the CPU. It is a tensor, so that a compiled model accepts
            any value without being compiled again.
        native: the scheme that rotates q and k in the stock layers; None if there is none, or if it stays in place.
        layer: the layer of `native` if `native` caches keys unrotated, otherwise None; it has no parameters.
    """

    share: Tensor
    native: Scheme | None = None
    layer: SchemeLayer | None = None


class LayerRamp(NamedTuple):
    """The values of a ramp in one forward. A layer that is computed again in the backward pass gets the same values.

    Attributes:
        share: strength of the scheme.
        native: the rotation of the stock scheme at strength 1 − share, as `Scheme.prepare_at` returns it; None if
            there is none.
        layer: the layer that replaces the model's own rotation of q and k if keys are cached unrotated; otherwise None.
    """

    share: Tensor
    native: Any = None
    layer: PartialLayer | None = None


class ForwardContext(NamedTuple):
    """The values of one forward that the base model passes to every layer.

    Attributes:
        positions: positions of this forward.
        prepared: the result of `Scheme.prepare` for these positions.
        ramp: values of the ramp; None if no ramp is on.
        shared: values that attention computes once for all layers, see `AttentionInputs.once`.
        scheme: the scheme. A layer under a sliding window, whose keys differ from other layers', calls its `prepare`.
        mode: None: the scheme acts. "bare": layers omit the stock mechanism and the scheme. "idle": layers change
            nothing. The proof of a swap runs both.
        record: function that is called in each layer with the call, (q, k), the scaling, and (q, k) before the scheme;
            None: no recording.
        sizes: for each layer of the cache, the number of keys that it will return and the index in the text of the
            first key.
        backend: the attention backend that the config names.
        learns: whether `prepared` needs a gradient, which flows through values that all layers share.
        entered: set to which each attention module adds itself; None: modules are not counted.
        autocast: False if autocast is known to be off, so that layers do not test for it.
        part: number of the part that `scheme` and `prepared` belong to, see `Scheme.parts`.
    """

    positions: Positions
    prepared: Any
    ramp: LayerRamp | None = None
    shared: dict[Any, Any] | None = None
    scheme: Scheme | None = None
    mode: str | None = None
    record: Any = None
    sizes: dict[int, tuple[int, int]] | None = None
    backend: str = "sdpa"
    learns: bool = False
    entered: set[Any] | None = None
    autocast: bool = True
    part: int = 0

    def prepared_for(self, positions: Positions) -> Any:
        """Return the result of `Scheme.prepare` for positions; in a ramp, that of `Scheme.prepare_at`."""
        assert self.scheme is not None
        return (
            self.scheme.prepare(positions) if self.ramp is None else self.scheme.prepare_at(positions, self.ramp.share)
        )

    def of_part(self, number: int) -> "ForwardContext":
        """Return the context for the layers of one of the scheme's parts."""
        whole = self.scheme
        if whole is None or (part := whole.part(number)) is whole:
            return self
        prepared = self.prepared if self.prepared is None else whole.prepared_part(self.prepared, number)
        return self._replace(scheme=part, part=number, prepared=prepared)

    @property
    def named(self) -> str:
        """The scheme as error messages name it."""
        return "the scheme" if self.scheme is None else f"scheme {self.scheme.name!r}"

    @property
    def acts_everywhere(self) -> bool:
        """Whether layers run our attention function even if their scheme does not change attention."""
        return self.record is not None or (self.ramp is not None and self.ramp.layer is not None)

    @property
    def bare(self) -> bool:
        """Whether layers omit the stock mechanism and the scheme."""
        return self.mode == "bare"

    @property
    def idle(self) -> bool:
        """Whether layers change nothing."""
        return self.mode == "idle"

    def stages(self, layer: SchemeLayer) -> list[tuple[SchemeLayer | PartialLayer, Any]]:
        """Return the scheme layers that act in a layer, each with its prepared values; in a ramp, at their shares.

        The list is empty if `mode` is not None.
        """
        if self.mode is not None:
            return []
        if self.ramp is None:
            return [(layer, self.prepared)]
        partial = (PartialLayer(layer, self.ramp.share), self.prepared)
        return [partial] if self.ramp.layer is None else [(self.ramp.layer, self.ramp.native), partial]
