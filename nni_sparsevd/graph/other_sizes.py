"""The same network at other input sizes and numbers: what a value is at one size may be something else at another."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .example_inputs import CallArguments, use_other_numbers
from .modes import clear_caches_, reacts_to_modes
from .names import find_names
from .traces import Trace
from .tracing import Attempt, make_traceable_copy, record

InputDim = tuple[int, int]
"""The place of a tensor among the inputs, and one of its dimensions."""
Sizes = Mapping[InputDim, int]
"""Sizes that differ from those of the example."""


@dataclass(frozen=True)
class OtherSizes:
    """Traces at input sizes that the network accepts besides that of the example."""

    traces: tuple[Trace, ...]
    complete: bool
    """Whether every dimension of the inputs, but one of channels each, has another size in some trace."""


def trace_other_sizes(model: nn.Module, trace: Trace) -> OtherSizes:
    """Trace a network at other sizes, along every dimension of its inputs that it accepts.

    Args:
        model: The network that `trace` was recorded of.  It is left as it is.
        trace: The operators at the size of the example.

    Returns:
        The traces: one where all sizes differ at once, if the network takes such inputs, else one for each size.
    """
    # 1. A dimension may be changed alone, or only together with those of its size: height and width, the tokens of two
    #    inputs.  So dimensions of one size are tried together first.
    # 2. Most networks take everything but another number of channels, so that is tried at once, to save time.
    # 3. What is left out then is tried alone: where a network takes it, it is no channel dimension.
    search = _Search(model, trace)
    accepted: dict[InputDim, int] = {}
    for channel_dim in (1, -1):
        accepted = search.change_all_but(channel_dim)
        if accepted:
            break
    for dims in search.dims_of_equal_size(without=accepted):
        accepted |= search.change_together_or_alone(dims)
    traces = [*search.traces_of(accepted), *search.traces_of_other_numbers()]
    return OtherSizes(tuple(traces), search.covers(accepted))


def other_sizes_of(size: int) -> list[int]:
    """Other sizes of a dimension, the most telling ones first."""
    # 1. 3n + 1 is odd where n is even and the other way around, and far from n: `n // 2`, `n % 2` and the like differ.
    # 2. Windows and patches want multiples, a grid of tokens wants squares or cubes.
    # 3. A table of positions may be as long as the example: then only smaller sizes are left.
    sizes = [3 * size + 1, 2 * size, size + 32, 4 * size, 8 * size, size + 1, size - 1, size // 2]
    return [other for other in dict.fromkeys(sizes) if other > 0 and other != size]


class _Search:
    """Asks a network for the sizes that it accepts."""

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self._arguments, self._on_meta = trace.inputs, trace.on_meta
        self._inputs = trace.inputs.tensors
        self._model = trace.runner or make_traceable_copy(model, on_meta=trace.on_meta)
        self._names = find_names(self._model)
        self._may_keep = reacts_to_modes(self._model)
        """Whether a module may keep something between two runs, to be cleared."""
        self._accepted: dict[tuple[tuple[InputDim, int], ...], Trace] = {}

    def _accepts(self, sizes: Sizes) -> bool:
        key = tuple(sorted(sizes.items()))
        if key in self._accepted:
            return True
        attempt = self._try(self._arguments.with_tensors(resize_inputs(self._inputs, sizes)))
        if attempt.error is None:
            self._accepted[key] = attempt.trace
        return attempt.error is None

    def _try(self, arguments: CallArguments) -> Attempt:
        if self._may_keep:
            clear_caches_(self._model)
        return record(self._model, arguments, on_meta=self._on_meta, names=self._names)

    def _all_dims(self) -> list[InputDim]:
        dims = []
        for place, value in enumerate(self._inputs):
            dims += [(place, dim) for dim in range(value.dim()) if value.shape[dim] > 0]
        return dims

    def _size(self, dim: InputDim) -> int:
        return self._inputs[dim[0]].shape[dim[1]]

    def change_all_but(self, channel_dim: int) -> dict[InputDim, int]:
        """New sizes of all dimensions but that of the channels; empty where the network does not take them."""
        dims = [(place, dim) for place, dim in self._all_dims() if not self._is_channel_dim(place, dim, channel_dim)]
        sizes = {dim: other_sizes_of(self._size(dim))[0] for dim in dims}
        return sizes if sizes and self._accepts(sizes) else {}

    def _is_channel_dim(self, place: int, dim: int, channel_dim: int) -> bool:
        value = self._inputs[place]
        return value.is_floating_point() and value.dim() > 1 and dim == channel_dim % value.dim()

    def dims_of_equal_size(self, without: Iterable[InputDim]) -> list[list[InputDim]]:
        """Dimensions that are not in `without`, those of one size together."""
        dims_of: dict[int, list[InputDim]] = defaultdict(list)
        for dim in self._all_dims():
            if dim not in without:
                dims_of[self._size(dim)].append(dim)
        return list(dims_of.values())

    def change_together_or_alone(self, dims: Sequence[InputDim]) -> dict[InputDim, int]:
        """New sizes for as many of these dimensions as the network accepts; all of them have one size."""
        for size in other_sizes_of(self._size(dims[0])):
            together = dict.fromkeys(dims, size)
            if self._accepts(together):
                return together
        accepted: dict[InputDim, int] = {}
        for dim in dims if len(dims) > 1 else ():
            accepted |= self.change_together_or_alone([dim])
        return accepted

    def traces_of(self, sizes: Sizes) -> list[Trace]:
        """The trace where all sizes are new, or those that were accepted before where that fails."""
        if not sizes:
            return []
        if self._accepts(sizes):
            return [self._accepted[tuple(sorted(sizes.items()))]]
        return list(self._accepted.values())

    def traces_of_other_numbers(self) -> list[Trace]:
        """The trace with other numbers among the arguments: as many as the network accepts."""
        for kinds in ((int, float), (float,), (int,)):
            arguments = use_other_numbers(self._arguments, *kinds)
            attempt = None if arguments is None else self._try(arguments)
            if attempt is not None and attempt.error is None:
                return [attempt.trace]
        return []

    def covers(self, sizes: Sizes) -> bool:
        """Whether what has only one size can be the channels of each input."""
        for place, value in enumerate(self._inputs):
            fixed = [dim for other, dim in self._all_dims() if other == place and (place, dim) not in sizes]
            if len(fixed) > 1 or (fixed and not value.is_floating_point()):
                return False
        return True


def resize_inputs(inputs: tuple[Tensor, ...], sizes: Sizes) -> tuple[Tensor, ...]:
    """Inputs of other sizes, with the values of these ones over and over again."""
    resized = list(inputs)
    for (place, dim), size in sizes.items():
        value = resized[place]
        places = torch.arange(size, device=value.device) % value.shape[dim]
        resized[place] = value.index_select(dim, places)
    return tuple(resized)
