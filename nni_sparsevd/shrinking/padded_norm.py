"""A norm of any kind that remembers the channels which it lost: it sees all, and returns those that are left."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


class PaddedNorm(nn.Module):
    """What all norms of this kind share; `pad_norm_` switches the class of a norm to one derived from this and its own.

    The removed channels carried constants.  They are put back beside those that arrive, each at its place, and the norm
    computes what it always did.  So it is exact for group norms, RMS norms, global response norms, and whatever else
    takes one tensor and returns one of the same shape.  Its parameters keep their size.
    """

    plain_class: type[nn.Module]
    remembered_dim: int
    removed_constants: Tensor
    padding_order: Tensor
    """Where each channel is found among those that arrive, followed by the removed ones, shape (channels,)."""
    kept_channels: Tensor
    """The channels that are left, ascending, shape (channels left,)."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled by the name of the plain class: the twin is made at run time, and no module has it."""
        return _make_empty, (self.plain_class,), vars(self)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x`, of which some channels along `remembered_dim` are missing; it keeps its shape."""
        dim = self.remembered_dim
        shape = [1] * x.dim()
        shape[dim] = -1
        full_shape = list(x.shape)
        full_shape[dim] = len(self.removed_constants)
        constants = self.removed_constants.to(x.dtype).view(shape).expand(full_shape)
        full = torch.cat([x, constants], dim).index_select(dim, self.padding_order)
        normalized: Tensor = super().forward(full)
        return normalized.index_select(dim, self.kept_channels)


def pad_norm_(norm: nn.Module, dim: int, channels: int, removed: Sequence[int], constants: Tensor) -> nn.Module:
    """Let a norm remember channels that it loses, in place.

    Args:
        norm: The norm; its parameters stay as they are.
        dim: The dimension of its input that holds the channels: -1 where they are last.
        channels: How many channels there were.
        removed: Those that are removed, ascending.
        constants: What they carried, shape (removed channels,).

    Returns:
        `norm`.
    """
    is_removed = torch.zeros(channels, dtype=torch.bool)
    is_removed[list(removed)] = True
    kept = (~is_removed).nonzero().flatten()
    arrival = torch.cat([kept, is_removed.nonzero().flatten()])
    like = next((value for value in norm.parameters()), constants)
    plain: Any = type(norm)
    norm.__class__ = make_padded_twin(plain)  # type: ignore[assignment]
    norm.remembered_dim = dim  # type: ignore[assignment]
    norm.register_buffer("removed_constants", constants.to(like.device, like.dtype))
    norm.register_buffer("padding_order", arrival.argsort().to(like.device))
    norm.register_buffer("kept_channels", kept.to(like.device))
    return norm


@cache
def make_padded_twin(plain: type[nn.Module]) -> type[PaddedNorm]:
    """The class of norms that remember, one for each class of norms."""
    return type(plain.__name__, (PaddedNorm, plain), {"plain_class": plain, "__module__": __name__})


def _make_empty(plain: Any) -> PaddedNorm:
    """A norm without attributes, for pickle to fill."""
    twin = make_padded_twin(plain)
    return twin.__new__(twin)
