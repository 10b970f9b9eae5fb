"""What each reader takes from each channel: nothing, a constant that its bias can absorb, or something that varies."""

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..graph import (
    ChannelGraph,
    ChannelIds,
    Flags,
    Node,
    Product,
    Reader,
    RememberingNorm,
    bias_of,
    constant_at_every_place,
    constant_at_reader,
    pads_zeros,
    rows_of_weight,
    used_taps,
)


@dataclass(frozen=True)
class Reading:
    """One reader as a matrix of outputs by channels, whatever its kernel and its groups."""

    name: str
    """The module that reads."""
    inputs: ChannelIds  # shape: (channels,)
    """The channel at each index of the input."""
    outputs: ChannelIds  # shape: (outputs,)
    """The channel that each output is."""
    used: NDArray[np.bool_]  # shape: (outputs, channels)
    """Whether any weight between the two is not zero."""
    constant: NDArray[np.float64]  # shape: (channels,)
    """What each channel carries, NaN where that depends on the input."""
    reader: Reader | None = None
    """None where both factors are computed: no bias can absorb a constant then."""
    weight: Tensor | None = None
    """The value of the reader's weight, outputs first; None where `reader` is."""
    padded: bool = False
    """Whether zeros are put around the input: a constant other than 0 is none at the border."""
    foldable: NDArray[np.bool_] | None = None  # shape: (channels,)
    """Where the bias can absorb the constant, whatever its value; None where both factors are computed."""
    alone: bool = False
    """Whether no other reader has this weight, under any name."""

    def varies_at_border(self) -> NDArray[np.bool_]:
        """Channels whose constant becomes 0 at a zero-padded border, shape (channels,)."""
        if not self.padded:
            return np.zeros(self.constant.size, bool)
        varies: NDArray[np.bool_] = ~np.isnan(self.constant) & (self.constant != 0)
        return varies

    def has_no_bias(self) -> NDArray[np.bool_]:
        """Channels that carry a constant which no bias can absorb, shape (channels,)."""
        constant: NDArray[np.bool_] = ~np.isnan(self.constant) & (self.constant != 0)
        return constant if self.foldable is None else constant & ~self.foldable

    @cached_property
    def cannot_fold(self) -> NDArray[np.bool_]:
        """Channels that a bias cannot stand for, for any of the three reasons, shape (channels,)."""
        return np.isnan(self.constant) | self.varies_at_border() | self.has_no_bias()

    def is_read(self, removed: Flags) -> NDArray[np.bool_]:
        """Channels from which any kept output takes something, shape (channels,)."""
        removed_outputs = removed[self.outputs]
        rows = self.used[~removed_outputs] if removed_outputs.any() else self.used
        read: NDArray[np.bool_] = np.logical_or.reduce(rows, axis=0)
        return read

    def is_needed(self, removed: Flags) -> NDArray[np.bool_]:
        """Channels from which a kept output takes something that no bias can stand for, shape (channels,)."""
        return self.is_read(removed) & self.cannot_fold

    def folded_constants(self, removed: Flags) -> Tensor:
        """What the removed channels added to each output, shape (outputs,), float64."""
        assert self.weight is not None
        constant = np.where(removed[self.inputs] & ~self.cannot_fold, self.constant, 0.0)
        groups = self.inputs.size // self.weight.shape[1]
        carried = torch.from_numpy(constant).view(groups, -1)
        # Only these columns are converted to float64: the whole weight of a large layer would cost seconds.
        columns = carried.any(0)  # of the weight: the same place in each group of a grouped convolution
        if not columns.any():
            return torch.zeros(self.outputs.size, dtype=torch.float64)
        total = self.weight[:, columns].double()
        if total.dim() > 2:
            total = total.flatten(2).sum(2)  # a constant is the same under all taps of a kernel
        by_group = total.view(groups, -1, total.shape[1])
        return torch.einsum("goi,gi->go", by_group, carried[:, columns]).flatten()


def find_readings(graph: ChannelGraph, states: dict[str, Tensor], values: dict[Node, Any]) -> list[Reading]:
    """Every reader of the network with these parameters and buffers; `values` are those of `find_constants`."""
    shared = Counter(states[reader.weight].data_ptr() for reader in graph.readers if reader.weight)
    readings = []
    with_bias: dict[str | None, list[Reading]] = defaultdict(list)
    for reader in graph.readers:
        alone = reader.weight is not None and shared[states[reader.weight].data_ptr()] == 1
        readings.append(_read_with_weight(reader, values, alone))
        with_bias[reader.bias].append(readings[-1])
    readings = [replace(reading, foldable=_foldable(reading, with_bias)) for reading in readings]
    never = graph.num_channels - 1  # the channel that is never removed: it reads what the network itself needs
    products = [_read_product(product, values, never) for product in graph.products]
    norms = [_read_norm(norm, values, never) for norm in graph.remembering_norms]
    return readings + products + norms


def find_arriving_constants(norm: RememberingNorm, values: dict[Node, Any]) -> Tensor:
    """The constant that each channel brings to a norm, NaN where it depends on the input, shape (channels,)."""
    x = values[norm.input].movedim(norm.input_dim, -1)
    return constant_at_every_place(x).expand(norm.channels.size)


def _read_with_weight(reader: Reader, values: dict[Node, Any], alone: bool) -> Reading:
    node: Any = reader.node
    # A channel that carries different constants at different places is no constant to its reader.
    carried = constant_at_reader(node, values[node.args[0]])
    constant = torch.where((carried == carried[:1]).all(0), carried[0], torch.nan)
    weight = values[node.args[1]].expand(node.args[1].meta["val"].shape)
    weight = rows_of_weight(node, weight)
    return Reading(
        name=reader.module,
        inputs=reader.inputs,
        outputs=reader.outputs,
        used=_spread_groups(used_taps(weight), reader.inputs.size),
        constant=constant.numpy(),
        reader=reader,
        weight=weight,
        padded=weight.dim() > 2 and pads_zeros(node),
        alone=alone,
    )


def _foldable(reading: Reading, with_bias: dict[str | None, list[Reading]]) -> NDArray[np.bool_]:
    """Channels whose constant this reader's bias may absorb, shape (channels,); `with_bias` has all readers of each."""
    # The bias is changed once, so the change has to be right for everything that the bias is added to:
    #
    # 1. There must be a bias, or a place for one.
    # 2. Only readers may use the bias.  Another operator that uses it would see the change, too.
    # 3. Readers that share the bias must share the weight: what a channel adds to an output is weight times constant.
    # 4. A weight that runs several times, on different inputs, must receive the same constant each time.
    # 5. The weight must not depend on the input, as where it is computed from it: what it adds is no constant then.
    nowhere = np.zeros(reading.constant.size, bool)
    reader = reading.reader
    assert reader is not None
    if reader.bias is None:  # 1
        return nowhere
    sharing = with_bias[reader.bias]
    readers = [other.reader for other in sharing if other.reader is not None]
    if not _bias_users(readers) <= {other.node for other in readers}:  # 2
        return nowhere
    if any(other.weight != reader.weight for other in readers):  # 3
        return nowhere
    if reader.weight is None and reading.weight is not None and bool(reading.weight.isnan().any()):  # 5
        return nowhere
    same: NDArray[np.bool_] = np.logical_and.reduce([other.constant == reading.constant for other in sharing])  # 4
    return same


def _bias_users(readers: list[Reader]) -> set[Node]:
    """All operators that use the biases which these readers are called with."""
    users: set[Node] = set()
    for reader in readers:
        bias = bias_of(reader.node)
        if bias is not None:
            users.update(bias.users)
    return users


def _spread_groups(used: Tensor, inputs: int) -> NDArray[np.bool_]:
    """The matrix of a grouped weight, shape (outputs, inputs of a group), over all `inputs`."""
    groups = inputs // used.shape[1]
    if groups > 1:  # each group of outputs reads its own inputs only: blocks on the diagonal
        used = torch.block_diag(*used.byte().chunk(groups)) > 0
    spread: NDArray[np.bool_] = used.numpy()
    return spread


def _read_norm(norm: RememberingNorm, values: dict[Node, Any], never: int) -> Reading:
    """A norm that remembers constants needs every channel that carries none, as long as the norm is there."""
    live = find_arriving_constants(norm, values).isnan().numpy()
    no_constant = np.full(live.size, np.nan)
    return Reading(norm.module, norm.channels, np.array([never]), live[None], no_constant)


def _read_product(product: Product, values: dict[Node, Any], never: int) -> Reading:
    """A contraction of two computed tensors needs a channel unless one of the factors is zero there, head by head."""
    zero = _zero_channels(product, values)
    if product.heads:
        head, outputs = next(iter(product.heads.items()))
        by_head = zero.movedim(head + 1, 0)  # counted from the end, where `zero` has one dimension less
        unused = by_head.reshape(by_head.shape[0], -1, by_head.shape[-1]).all(1)
    else:
        outputs = np.array([never])
        unused = zero.reshape(-1, zero.shape[-1]).all(0)
    size = product.inputs.size
    used = (~unused).expand(outputs.size, size).numpy()
    return Reading(product.node.meta["module"], product.inputs, outputs, used, np.full(size, np.nan))


def _zero_channels(product: Product, values: dict[Node, Any]) -> Tensor:
    """Where either factor of a contraction is zero, shape (*batch dimensions, channels), broadcastable."""
    node: Any = product.node
    rank = node.meta["val"].dim()
    zero = torch.zeros((), dtype=torch.bool)
    # Zero times anything finite is zero, so a channel counts only where neither factor is zero at every other place.
    for argument, dim in zip(node.args[:2], product.dims, strict=True):
        factor = values[argument].movedim(dim, -1)
        factor = factor.reshape(*(1,) * (rank - factor.dim()), *factor.shape)
        zero = zero | (factor == 0).all(-2)
    return zero
