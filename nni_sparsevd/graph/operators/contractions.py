"""Operators that contract channels with a weight: convolutions, linear maps, and the columns of a table."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload

from ..equations import Equations, RecordedSize, TrackedTensor, repeat_ids
from ..links import IndexIds
from ..nodes import Node
from .abstract_values import LIVE, expand_along, full_shape, make_uniform
from .rows import NotCovered, Operator, argument_of, operator_name, shape_of

aten = torch.ops.aten
CONVOLUTIONS = {
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
}  # fmt: skip
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
READERS = CONVOLUTIONS | TRANSPOSED | {aten.linear.default}
"""Operators that read channels with a weight, their second argument, and write new channels."""
DEFORMED = "torchvision::deform_conv2d"
"""One more, which PyTorch does not have: a convolution that looks at places given by another tensor."""
SAME_POSITIONS = "the groups of a grouped convolution lose the same positions"
"""What its inputs are linked by, and its outputs."""
Searched = dict[tuple[object, ...], tuple[Tensor, Tensor]]
"""Where a weight lies in memory, and how -> the weight, and which inputs each output reads."""
_searched: ContextVar[Searched | None] = ContextVar("searched", default=None)


def is_reader(node: Node) -> bool:
    """Whether an operator reads channels with a weight."""
    return node.target in READERS or _is_deformed(node)


def _is_deformed(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.name == DEFORMED


def bias_of(reader: Node) -> Any:
    """The bias that a reader adds, None where it has none."""
    return argument_of(reader, "bias")


def channel_dim(reader: Node) -> int:
    """The dimension of a reader's input and output that the channels are in."""
    if reader.target == aten.linear.default:
        return -1
    return 1 if _has_batch(reader) else 0


def _has_batch(convolution: Node) -> bool:
    """Whether the input of a convolution has a batch dimension; without one its channels are along dimension 0."""
    return len(full_shape(convolution)) == len(full_shape(convolution, argument=1))


def rows_of_weight(reader: Node, weight: Tensor) -> Tensor:
    """The weight of a reader with its outputs first, shape (outputs, inputs of a group, *kernel)."""
    if reader.target not in TRANSPOSED:
        return weight
    # Stored as (inputs, outputs of a group, *kernel): the groups lie one below the other along the inputs.
    by_group: Tensor = weight.unflatten(0, (argument_of(reader, "groups"), -1)).transpose(1, 2)
    return by_group.flatten(0, 1)


# How channels pass.


def convolution_channels(
    equations: Equations,
    node: Node,
    x: TrackedTensor,
    weight: TrackedTensor,
    bias: TrackedTensor | None = None,
    *settings: Any,
) -> TrackedTensor:
    """A convolution reads along the second axis of its weight and writes along the first."""
    groups = argument_of(node, "groups")
    inputs = x.ids[channel_dim(node)]
    for ids in weight.ids[2:]:
        equations.pin(ids, "kernel size")
    if groups == 1:
        equations.equate(inputs, weight.ids[1], f"{operator_name(node)} reads something that is no channel")
    else:
        _grouped_channels(equations, node, inputs, weight, groups)
    if bias is not None:
        equations.equate(weight.ids[0], bias.ids[0], "bias")
    return _written_channels(equations, node, x, weight.ids[0])


def _written_channels(equations: Equations, node: Node, x: TrackedTensor, outputs: IndexIds | None) -> TrackedTensor:
    """The result of a convolution: the axis before the channels stays, places are made of their neighbors.

    A convolution that sees one place at a time leaves them alone, as one over tokens does with the tokens' channels.
    """
    dim = channel_dim(node)
    places = x.ids[dim + 1 :]
    if not _sees_one_place(node):
        pin_places(equations, node, x, dim + 1)
        places = (None,) * len(places)
    return TrackedTensor(shape_of(node), (*x.ids[:dim], outputs, *places))


def _sees_one_place(convolution: Node) -> bool:
    """Whether what a convolution makes at a place is made of what is at that place alone."""
    kernel = full_shape(convolution, argument=1)[2:]
    if pads_zeros(convolution) or any(size > 1 for size in kernel):
        return False
    stride = argument_of(convolution, "stride")
    return all(step == 1 for step in (stride if isinstance(stride, list | tuple) else [stride]))


def pin_places(equations: Equations, node: Node, x: TrackedTensor, first: int) -> None:
    """Pin what an operator takes for places, from dimension `first` on: where they are channels, it mixes them."""
    for ids in x.ids[first:]:
        equations.pin(ids, f"{operator_name(node)} over the channels")


def _grouped_channels(
    equations: Equations, node: Node, inputs: IndexIds | None, weight: TrackedTensor, groups: int
) -> None:
    """What a convolution with several groups says of its channels."""
    # 1. Depthwise, with one input in each group: an output lives with its input.
    # 2. Otherwise the inputs form a block (group, position in the group), and so do the outputs.  All groups must stay
    #    of one size.  So either a whole group leaves, its inputs together with its outputs, or the same position of
    #    every group leaves.  That is a link: groups and positions are the owners, inputs (and outputs) their members.
    # 3. The second axis of the weight is the positions of the inputs themselves.
    # 4. The number of groups is given by the code, so it is recorded as a size.  The groups of a depthwise layer are
    #    an exception: a module of torch follows its weight.
    outputs, positions = weight.ids[:2]
    if inputs is None or outputs is None or groups == inputs.size:
        equations.pin(positions, "input axis of a depthwise convolution")
        repeated = repeat_ids(inputs, weight.shape[0] // groups)
        equations.equate(repeated, outputs, "depthwise convolution of something that is no channel")
        _record_depthwise_groups(equations, node, inputs)
        return
    group = equations.new_ids(groups)
    equations.link_block(inputs.reshape(groups, -1), [group, positions], SAME_POSITIONS)
    output_positions = equations.new_ids(outputs.size // groups)
    equations.link_block(outputs.reshape(groups, -1), [group, output_positions], SAME_POSITIONS)
    equations.sizes.append(RecordedSize(node, node.meta["groups_origin"], group))


def _record_depthwise_groups(equations: Equations, node: Node, inputs: IndexIds | None) -> None:
    if not node.meta["groups_follow_weight"]:
        equations.sizes.append(RecordedSize(node, node.meta["groups_origin"], inputs))


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
    *settings: Any,
) -> TrackedTensor:
    """A transposed convolution reads along the first axis of its weight and writes along the second."""
    groups = argument_of(node, "groups")
    inputs = x.ids[channel_dim(node)]
    for ids in weight.ids[2:]:
        equations.pin(ids, "kernel size")
    outputs = weight.ids[1]
    equations.equate(inputs, weight.ids[0], "conv_transpose reads something that is no channel")
    if groups > 1:
        outputs = _grouped_transposed_outputs(equations, node, inputs, weight, groups)
    if bias is not None:
        equations.equate(outputs, bias.ids[0], "bias")
    return _written_channels(equations, node, x, outputs)


def _grouped_transposed_outputs(
    equations: Equations, node: Node, inputs: IndexIds | None, weight: TrackedTensor, groups: int
) -> IndexIds | None:
    """The output channels of a transposed convolution with several groups; see `_grouped_channels`.

    The second axis of the weight is the positions of the outputs in their group.
    """
    positions = weight.ids[1]
    if inputs is None or positions is None:
        equations.pin(positions, "grouped transposed convolution of something that is no channel")
        return None
    if groups == inputs.size:
        equations.pin(positions, "output axis of a depthwise convolution")
        _record_depthwise_groups(equations, node, inputs)
        return repeat_ids(inputs, weight.shape[1])
    # Of the inputs, the weight has one axis for groups and positions together: only their block tells the two apart.
    group = equations.new_ids(groups)
    input_positions = equations.new_ids(inputs.size // groups)
    equations.link_block(inputs.reshape(groups, -1), [group, input_positions], SAME_POSITIONS)
    outputs = equations.new_ids(groups * weight.shape[1])
    equations.link_block(outputs.reshape(groups, -1), [group, positions], SAME_POSITIONS)
    equations.sizes.append(RecordedSize(node, node.meta["groups_origin"], group))
    return outputs


def deformed_convolution_channels(
    equations: Equations,
    node: Node,
    x: TrackedTensor,
    weight: TrackedTensor,
    offset: TrackedTensor,
    mask: TrackedTensor,
    bias: TrackedTensor,
    *settings: Any,
) -> TrackedTensor:
    """As a convolution; where it looks, and how much of it counts, is the same for all channels."""
    if (argument_of(node, "groups"), argument_of(node, "offset_groups")) != (1, 1):
        raise NotCovered("deform_conv2d with several groups, of channels or of offsets")
    for ids in (x.ids[0], *offset.ids, *mask.ids):
        equations.pin(ids, "places that deform_conv2d looks at")
    return convolution_channels(equations, node, x, weight, bias)


def embedding_channels(
    equations: Equations, node: Node, weight: TrackedTensor, indices: TrackedTensor, *settings: Any
) -> TrackedTensor:
    """A table of words writes its columns; its rows are words, not channels."""
    equations.pin(weight.ids[0], "vocabulary")
    return TrackedTensor(shape_of(node), (*indices.ids, weight.ids[1]))


# What readers see of constants.


def pads_zeros(node: Node) -> bool:
    """Whether a convolution sees zeros around its input, so that a constant is not constant at the border."""
    if node.target in TRANSPOSED or _is_deformed(node):
        return True  # windows at the border overlap fewer inputs, padding or not; deformed ones may look outside
    padding = argument_of(node, "padding")
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
    if not _has_batch(node):
        full, x = (1, *full), x.unsqueeze(0)
    return make_uniform(x, range(2, x.dim())).expand(-1, full[1], *(1,) * (x.dim() - 2)).flatten(1)


def constant_at_every_place(x: Tensor) -> Tensor:
    """What each channel along the last dimension carries, shape (channels,) or (1,): live where it varies."""
    return make_uniform(x, range(x.dim() - 1)).reshape(-1)


def used_taps(rows: Tensor) -> Tensor:
    """Which inputs each output reads with any tap that is not known to be 0, shape (outputs, inputs)."""
    searched = _searched.get()
    key = (rows.data_ptr(), rows.shape, rows.stride(), rows.dtype)
    if searched is not None and key in searched:
        return searched[key][1]
    if rows.dim() == 2 or rows[0, 0].numel() == 1:
        used = _is_not_zero(rows.reshape(rows.shape[:2]))
    else:
        # A matrix product is many times faster here than a reduction of short rows.  A sum that is NaN is none that is
        # known to be 0.
        used = _is_not_zero(rows.flatten(2).abs() @ torch.ones(rows[0, 0].numel(), dtype=rows.dtype))
    if searched is not None:
        searched[key] = rows, used  # with the weight itself, so that no other one takes its place in memory
    return used


def _is_not_zero(matrix: Tensor) -> Tensor:
    """Where a matrix is anything but 0; NaN is."""
    # NumPy compares nine times as fast as PyTorch does on a CPU, but it has no bfloat16.
    return matrix != 0 if matrix.dtype == torch.bfloat16 else torch.from_numpy(matrix.numpy() != 0)


@contextmanager
def search_weights_once() -> Iterator[None]:
    """Let `used_taps` remember what it has found for a while, in which no weight changes."""
    token = _searched.set({})
    try:
        yield
    finally:
        _searched.reset(token)


def _live_and_constant(x: Tensor, varies: bool) -> tuple[Tensor, Tensor]:
    """Which channels vary for a reader, and the constants that the others carry.

    With `varies`, the reader sees zeros around its input, and a constant other than 0 varies at that border.
    """
    live = x.isnan() | ((x != 0) if varies else torch.zeros_like(x, dtype=torch.bool))
    return live, x.masked_fill(live, 0.0)


# How constants pass.


def convolution_constant(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None, *settings: Any) -> Tensor:
    """What a convolution, transposed or not, makes of constants."""
    # 1. A channel counts as constant where it is the same at every place; at a zero-padded border only zero is.
    # 2. An output is live if any of its taps reads a live channel; a weight of zero reads nothing.
    # 3. Every other output is the bias plus, for each input, the sum of its taps times its constant: away from the
    #    border all taps see the same value, so stride and dilation do not matter.
    rows = rows_of_weight(node, expand_along(node, weight, *range(weight.dim()), argument=1))
    x = constant_at_reader(node, x)
    live, constant = _live_and_constant(x, pads_zeros(node))
    groups = argument_of(node, "groups")
    by_group = x.shape[0], groups, -1
    used = used_taps(rows).view(groups, -1, rows.shape[1])
    # In NumPy, which is several times as fast here.
    reads_live = torch.from_numpy((used.numpy() & live.view(by_group).unsqueeze(2).numpy()).any(3)).flatten(1)
    result = torch.zeros(reads_live.shape, dtype=torch.float64)
    if constant.any():
        taps = rows.double().flatten(2).sum(2).view(groups, -1, rows.shape[1])
        result = torch.einsum("goi,bgi->bgo", taps, constant.view(by_group)).flatten(1)
    result = (result if bias is None else result + bias).masked_fill(reads_live, LIVE)
    result = result.view(*result.shape, *(1,) * (rows.dim() - 2))
    return result if _has_batch(node) else result.squeeze(0)


def deformed_convolution_constant(
    node: Node, x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *settings: Any
) -> Tensor:
    """As a convolution that pads zeros."""
    return convolution_constant(node, x, weight, bias)


def linear_constant(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What a linear map makes of constants, place by place."""
    # 1. Places (tokens) may differ: x keeps all its leading dimensions, at size 1 where they are alike.
    # 2. The product is taken over the columns of the weight that some place gives a constant to; the others add
    #    nothing, and the weight may be large.
    # 3. An output is live at a place if it reads a channel that is live there.  Places have few patterns of live
    #    channels, mostly one, so the weight is searched once for each pattern, not for each place.
    if x.dim() < 1 or weight.dim() != 2:
        raise NotCovered("linear with a vector as weight")
    if x.dim() == 1:  # one place
        return linear_constant(node, x.unsqueeze(0), weight, bias).squeeze(0)
    weight = expand_along(node, weight, 0, 1, argument=1)
    x = x.expand(*x.shape[:-1], weight.shape[1])
    live, constant = _live_and_constant(x, varies=False)
    columns = constant.flatten(0, -2).any(0)
    value = F.linear(constant[..., columns], weight[:, columns].double(), bias)
    patterns, pattern_of_place = torch.unique(live.flatten(0, -2), dim=0, return_inverse=True)
    reads_live = patterns.to(weight.dtype) @ weight.abs().T != 0  # faster than to search the columns; NaN is not 0
    return value.masked_fill(reads_live[pattern_of_place].view(value.shape), LIVE)


def embedding_constant(node: Node, weight: Tensor, indices: Tensor, *settings: Any) -> Tensor:
    """A column is constant where all words share one value."""
    row = make_uniform(weight, [0])
    return row.reshape(*(1,) * indices.dim(), row.shape[1])


OPERATORS = (
    Operator(tuple(CONVOLUTIONS), convolution_channels, convolution_constant),
    Operator(tuple(TRANSPOSED), transposed_convolution_channels, convolution_constant),
    Operator((DEFORMED,), deformed_convolution_channels, deformed_convolution_constant),
    Operator((aten.linear.default,), linear_channels, linear_constant),
    Operator((aten.embedding.default,), embedding_channels, embedding_constant),
)
