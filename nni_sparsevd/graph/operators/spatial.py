"""Operators that pool, resize or pad places, and rearrange them into channels: which axes keep their channels."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..equations import Equations, TrackedTensor, repeat_ids
from ..links import IndexIds
from ..nodes import Node
from .abstract_values import LIVE, compress, expand_along, full_shape, keep_zeros, make_uniform, with_live_places
from .contractions import is_padded, pin_places
from .reshapes import split_axis
from .rows import NoRule, NotCovered, Operator, argument_of, operator_name, shape_of, tracked_results

aten = torch.ops.aten
ZEROS = 0
"""The number by which `grid_sample` knows a padding of zeros."""


# How channels pass.


def _count_places(node: Node) -> int:
    """How many dimensions the places have, the last one, two or three: the operator's name says so."""
    return next(int(digit) for digit in operator_name(node) if digit.isdigit())


def spatial_channels(
    equations: Equations, node: Node, x: TrackedTensor, *settings: Any, **options: Any
) -> TrackedTensor | list[TrackedTensor]:
    """Batch and channels stay; places are made of their neighbors, even where there are as many of them as before."""
    first = len(x.ids) - _count_places(node)
    pin_places(equations, node, x, first)
    return tracked_results(node, (*x.ids[:first], *(None,) * (len(x.ids) - first)))


def pad_channels(
    equations: Equations, node: Node, x: TrackedTensor, pad: Sequence[int], *settings: Any
) -> TrackedTensor:
    """Channels with constant ones before or after them, which stay: the code says how many are added.

    Axes that are cropped, or padded with themselves, have no channels, not even where they keep their size.
    """
    kept = list(x.ids)
    for dim in _padded_dims(len(x.shape), pad):
        ids = kept[dim]
        before, after = _widths(len(x.shape), pad, dim)
        if ids is not None and _pads_a_number(node) and before >= 0 and after >= 0:
            added = equations.new_ids(before + after)
            equations.pin(added, "added by padding")
            kept[dim] = np.concatenate([added[:before], ids, added[before:]])
        else:
            equations.pin(ids, "padded axis")
            kept[dim] = None
    return TrackedTensor(shape_of(node), tuple(kept))


def _pads_a_number(node: Node) -> bool:
    """Whether what is padded is one number; `constant_pad_nd` has no other mode."""
    return argument_of(node, "mode") in ("constant", None)


def _padded_dims(rank: int, pad: Sequence[int]) -> list[int]:
    """The dimensions of a tensor that `pad` changes: it has two widths for each, beginning with the last dimension."""
    return sorted({rank - 1 - place // 2 for place, width in enumerate(pad) if width})


def _widths(rank: int, pad: Sequence[int], dim: int) -> tuple[int, int]:
    """What is added before and after along a dimension."""
    place = 2 * (rank - 1 - dim)
    return pad[place], pad[place + 1]


def sampled_channels(
    equations: Equations, node: Node, x: TrackedTensor, grid: TrackedTensor, *settings: Any
) -> TrackedTensor:
    """Channels are sampled one by one, at places that are the same for all of them."""
    for ids in (*x.ids[2:], *grid.ids[1:]):
        equations.pin(ids, "sampled at places")
    batch = equations.equate(x.ids[0], grid.ids[0], "sampled at places")
    return TrackedTensor(shape_of(node), (batch, x.ids[1], *(None,) * (len(x.shape) - 2)))


def region_channels(
    equations: Equations, node: Node, x: TrackedTensor, boxes: TrackedTensor, *settings: Any
) -> TrackedTensor | list[TrackedTensor]:
    """Each channel is pooled by itself in each box; a box takes the place of an image."""
    for ids in (x.ids[0], *x.ids[2:], *boxes.ids):
        equations.pin(ids, "pooled in boxes")
    return tracked_results(node, (None, x.ids[1], None, None))


def unpool_channels(
    equations: Equations, node: Node, x: TrackedTensor, places: TrackedTensor, *settings: Any
) -> TrackedTensor | list[TrackedTensor]:
    """Each channel is put back to the places where its values were found."""
    ids = [equations.equate(a, b, "unpooled to places") for a, b in zip(x.ids, places.ids, strict=True)]
    return spatial_channels(equations, node, TrackedTensor(x.shape, tuple(ids)))


def shuffle_channels(equations: Equations, node: Node, x: TrackedTensor, groups: int) -> TrackedTensor:
    """Channels are laid out as (group, position) and read as (position, group): a position leaves in every group."""
    ids = x.ids[1]
    if ids is not None:
        block = ids.reshape(groups, -1)
        positions = equations.new_ids(block.shape[1])
        equations.link_block(block, [None, positions], "the groups of a channel shuffle lose the same positions")
        ids = block.T.ravel()
    return TrackedTensor(x.shape, (x.ids[0], ids, *x.ids[2:]))


def pixel_shuffle_channels(equations: Equations, node: Node, x: TrackedTensor, factor: int) -> TrackedTensor:
    """Blocks of factor^2 channels become one channel each: all of a block leave with it, none alone."""
    pin_places(equations, node, x, len(x.ids) - 2)
    shape = shape_of(node)
    outputs: IndexIds | None = None
    if (inputs := x.ids[-3]) is not None:
        outputs = equations.new_ids(shape[-3])
        blocks = inputs.reshape(shape[-3], factor**2)
        equations.link_block(blocks, [outputs, None], "a pixel shuffle loses whole blocks")
    return TrackedTensor(shape, (*x.ids[:-3], outputs, None, None))


def pixel_unshuffle_channels(equations: Equations, node: Node, x: TrackedTensor, factor: int) -> TrackedTensor:
    """Each channel becomes factor^2 channels that live and die together."""
    pin_places(equations, node, x, len(x.ids) - 2)
    return TrackedTensor(shape_of(node), (*x.ids[:-3], repeat_ids(x.ids[-3], factor**2), None, None))


def im2col_channels(
    equations: Equations, node: Node, x: TrackedTensor, kernel: Sequence[int], dilation: Any, padding: Any, stride: Any
) -> TrackedTensor:
    """Each channel becomes one row for each place of the kernel."""
    pin_places(equations, node, x, len(x.ids) - 2)
    return TrackedTensor(shape_of(node), (*x.ids[:-3], repeat_ids(x.ids[-3], prod(kernel)), None))


def col2im_channels(
    equations: Equations,
    node: Node,
    x: TrackedTensor,
    output_size: Any,
    kernel: Sequence[int],
    dilation: Any,
    padding: Any,
    stride: Any,
) -> TrackedTensor:
    """Rows are channels times places of the kernel; the places are summed up."""
    pin_places(equations, node, x, len(x.ids) - 1)
    shape = shape_of(node)
    channels: IndexIds | None = None
    if (rows := x.ids[-2]) is not None:
        channels, places = split_axis(equations, rows, (shape[-3], prod(kernel)))
        equations.pin(places, "col2im sums over it")
    return TrackedTensor(shape, (*x.ids[:-2], channels, None, None))


def unfold_channels(
    equations: Equations, node: Node, x: TrackedTensor, dim: int, size: int, step: int
) -> TrackedTensor:
    """Windows along one axis, with a new last axis for the places in a window."""
    if not x.shape:
        raise NotCovered("unfold of a number")
    equations.pin(x.ids[dim], "unfold of the channels")
    kept = list(x.ids)
    kept[dim] = None
    return TrackedTensor(shape_of(node), (*kept, None))


# How constants pass.


def _make_places_uniform(node: Node, x: Tensor) -> Tensor:
    """Size 1 along the places."""
    return make_uniform(x, range(x.dim() - _count_places(node), x.dim()))


def resized_constant(node: Node, x: Tensor, *settings: Any, **options: Any) -> Tensor | list[Tensor]:
    """A window or an interpolation over equal values gives that value; the place of the largest is unknown."""
    return with_live_places(node, _make_places_uniform(node, x))


def average_pool_constant(node: Node, x: Tensor, *settings: Any) -> Tensor:
    """An average over equal values is that value, unless zeros of the padding count or the divisor is another."""
    x = _make_places_uniform(node, x)
    counts_zeros = is_padded(argument_of(node, "padding")) and argument_of(node, "count_include_pad")
    return keep_zeros(x) if counts_zeros or argument_of(node, "divisor_override") is not None else x


def sampled_constant(
    node: Node, x: Tensor, grid: Tensor, interpolation: int, padding: int, align_corners: bool
) -> Tensor:
    """A mean of equal values is that value; with a padding of zeros only zero is."""
    x = make_uniform(x, range(2, x.dim()))
    return keep_zeros(x) if padding == ZEROS else x


def region_constant(node: Node, x: Tensor, boxes: Tensor, *settings: Any) -> Tensor | list[Tensor]:
    """Zero stays zero; a part of a box that lies outside of the image is zero, whatever the image."""
    return with_live_places(node, keep_zeros(make_uniform(x, (0, 2, 3))))


def unpool_constant(node: Node, x: Tensor, places: Tensor, *settings: Any) -> Tensor:
    """Zero stays zero among the zeros in between."""
    spatial = range(1 if x.dim() == 3 else 2, x.dim())
    return keep_zeros(make_uniform(x, spatial))


def shuffle_constant(node: Node, x: Tensor, groups: int) -> Tensor:
    """The same order at full size."""
    x = expand_along(node, x, 1)
    return compress(x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2))


def pad_constant(node: Node, x: Tensor, pad: Sequence[int], *settings: Any) -> Tensor:
    """What equals the padding stays what it is; beside values that vary along an axis, the padding stands."""
    # 1. Where values are uniform along a padded axis, as they are along places, it stays uniform: that the border
    #    differs from the middle is nothing that a layer after it could make use of.
    # 2. Where they vary, as they do along channels, the padding is known channel by channel.
    dims = _padded_dims(x.dim(), pad)
    if not _pads_a_number(node):
        return make_uniform(x, dims)
    padding = argument_of(node, "value") or 0.0
    varying = [dim for dim in dims if x.shape[dim] > 1]
    if len(varying) < len(dims):
        x = torch.where(x == padding, x, LIVE)
    for dim in varying:
        later = [0, 0] * (x.dim() - 1 - dim)
        x = F.pad(x, [*later, *_widths(x.dim(), pad, dim)], value=padding)
    return compress(x)


def pixel_shuffle_constant(node: Node, x: Tensor, factor: int) -> Tensor:
    """A block of channels that share a constant becomes a channel of that constant."""
    x = expand_along(node, make_uniform(x, (x.dim() - 2, x.dim() - 1)), -3)
    blocks = x.reshape(*x.shape[:-3], x.shape[-3] // factor**2, factor**2)
    return compress(make_uniform(blocks, [blocks.dim() - 1]).unsqueeze(-1))


def pixel_unshuffle_constant(node: Node, x: Tensor, factor: int) -> Tensor:
    """A constant channel becomes factor^2 channels of that constant."""
    x = expand_along(node, make_uniform(x, (x.dim() - 2, x.dim() - 1)), -3)
    return compress(x.repeat_interleave(factor**2, -3))


def im2col_constant(node: Node, x: Tensor, kernel: Sequence[int], dilation: Any, padding: Any, stride: Any) -> Tensor:
    """A constant channel becomes rows of that constant, unless zeros are padded around it."""
    x = expand_along(node, make_uniform(x, (x.dim() - 2, x.dim() - 1)), -3).squeeze(-1)
    if is_padded(padding):
        x = keep_zeros(x)
    return compress(x.repeat_interleave(prod(kernel), -2))


def col2im_constant(
    node: Node, x: Tensor, output_size: Any, kernel: Sequence[int], dilation: Any, padding: Any, stride: Any
) -> Tensor:
    """A place sums as many windows as overlap there, which differs from place to place: only zeros stay the same."""
    rows = expand_along(node, make_uniform(x, [x.dim() - 1]), -2)
    channels = rows.reshape(*rows.shape[:-2], -1, prod(kernel))
    return compress(keep_zeros(make_uniform(channels, [channels.dim() - 1])).unsqueeze(-1))


def unfold_constant(node: Node, x: Tensor, dim: int, size: int, step: int) -> Tensor:
    """A window over equal values has that value everywhere."""
    return make_uniform(x, [dim % len(full_shape(node))]).unsqueeze(-1)


BOXES = NoRule("it chooses boxes by their values, or a channel for each part of a box by its place")

OPERATORS = (
    Operator(
        (aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.adaptive_avg_pool1d.default,
         aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default, aten.upsample_nearest1d.vec,
         aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec, aten.upsample_linear1d.vec,
         aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec, aten.upsample_trilinear3d.vec,
         aten._upsample_nearest_exact1d.vec, aten._upsample_nearest_exact2d.vec, aten._upsample_nearest_exact3d.vec,
         aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec, aten.adaptive_max_pool2d.default,
         aten.adaptive_max_pool3d.default, aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default),
        spatial_channels, resized_constant,
    ),
    Operator(
        (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default),
        spatial_channels, average_pool_constant,
    ),
    Operator((aten.max_unpool2d.default, aten.max_unpool3d.default), unpool_channels, unpool_constant),
    Operator((aten.grid_sampler_2d.default, aten.grid_sampler_3d.default), sampled_channels, sampled_constant),
    Operator(("torchvision::roi_align", "torchvision::roi_pool"), region_channels, region_constant),
    Operator(("torchvision::nms", "torchvision::ps_roi_align", "torchvision::ps_roi_pool"), BOXES, BOXES),
    Operator((aten.channel_shuffle.default, aten.native_channel_shuffle.default), shuffle_channels, shuffle_constant),
    Operator((aten.pad.default, aten.constant_pad_nd.default), pad_channels, pad_constant),
    Operator((aten.pixel_shuffle.default,), pixel_shuffle_channels, pixel_shuffle_constant),
    Operator((aten.pixel_unshuffle.default,), pixel_unshuffle_channels, pixel_unshuffle_constant),
    Operator((aten.im2col.default,), im2col_channels, im2col_constant),
    Operator((aten.col2im.default,), col2im_channels, col2im_constant),
    Operator((aten.unfold.default,), unfold_channels, unfold_constant),
)  # fmt: skip
