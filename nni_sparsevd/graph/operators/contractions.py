"""Operators that contract channels with a weight: convolutions, linear maps, and the columns of a table."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from ..equations import Equations, RecordedSize, TrackedTensor, repeat_ids
from ..links import IndexIds
from .abstract_values import LIVE, expand_along, full_shape, make_uniform
from .rows import NotCovered, Operator, operator_name, shape_of

aten = torch.ops.aten
CONVOLUTIONS = {
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
}  # fmt: skip
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
READERS = CONVOLUTIONS | TRANSPOSED | {aten.linear.default}
"""Operators that read channels with a weight, their second argument, and write new channels."""


def channel_dim(reader: Node) -> int:
    """The dimension of a reader's input and output that the channels are in."""
    return -1 if reader.target == aten.linear.default else 1


# How channels pass.


def convolution_channels(
    equations: Equations,
    node: Node,
    x: TrackedTensor,
    weight: TrackedTensor,
    bias: TrackedTensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> TrackedTensor:
    """A convolution reads along the second axis of its weight and writes along the first."""
    _refuse_without_batch(node, x, weight)
    for ids in weight.ids[2:]:
        equations.pin(ids, "kernel size")
    if groups == 1:
        equations.equate(x.ids[1], weight.ids[1], f"{operator_name(node)} reads something that is no channel")
    else:
        _grouped_channels(equations, node, x.ids[1], weight, groups)
    if bias is not None:
        equations.equate(weight.ids[0], bias.ids[0], "bias")
    return TrackedTensor(shape_of(node), (x.ids[0], weight.ids[0], *(None,) * (len(x.shape) - 2)))


def _refuse_without_batch(node: Node, x: TrackedTensor, weight: TrackedTensor) -> None:
    """An image without a batch dimension has its channels along dimension 0, not 1."""
    if len(x.shape) != len(weight.shape):
        raise NotCovered(f"{operator_name(node)} of an input without a batch dimension")


def _grouped_channels(
    equations: Equations, node: Node, inputs: IndexIds | None, weight: TrackedTensor, groups: int
) -> None:
    """What a convolution with several groups says of its channels."""
    # 1. Depthwise, with one input in each group: an output lives with its input.
    # 2. Otherwise the inputs form a block (group, position in the group), and so do the outputs.  All groups must stay
    #    of one size.  So either a whole group leaves, its inputs together with its outputs, or the same position of
    #    every group leaves.  That is a link: groups and positions are the owners, inputs (and outputs) their members.
    # 3. The second axis of the weight is the positions of the inputs themselves.
    # 4. The number of groups is an attribute of the module; it is recorded as a size, so that it follows.
    outputs, positions = weight.ids[:2]
    if inputs is None or outputs is None or groups == inputs.size:
        equations.pin(positions, "input axis of a depthwise convolution")
        repeated = repeat_ids(inputs, weight.shape[0] // groups)
        equations.equate(repeated, outputs, "depthwise convolution of something that is no channel")
        return
    group = equations.new_ids(groups)
    equations.link_block(inputs.reshape(groups, -1), [group, positions])
    output_positions = equations.new_ids(outputs.size // groups)
    equations.link_block(outputs.reshape(groups, -1), [group, output_positions])
    equations.sizes.append(RecordedSize(node, (node.meta["module"], "groups", None), group))


def linear_channels(
    equations: Equations, node: Node, x: TrackedTensor, weight: TrackedTensor, bias: TrackedTensor | None = None
) -> TrackedTensor:
    """A linear map reads along the second axis of its weight and writes along the first."""
    if len(weight.shape) != 2:
        raise NotCovered("linear with a vector as weight")
    equations.equate(x.ids[-1], weight.ids[1], "linear reads something that is no channel")
    if bias is not None:
        equations.equate(weight.ids[0], bias.ids[-1], "bias")
    return TrackedTensor(shape_of(node), (*x.ids[:-1], weight.ids[0]))


def transposed_convolution_channels(
    equations: Equations,
    node: Node,
    x: TrackedTensor,
    weight: TrackedTensor,
    bias: TrackedTensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> TrackedTensor:
    """A transposed convolution reads along the first axis of its weight and writes along the second."""
    _refuse_without_batch(node, x, weight)
    for ids in weight.ids[2:]:
        equations.pin(ids, "kernel size")
    outputs = weight.ids[1]
    if groups > 1:
        for ids in (x.ids[1], *weight.ids[:2], None if bias is None else bias.ids[0]):
            equations.pin(ids, "grouped transposed convolution")
        outputs = None
    equations.equate(x.ids[1], weight.ids[0], "conv_transpose reads something that is no channel")
    if bias is not None and groups == 1:
        equations.equate(outputs, bias.ids[0], "bias")
    return TrackedTensor(shape_of(node), (x.ids[0], outputs, *(None,) * (len(x.shape) - 2)))


def embedding_channels(
    equations: Equations, node: Node, weight: TrackedTensor, indices: TrackedTensor, *settings: Any
) -> TrackedTensor:
    """A table of words writes its columns; its rows are words, not channels."""
    equations.pin(weight.ids[0], "vocabulary")
    return TrackedTensor(shape_of(node), (*indices.ids, weight.ids[1]))


# What readers see of constants.


def pads_zeros(node: Node) -> bool:
    """Whether a convolution sees zeros around its input, so that a constant is not constant at the border."""
    if node.target in TRANSPOSED:
        return True  # windows at the border overlap fewer inputs, padding or not
    padding: Any = node.args[4] if len(node.args) > 4 else 0
    if isinstance(padding, str):
        kernel = full_shape(node, argument=1)[2:]
        return padding != "valid" and any(size > 1 for size in kernel)
    return is_padded(padding)


def is_padded(padding: int | Sequence[int]) -> bool:
    """Whether a padding, one number for all axes or one for each, is anything but zero."""
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


def constant_at_reader(node: Node, x: Tensor) -> Tensor:
    """What each input channel of the reader `node` carries, shape (batch, channels): live where it varies."""
    full = full_shape(node)
    if node.target == aten.linear.default:
        return constant_at_every_place(x).expand(full[-1])[None]
    return make_uniform(x, range(2, x.dim())).expand(-1, full[1], *(1,) * (x.dim() - 2)).flatten(1)


def constant_at_every_place(x: Tensor) -> Tensor:
    """What each channel along the last dimension carries, shape (channels,) or (1,): live where it varies."""
    return make_uniform(x, range(x.dim() - 1)).reshape(-1)


def used_taps(rows: Tensor) -> Tensor:
    """Which inputs each output reads with any tap that is not known to be 0, shape (outputs, inputs)."""
    if rows.dim() == 2 or rows[0, 0].numel() == 1:
        return rows.reshape(rows.shape[:2]) != 0
    # 1. A matrix product is many times faster here than a reduction of short rows.
    # 2. A sum that is NaN is none that is known to be 0, and NaN is larger than nothing: so the comparison is with 0.
    ones = torch.ones(rows[0, 0].numel(), dtype=rows.dtype)
    return rows.flatten(2).abs() @ ones != 0


def _live_and_constant(x: Tensor, varies: bool) -> tuple[Tensor, Tensor]:
    """Which channels vary for a reader, and the constants that the others carry.

    With `varies`, the reader sees zeros around its input, and a constant other than 0 varies at that border.
    """
    live = x.isnan() | ((x != 0) if varies else torch.zeros_like(x, dtype=torch.bool))
    return live, x.masked_fill(live, 0.0)


# How constants pass.


def convolution_constant(
    node: Node,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """What a convolution makes of constants."""
    # 1. A channel counts as constant where it is the same at every place; at a zero-padded border only zero is.
    # 2. An output is live if any of its taps reads a live channel; a weight of zero reads nothing.
    # 3. Every other output is the bias plus, for each input, the sum of its taps times its constant: away from the
    #    border all taps see the same value, so stride and dilation do not matter.
    if x.dim() != weight.dim():
        raise NotCovered("convolution of an input without a batch dimension")
    weight = expand_along(node, weight, *range(weight.dim()), argument=1)
    return _convolve_constants(node, x, weight, bias, groups)


def transposed_convolution_constant(
    node: Node,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """As a convolution, with the first two axes of the weight exchanged; only zeros are constant at its border."""
    if groups > 1:
        raise NotCovered("grouped transposed convolution")
    if x.dim() != weight.dim():
        raise NotCovered("transposed convolution of an input without a batch dimension")
    weight = expand_along(node, weight, *range(weight.dim()), argument=1)
    return _convolve_constants(node, x, weight.transpose(0, 1), bias, groups)


def _convolve_constants(node: Node, x: Tensor, rows: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """The result for a weight of shape (outputs, inputs of a group, *kernel)."""
    places = x.dim() - 2
    x = constant_at_reader(node, x)
    live, constant = _live_and_constant(x, pads_zeros(node))
    by_group = x.shape[0], groups, -1
    used = used_taps(rows).view(groups, -1, rows.shape[1])
    reads_live = (used & live.view(by_group).unsqueeze(2)).any(3).flatten(1)
    result = torch.zeros(reads_live.shape, dtype=torch.float64)
    if constant.any():
        taps = rows.double().flatten(2).sum(2).view(groups, -1, rows.shape[1])
        result = torch.einsum("goi,bgi->bgo", taps, constant.view(by_group)).flatten(1)
    result = (result if bias is None else result + bias).masked_fill(reads_live, LIVE)
    return result.view(*result.shape, *(1,) * places)


def linear_constant(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What a linear map makes of constants, place by place."""
    # 1. Places (tokens) may differ: x keeps all its leading dimensions, at size 1 where they are alike.
    # 2. The product is taken over the columns of the weight that some place gives a constant to; the others add
    #    nothing, and the weight may be large.
    # 3. An output is live at a place if it reads a channel that is live there.  Places have few patterns of live
    #    channels, mostly one, so the weight is searched once for each pattern, not for each place.
    if x.dim() < 2 or weight.dim() != 2:
        raise NotCovered("linear of a vector, or with a vector as weight")
    weight = expand_along(node, weight, 0, 1, argument=1)
    x = x.expand(*x.shape[:-1], weight.shape[1])
    live, constant = _live_and_constant(x, varies=False)
    columns = constant.flatten(0, -2).any(0)
    value = F.linear(constant[..., columns], weight[:, columns].double(), bias)
    patterns, pattern_of_place = torch.unique(live.flatten(0, -2), dim=0, return_inverse=True)
    reads_live = torch.stack([(weight[:, pattern] != 0).any(1) for pattern in patterns])
    return value.masked_fill(reads_live[pattern_of_place].view(value.shape), LIVE)


def embedding_constant(node: Node, weight: Tensor, indices: Tensor, *settings: Any) -> Tensor:
    """A column is constant where all words share one value."""
    row = make_uniform(weight, [0])
    return row.reshape(*(1,) * indices.dim(), row.shape[1])


OPERATORS = (
    Operator(tuple(CONVOLUTIONS), convolution_channels, convolution_constant),
    Operator(tuple(TRANSPOSED), transposed_convolution_channels, transposed_convolution_constant),
    Operator((aten.linear.default,), linear_channels, linear_constant),
    Operator((aten.embedding.default,), embedding_channels, embedding_constant),
)
