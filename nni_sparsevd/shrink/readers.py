"""What each reader takes from each channel: nothing, a constant that its bias can absorb, or something that varies."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..graph import TRANSPOSED, Atoms, ChannelGraph, Reader
from .constants import at_reader, constants, pads_zeros


@dataclass(frozen=True)
class Reading:
    """One reader as a matrix of outputs by channels, whatever its kernel and its groups."""

    reader: Reader
    outputs: Atoms  # shape: (outputs,): the class of each
    used: NDArray[np.bool_]  # shape: (outputs, channels): any weight that is not zero
    total: NDArray[np.float64]  # shape: (outputs, channels): what a constant 1 in that channel adds
    constant: NDArray[np.float64]  # shape: (channels,): NaN where it depends on the input
    padded: bool
    """Zeros around the input: a constant other than 0 is none at the border."""
    foldable: NDArray[np.bool_]  # shape: (channels,): the bias can stand for the constant, whatever it is
    alone: bool
    """No other reader has this weight, under any name."""

    def varying(self) -> NDArray[np.bool_]:
        """Channels that no bias can stand for, shape (channels,)."""
        return np.isnan(self.constant) | self.at_border() | self.homeless()

    def at_border(self) -> NDArray[np.bool_]:
        """Channels that carry a constant, but one that varies at the zero-padded border, shape (channels,)."""
        return ~np.isnan(self.constant) & (self.constant != 0) if self.padded else np.zeros(self.constant.size, bool)

    def homeless(self) -> NDArray[np.bool_]:
        """Channels that carry a constant which no bias can stand for, shape (channels,)."""
        stuck: NDArray[np.bool_] = ~np.isnan(self.constant) & (self.constant != 0) & ~self.foldable
        return stuck

    def stuck(self, removed: Atoms) -> NDArray[np.bool_]:
        """Channels that an output which stays takes something from that no bias can stand for, shape (channels,)."""
        taken: NDArray[np.bool_] = self.used[~np.isin(self.outputs, removed)].any(0) & self.varying()
        return taken

    def needed(self, removed: Atoms) -> Atoms:
        """Classes of the channels that are `stuck`."""
        return np.unique(self.reader.inputs[self.stuck(removed)])

    def folded(self, removed: Atoms) -> Tensor:
        """What the removed channels added to each output, shape (outputs,), float64."""
        gone = np.isin(self.reader.inputs, removed) & ~self.varying()
        return torch.from_numpy(self.total[:, gone] @ self.constant[gone])


def readings(graph: ChannelGraph, states: dict[str, Tensor]) -> list[Reading]:
    """Every reader of the network with these float64 parameter and buffer values."""
    values = constants(graph.trace, states)
    result = []
    shared = [states[reader.weight].data_ptr() for reader in graph.readers]
    for reader in graph.readers:
        node = reader.node
        carried = at_reader(node, values[node.args[0]])  # type: ignore[index]
        constant = torch.where((carried == carried[:1]).all(0), carried[0], torch.nan)
        result.append(
            Reading(
                reader,
                graph.axes[reader.weight, 1 - reader.input_dim],
                *_matrices(reader, states[reader.weight]),
                constant.numpy(),
                pads_zeros(node) if states[reader.weight].dim() > 2 else False,
                np.zeros(constant.numel(), bool),
                shared.count(states[reader.weight].data_ptr()) == 1,
            )
        )
    return [replace(reading, foldable=_foldable(reading, result)) for reading in result]


def _foldable(reading: Reading, all_of_them: list[Reading]) -> NDArray[np.bool_]:
    """A bias that several operators add can take up only what is the same for all of them."""
    bias = reading.reader.bias
    sharing = [other for other in all_of_them if bias is not None and other.reader.bias == bias]
    nodes = {other.reader.node for other in sharing}
    given = [node.args[2] for node in nodes if len(node.args) > 2 and node.args[2] is not None]
    users = set().union(*(argument.users for argument in given))  # type: ignore[union-attr]
    alike = users <= nodes and all(other.reader.weight == reading.reader.weight for other in sharing)
    same = [other.constant == reading.constant for other in sharing if alike]
    return np.logical_and.reduce(same) if same else np.zeros(reading.constant.size, bool)


def _matrices(reader: Reader, weight: Tensor) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Used and summed taps of a weight, spread over all input channels where it is grouped."""
    rows = weight.transpose(0, 1) if reader.node.target in TRANSPOSED else weight
    taps = rows.unsqueeze(2).flatten(2)  # a linear layer is a kernel of one tap
    used, total = (taps != 0).any(2), taps.sum(2)
    groups = reader.inputs.size // used.shape[1]
    if groups > 1:
        used = torch.block_diag(*used.double().chunk(groups)) > 0
        total = torch.block_diag(*total.chunk(groups))
    return used.numpy(), total.numpy()
