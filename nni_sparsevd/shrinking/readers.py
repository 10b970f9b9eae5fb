"""What each reader takes from each channel: nothing, a constant that its bias can absorb, or something that varies."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from ..graph import TRANSPOSED, ChannelGraph, ChannelIds, Flags, Product, Reader, RememberingNorm
from .constant_rules import at_every_place, at_reader, pads_zeros, used_taps


@dataclass(frozen=True)
class Reading:
    """One reader as a matrix of outputs by channels, whatever its kernel and its groups."""

    name: str
    """The module that reads."""
    inputs: ChannelIds  # shape: (channels,): the class of each
    outputs: ChannelIds  # shape: (outputs,): the class of each
    used: NDArray[np.bool_]  # shape: (outputs, channels): any weight that is not zero
    constant: NDArray[np.float64]  # shape: (channels,): NaN where it depends on the input
    reader: Reader | None = None
    weight: Tensor | None = None
    """None, both, where both factors are computed, so that no bias can take up anything."""
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

    def needed(self, removed: Flags) -> ChannelIds:
        """Classes of the channels that are `stuck`."""
        return self.inputs[self.stuck(removed)]

    def folded(self, removed: Flags) -> Tensor:
        """What the removed channels added to each output, shape (outputs,), float64."""
        assert self.weight is not None
        constant = np.where(removed[self.inputs] & ~self.varying(), self.constant, 0.0)
        groups = self.inputs.size // self.weight.shape[1]
        carried = torch.from_numpy(constant).view(groups, -1)
        columns = carried.any(0)  # of the weight: the same place in each group
        if not columns.any():
            return torch.zeros(self.outputs.size, dtype=torch.float64)
        taps = (
            self.weight[:, columns].double().flatten(2) if self.weight.dim() > 2 else self.weight[:, columns].double()
        )
        total = taps.sum(2) if taps.dim() > 2 else taps
        return torch.einsum("goi,gi->go", total.view(groups, -1, total.shape[1]), carried[:, columns]).flatten()


def readings(graph: ChannelGraph, states: dict[str, Tensor], values: dict[Node, Any]) -> list[Reading]:
    """Every reader of the network with these parameter and buffer values; `values` are its `constants`."""
    result = []
    shared = [states[reader.weight].data_ptr() for reader in graph.readers if reader.weight]
    for reader in graph.readers:
        node: Any = reader.node
        carried = at_reader(node, values[node.args[0]])
        constant = torch.where((carried == carried[:1]).all(0), carried[0], torch.nan)
        weight = values[node.args[1]].expand(node.args[1].meta["val"].shape)
        weight = weight.transpose(0, 1) if node.target in TRANSPOSED else weight
        alone = reader.weight is not None and shared.count(states[reader.weight].data_ptr()) == 1
        padded = weight.dim() > 2 and pads_zeros(node)
        used = _spread(used_taps(weight), reader.inputs.size)
        read = Reading(reader.module, reader.inputs, reader.outputs, used, constant.numpy(), reader, weight, padded)
        result.append(replace(read, alone=alone))
    result = [replace(reading, foldable=_foldable(reading, result)) for reading in result]
    never = graph.num_channels - 1
    result += [_product(product, values, never) for product in graph.products]
    return result + [_statistics(norm, values, never) for norm in graph.remembering_norms]


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
    varies = reader.weight is None and reading.weight is not None and bool(reading.weight.isnan().any())
    return np.zeros(reading.constant.size, bool) if varies or not same else np.logical_and.reduce(same)


def _spread(used: Tensor, inputs: int) -> NDArray[np.bool_]:
    """The matrix of a grouped weight, shape (outputs, inputs of a group), over all `inputs`."""
    groups = inputs // used.shape[1]
    return (torch.block_diag(*used.byte().chunk(groups)) > 0 if groups > 1 else used).numpy()


def arriving(norm: RememberingNorm, values: dict[Node, Any]) -> Tensor:
    """The constant that each channel brings to a layer norm, NaN where it depends on the input, shape (channels,)."""
    x = values[norm.node.args[0]]  # type: ignore[index]
    carried = at_every_place(x)
    return carried.expand(norm.channels.size)


def _statistics(norm: RememberingNorm, values: dict[Node, Any], never: int) -> Reading:
    """A layer norm that remembers constants needs every channel that is none, as long as it is there."""
    live = arriving(norm, values).isnan().numpy()
    return Reading(norm.module, norm.channels, np.array([never]), live[None], np.full(live.size, np.nan))


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
    return Reading(node.meta["module"], product.inputs, outputs, used, np.full(size, np.nan))
