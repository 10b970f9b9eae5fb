"""Fourier transforms, and the complex numbers that they make."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..equations import Equations, TrackedTensor
from ..nodes import Node
from .abstract_values import keep_zeros, make_uniform
from .rows import Operator, operator_name, shape_of

aten = torch.ops.aten


# How channels pass.


def fourier_channels(
    equations: Equations, node: Node, x: TrackedTensor, dims: Sequence[int], *settings: Any
) -> TrackedTensor:
    """Axes that are transformed have no channels, the others keep theirs."""
    ids = list(x.ids)
    for dim in dims:
        equations.pin(ids[dim], f"{operator_name(node)} over the channels")
        ids[dim] = None
    return TrackedTensor(shape_of(node), tuple(ids))


def parts_channels(equations: Equations, node: Node, x: TrackedTensor) -> TrackedTensor:
    """A complex number becomes two real ones along a new last axis."""
    return TrackedTensor(shape_of(node), (*x.ids, None))


def pairs_channels(equations: Equations, node: Node, x: TrackedTensor) -> TrackedTensor:
    """Two real numbers along the last axis become a complex one."""
    equations.pin(x.ids[-1], "the parts of a complex number")
    return TrackedTensor(shape_of(node), x.ids[:-1])


# How constants pass.  Complex numbers are not followed: an abstract value is real, 0 or live.


def fourier_constant(node: Node, x: Tensor, dims: Sequence[int], *settings: Any) -> Tensor:
    """The transform of zeros is zero."""
    return keep_zeros(make_uniform(x, [dim % x.dim() for dim in dims]))


def parts_constant(node: Node, x: Tensor) -> Tensor:
    """Both parts of zero are zero."""
    return keep_zeros(x.unsqueeze(-1))


def pairs_constant(node: Node, x: Tensor) -> Tensor:
    """Two zeros are zero."""
    return keep_zeros(make_uniform(x, [x.dim() - 1])).squeeze(-1)


OPERATORS = (
    Operator((aten._fft_r2c.default, aten._fft_c2r.default, aten._fft_c2c.default), fourier_channels, fourier_constant),
    Operator((aten.view_as_real.default,), parts_channels, parts_constant),
    Operator((aten.view_as_complex.default,), pairs_channels, pairs_constant),
)
