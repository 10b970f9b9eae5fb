"""Operators that normalize: with running statistics, over places, or over channels."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..equations import Equations, RecordedSize, TrackedTensor
from ..nodes import Node
from .abstract_values import compress, expand_along, full_shape, is_known, live_like, make_uniform, product
from .contractions import pin_places
from .rows import NoRule, NotCovered, Operator, argument_of, operator_name

aten = torch.ops.aten
WEIGHT_NORM = aten._weight_norm_interface.default
"""A weight from directions and lengths, its first two arguments."""
State = TrackedTensor | None


# How channels pass.


def batch_norm_channels(
    equations: Equations,
    node: Node,
    x: TrackedTensor,
    weight: State,
    bias: State,
    running_mean: State,
    running_var: State,
    own_statistics: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> TrackedTensor:
    """Each channel is normalized by itself, along dimension 1."""
    name = operator_name(node)
    states = [state for state in (weight, bias, running_mean, running_var) if state is not None]
    for state in states:
        equations.equate(x.ids[1], state.ids[0], f"{name} of something that is no channel")
    if own_statistics:  # of the tensor itself, as where a weight is standardized
        reason = f"{name} over this axis: removing one changes the statistics of the others"
        for ids in (x.ids[0], *x.ids[2:]):
            equations.pin(ids, reason)
    if not states:
        _record_attribute(equations, node, "num_features", x)
    return x


def _record_attribute(equations: Equations, node: Node, attribute: str, x: TrackedTensor) -> None:
    """Have the number of channels set in one of PyTorch's norms: nothing is cut that it could be read from."""
    if node.meta["module"] in equations.layers_of_torch:
        equations.sizes.append(RecordedSize(node, (node.meta["module"], attribute, None), x.ids[1]))


def layer_norm_channels(
    equations: Equations, node: Node, x: TrackedTensor, normalized_shape: Sequence[int], *settings: Any
) -> TrackedTensor:
    """The statistics are taken over the channels, so these stay, unless a norm that remembers them takes its place."""
    first = len(x.shape) - len(normalized_shape)
    states = [setting for setting in settings if isinstance(setting, TrackedTensor)]  # an RMS norm has no bias
    return _mix(equations, node, x, range(first, len(x.shape)), states)


def group_norm_channels(
    equations: Equations,
    node: Node,
    x: TrackedTensor,
    num_groups: int,
    weight: State = None,
    bias: State = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> TrackedTensor:
    """With one channel in each group only places are mixed; otherwise the statistics of a group hold its channels."""
    pin_places(equations, node, x, 2)
    if num_groups != x.shape[1]:
        return _mix(equations, node, x, (1,), (weight, bias))
    for state in (weight, bias):
        if state is not None:
            equations.equate(x.ids[1], state.ids[0], "group norm")
    equations.record_size(node, 0, num_groups, x.ids[1])
    if weight is None and bias is None:
        _record_attribute(equations, node, "num_channels", x)
    return x


def _mix(
    equations: Equations, node: Node, x: TrackedTensor, dims: Sequence[int], states: Iterable[State]
) -> TrackedTensor:
    """The statistics are taken over these axes; scale and shift belong to the channels along them."""
    reason = f"{operator_name(node)} over the channels: removing one changes the statistics of the others"
    remembers = len(dims) == 1 and equations.can_remember(node, x.ids[dims[0]])
    for dim in dims:
        equations.mix(node, x.ids[dim], reason)
    for state in states:
        for place, ids in enumerate(() if state is None else state.ids):
            if remembers:
                equations.equate(x.ids[dims[place]], ids, reason)
            else:
                equations.pin(ids, reason)
    return x


def weight_norm_channels(
    equations: Equations, node: Node, direction: TrackedTensor, length: TrackedTensor, dim: int = 0
) -> list[TrackedTensor]:
    """A weight in two parts: each channel along `dim` is a direction, divided by its own norm, times a length."""
    equations.equate(direction.ids[dim], length.ids[dim], "weight norm")
    for other_dim, ids in enumerate(direction.ids):
        if other_dim != dim:
            equations.pin(ids, "weight norm over this axis: removing a part of a direction changes its norm")
    for other_dim, ids in enumerate(length.ids):
        if other_dim != dim:
            equations.pin(ids, "broadcast axis")
    return [direction, length]


# How constants pass.


def batch_norm_constant(
    node: Node,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Any,
    running_var: Any,
    own_statistics: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """(x - mean) weight / sqrt(var + eps) + bias.  A weight of zero leaves the bias, whatever x is."""
    rank = x.dim()
    if own_statistics:
        if is_known([x]):
            return _standardized(node, x, weight, bias, eps)
        return _centered(x, [0, *range(2, rank)], weight, bias)
    scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    normalized = product(x - _along_channels(running_mean, rank), _along_channels(scale, rank))
    return normalized + (0 if bias is None else _along_channels(bias, rank))


def _standardized(node: Node, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """A known tensor normalized by its own statistics: a weight that is standardized at every forward pass."""
    x = expand_along(node, x, *range(x.dim()))
    size = x.shape[1]  # computed states may be stored with size 1
    weight, bias = (None if state is None else state.expand(size) for state in (weight, bias))
    return compress(F.batch_norm(x, None, None, weight, bias, True, 0.0, eps))


def instance_norm_constant(node: Node, x: Tensor, weight: Tensor | None, bias: Tensor | None, *settings: Any) -> Tensor:
    """A channel that is constant over the places has the mean of itself, so it becomes the bias."""
    if not argument_of(node, "use_input_stats"):
        return batch_norm_constant(node, x, weight, bias, *settings)
    return _centered(x, range(2, x.dim()), weight, bias)


def _centered(x: Tensor, dims: Sequence[int], weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """A channel that is the same along `dims` has the mean of itself there, so it becomes the bias."""
    x = make_uniform(x, dims)
    centered = torch.where(x.isnan(), x, 0.0)
    scaled = centered if weight is None else product(centered, _along_channels(weight, x.dim()))
    return scaled if bias is None else scaled + _along_channels(bias, x.dim())


def _along_channels(state: Tensor, rank: int) -> Tensor:
    """A state of shape (channels,) along dimension 1 of a tensor of this rank."""
    return state.view(-1, *(1,) * (rank - 2))


def layer_norm_constant(
    node: Node,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | None = None,
    cudnn_enable: bool = True,
) -> Tensor:
    """The statistics depend on the input, but a channel whose weight is zero carries its bias."""
    if weight is None:
        raise NotCovered("normalization without a weight")
    return product(live_like(x), weight) + (0 if bias is None else bias)


def rms_norm_constant(
    node: Node, x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """As a layer norm."""
    return layer_norm_constant(node, x, normalized_shape, weight)


def group_norm_constant(
    node: Node,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """As a layer norm, with weight and bias along dimension 1; each channel by itself where it is a group."""
    if num_groups == full_shape(node)[1]:
        return _centered(x, range(2, x.dim()), weight, bias)
    weight, bias = (None if state is None else _along_channels(state, x.dim()) for state in (weight, bias))
    return layer_norm_constant(node, x, (), weight, bias)


OPERATORS = (
    Operator((aten.batch_norm.default,), batch_norm_channels, batch_norm_constant),
    Operator((aten.instance_norm.default,), batch_norm_channels, instance_norm_constant),
    Operator((aten.layer_norm.default,), layer_norm_channels, layer_norm_constant),
    Operator((aten.rms_norm.default,), layer_norm_channels, rms_norm_constant),
    Operator((aten.group_norm.default,), group_norm_channels, group_norm_constant),
    Operator(
        (WEIGHT_NORM,),
        weight_norm_channels,
        NoRule("it runs on parameters, which are known: it is computed as it stands"),
    ),
)
