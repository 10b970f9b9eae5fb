"""What each reader takes from each channel: nothing, a constant that its bias can absorb, or something that varies."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from ..graph import TRANSPOSED, Atoms, ChannelGraph, Flags, Product, Reader
from .constants import at_reader, constants, pads_zeros


@dataclass(frozen=True)
class Reading:
    """One reader as a matrix of outputs by channels, whatever its kernel and its groups."""

    name: str
    """The module that reads."""
    inputs: Atoms  # shape: (channels,): the class of each
    outputs: Atoms  # shape: (outputs,): the class of each
    used: NDArray[np.bool_]  # shape: (outputs, channels): any weight that is not zero
    total: NDArray[np.float64]  # shape: (outputs, channels): what a constant 1 in that channel adds
    constant: NDArray[np.float64]  # shape: (channels,): NaN where it depends on the input
    reader: Reader | None = None
    """None where both factors are computed, so that no bias can take up anything."""
    padded: bool = False
    """Zeros around the input: a constant other than 0 is none at the border."""
    foldable: NDArray[np.bool_] | None = None  # shape: (channels,): the bias can stand for the constant, whatever it is
    alone: bool = False
    """No other reader has this weight, under any name."""

    def varying(self) -> NDArray[np.bool_]:
        """Channels that no bias can stand for, shape (channels,)."""
        return np.isnan(self.constant) | self.at_border() | self.homeless()

    def at_border(self) -> NDArray[np.bool_]:
        """Channels that carry a constant, but one that varies at the zero-padded border, shape (channels,)."""
        return ~np.isnan(self.constant) & (self.constant != 0) if self.padded else np.zeros(self.constant.size, bool)

    def homeless(self) -> NDArray[np.bool_]:
        """Channels that carry a constant which no bias can stand for, shape (channels,)."""
        stuck: NDArray[np.bool_] = ~np.isnan(self.constant) & (self.constant != 0)
        return stuck if self.foldable is None else stuck & ~self.foldable

    def taken(self, removed: Flags) -> NDArray[np.bool_]:
        """Channels from which an output that stays takes something, shape (channels,)."""
        gone = removed[self.outputs]
        rows = self.used[~gone] if gone.any() else self.used
        taken: NDArray[np.bool_] = np.logical_or.reduce(rows, axis=0)
        return taken

    def stuck(self, removed: Flags) -> NDArray[np.bool_]:
        """Channels that an output which stays takes something from that no bias can stand for, shape (channels,)."""
        return self.taken(removed) & self.varying()

    def needed(self, removed: Flags) -> Atoms:
        """Classes of the channels that are `stuck`."""
        return self.inputs[self.stuck(removed)]

    def folded(self, removed: Flags) -> Tensor:
        """What the removed channels added to each output, shape (outputs,), float64."""
        gone = removed[self.inputs] & ~self.varying()
        return torch.from_numpy(self.total[:, gone] @ self.constant[gone])


def readings(graph: ChannelGraph, states: dict[str, Tensor]) -> list[Reading]:
    """Every reader of the network with these float64 parameter and buffer values."""
    values = constants(graph.trace, states)
    result = []
    shared = [states[reader.weight].data_ptr() for reader in graph.readers if reader.weight]
    for reader in graph.readers:
        node: Any = reader.node
        carried = at_reader(node, values[node.args[0]])
        constant = torch.where((carried == carried[:1]).all(0), carried[0], torch.nan)
        weight = values[node.args[1]].expand(node.args[1].meta["val"].shape)
        alone = reader.weight is not None and shared.count(states[reader.weight].data_ptr()) == 1
        padded = weight.dim() > 2 and pads_zeros(node)
        matrices = _matrices(reader, weight)
        result.append(
            Reading(
                reader.module, reader.inputs, reader.outputs, *matrices, constant.numpy(), reader, padded, None, alone
            )
        )
    result = [replace(reading, foldable=_foldable(reading, result)) for reading in result]
    return result + [_product(product, values, graph.count - 1) for product in graph.products]


def _foldable(reading: Reading, all_of_them: list[Reading]) -> NDArray[np.bool_]:
    """A bias that several operators add can take up only what is the same for all of them."""
    reader = reading.reader
    assert reader is not None
    sharing = [other for other in all_of_them if reader.bias is not None and other.reader.bias == reader.bias]  # type: ignore[union-attr]
    nodes = {other.reader.node for other in sharing}  # type: ignore[union-attr]
    given: list[Any] = [node.args[2] for node in nodes if len(node.args) > 2 and node.args[2] is not None]
    users = set().union(*(argument.users for argument in given))
    alike = users <= nodes and all(other.reader.weight == reader.weight for other in sharing)  # type: ignore[union-attr]
    same = [other.constant == reading.constant for other in sharing if alike]
    steady = ~np.isnan(reading.total).any(0)  # a weight that depends on the input adds no constant
    return np.logical_and.reduce(same) & steady if same else np.zeros(reading.constant.size, bool)


def _matrices(reader: Reader, weight: Tensor) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Used and summed taps of a weight, spread over all input channels where it is grouped."""
    rows = weight.transpose(0, 1) if reader.node.target in TRANSPOSED else weight
    if rows.dim() == 2:
        return (rows != 0).numpy(), rows.numpy()
    taps = rows.flatten(2)
    ones = torch.ones(taps.shape[2], dtype=taps.dtype)  # products are many times faster here than sums of short rows
    used, total = (taps != 0).double() @ ones > 0, taps @ ones
    groups = reader.inputs.size // used.shape[1]
    if groups > 1:
        used = torch.block_diag(*used.double().chunk(groups)) > 0
        total = torch.block_diag(*total.chunk(groups))
    return used.numpy(), total.numpy()


def _product(product: Product, values: dict[Node, Any], never: int) -> Reading:
    """A contraction of two computed tensors needs a channel unless one of the factors is zero there, head by head."""
    node: Any = product.node
    rank = node.meta["val"].dim()
    zero = torch.zeros((), dtype=torch.bool)
    for argument, dim in zip(node.args[:2], product.dims, strict=True):
        moved = values[argument].movedim(dim, -1)
        moved = moved.reshape(*(1,) * (rank - moved.dim()), *moved.shape)
        zero = zero | (moved == 0).all(-2)  # shape: (batch dimensions, channels)
    head = next(iter(product.heads), None)
    size = product.inputs.size
    outputs = np.array([never]) if head is None else product.heads[head]
    zero = zero.reshape(*(1,) * (rank - 1 - zero.dim()), *zero.shape).movedim(0 if head is None else head + 1, 0)
    zero = (
        zero.reshape(zero.shape[0], -1, zero.shape[-1]).all(1)
        if head is not None
        else zero.reshape(-1, zero.shape[-1]).all(0)
    )
    used = (~zero).expand(outputs.size, size).numpy()
    nothing = np.zeros(used.shape)
    return Reading(node.meta["module"], product.inputs, outputs, used, nothing, np.full(size, np.nan))
