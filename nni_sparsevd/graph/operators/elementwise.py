"""Operators that work element by element: on one tensor, or on several that are broadcast."""

from collections.abc import Iterator
from itertools import product as combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..equations import Equations, TrackedTensor
from ..links import IndexIds
from ..nodes import Node
from .abstract_values import LIVE, expand_along, has_live, is_known, keep_zeros, live_like, product
from .rows import NoRule, NotCovered, Operator, argument_of, operator_name, shape_of

aten = torch.ops.aten
SHIFT = 1e-6
"""How far a constant is moved, relative to 1 plus its size, to see whether a jump is near."""


# How channels pass.


def elementwise_channels(equations: Equations, node: Node, *arguments: Any, **options: Any) -> TrackedTensor:
    """Each element becomes the element at its place.  Of a second tensor, as in `to.other`, only the type is used."""
    x = next(argument for argument in arguments if isinstance(argument, TrackedTensor))
    return TrackedTensor(shape_of(node), x.ids)


def broadcast_channels(equations: Equations, node: Node, *arguments: Any, **options: Any) -> TrackedTensor:
    """Several tensors, combined element by element after broadcasting."""
    tensors = [argument for argument in arguments if isinstance(argument, TrackedTensor)]
    result = tensors[0]
    for other in tensors[1:]:
        shape = np.broadcast_shapes(result.shape, other.shape)
        dims = range(-len(shape), 0)
        ids = tuple(broadcast_axis(equations, result, other, dim, operator_name(node)) for dim in dims)
        result = TrackedTensor(shape, ids)
    return TrackedTensor(shape_of(node), result.ids)


def broadcast_axis(equations: Equations, x: TrackedTensor, y: TrackedTensor, dim: int, name: str) -> IndexIds | None:
    """The ids along axis `dim`, counted from the end, of two tensors after broadcasting.

    Where both have the axis, their ids are equal.  Channels along an axis of size 1 that is stretched are pinned.
    """
    sides = [side for side in (x, y) if -dim <= len(side.shape)]
    wide = [side for side in sides if side.shape[dim] > 1]
    for side in sides:
        if side.shape[dim] == 1 and (wide or len(sides) == 1):
            equations.pin(side.ids[dim], "broadcast axis")
    chosen = wide or sides
    if len(chosen) == 1:
        return chosen[0].ids[dim]
    return equations.equate(chosen[0].ids[dim], chosen[1].ids[dim], f"{name} with something that is no channel")


def prelu_channels(equations: Equations, node: Node, x: TrackedTensor, weight: TrackedTensor) -> TrackedTensor:
    """One slope for each channel, along the one axis of the weight that is longer than 1, or one for all."""
    slopes = max(weight.shape, default=1)
    if slopes == 1:
        for ids in weight.ids:
            equations.pin(ids, "one slope for all channels")
        return x
    if len(x.shape) < 2:
        raise NotCovered("prelu of an input without a batch dimension")
    equations.equate(x.ids[1], weight.ids[weight.shape.index(slopes)], "prelu")
    return x


# How constants pass.


def same_computation(node: Node, *arguments: Any, **options: Any) -> Any:
    """The operator itself, which gives NaN for NaN, so that a dependence on the input is never lost."""
    target: Any = node.target
    return target(*arguments, **options)


def same_computation_where_known(node: Node, *arguments: Any, **options: Any) -> Tensor:
    """The operator itself, and LIVE wherever one of its arguments is live: for operators that can stop a NaN."""
    value: Tensor = same_computation(node, *arguments, **options)
    for argument in arguments:
        if isinstance(argument, Tensor) and has_live(argument):
            value = torch.where(argument.isnan(), LIVE, value)
    return value


def computation_away_from_jumps(node: Node, *arguments: Any, **options: Any) -> Tensor:
    """The operator itself, where its argument is not near a jump: for operators such as `floor`."""
    # 1. A constant is known up to rounding: the network, in its own order of operations and in float32, may come to
    #    a slightly different one.
    # 2. On the other side of a jump that difference is no longer slight.  floor(2 - 1e-9) is 1, floor(2) is 2.
    # 3. So the operator is computed for arguments moved a little to both sides, too.  Where the results differ by more
    #    than the arguments were moved, the constant counts as live.
    value = same_computation_where_known(node, *arguments, **options)
    margin = torch.zeros((), dtype=torch.float64)
    for argument in arguments:
        if isinstance(argument, Tensor) and argument.is_floating_point():
            margin = margin + 2 * SHIFT * (1 + argument.abs())
    for shifted in _shifted(arguments):
        moved = same_computation(node, *shifted, **options)
        value = torch.where((moved - value).abs() <= margin, value, LIVE)
    return value


def _shifted(arguments: tuple[Any, ...]) -> Iterator[list[Any]]:
    """The arguments with each floating-point tensor moved up or down, in every combination."""
    moving = [isinstance(argument, Tensor) and argument.is_floating_point() for argument in arguments]
    for signs in combinations((-1, 1), repeat=sum(moving)):
        remaining_signs = iter(signs)
        shifted = []
        for argument, moves in zip(arguments, moving, strict=True):
            if moves:
                argument = argument + next(remaining_signs) * SHIFT * (1 + argument.abs())
            shifted.append(argument)
        yield shifted


def pass_value(node: Node, x: Tensor, *settings: Any, **options: Any) -> Tensor:
    """The same value.  Floating-point numbers stay float64 whatever their type, others are really converted."""
    kind = node.meta["val"].dtype
    if kind.is_floating_point:
        return x.double()
    if kind.is_complex:
        return keep_zeros(x.double())
    return x.to(kind) if is_known([x]) else live_like(x)


def convert_first(node: Node, x: Tensor) -> Tensor:
    """What an operator computes with, which converts its tensor first where the code gives it an argument `dtype`."""
    return x if argument_of(node, "dtype") is None else pass_value(node, x)


def dropout_constant(node: Node, x: Tensor, p: float, train: bool) -> Tensor:
    """Dropout that is on in evaluation mode leaves 0 alone, and alpha dropout not even that."""
    if not train:
        return pass_value(node, x)
    return keep_zeros(x) if node.target != aten.alpha_dropout.default else live_like(x)


def add_constant(node: Node, left: Any, right: Any, *, alpha: float = 1) -> Tensor:
    """The sum; that of two flags says whether either is set."""
    total: Tensor = same_computation(node, left, right, alpha=alpha)
    is_of_flags = node.meta["val"].dtype == torch.bool and total.is_floating_point()
    return total.clamp(max=1) if is_of_flags else total


def multiply_constant(node: Node, left: Any, right: Any) -> Tensor:
    """Zero times anything is zero."""
    return product(_as_tensor(left), _as_tensor(right))


def _as_tensor(factor: Any) -> Tensor:
    return factor if isinstance(factor, Tensor) else torch.tensor(float(factor), dtype=torch.float64)


def divide_constant(node: Node, left: Any, right: Any, *, rounding_mode: str | None = None) -> Tensor:
    """Zero divided by anything is zero; a rounded quotient jumps."""
    if rounding_mode is not None:
        return computation_away_from_jumps(node, left, right, rounding_mode=rounding_mode)
    return multiply_constant(node, left, 1 / right)


def prelu_constant(node: Node, x: Tensor, weight: Tensor) -> Tensor:
    """Positive numbers pass, others are multiplied by the slope of their channel; a slope of zero stops these alone."""
    slope = weight
    if weight.dim() == 1 and weight.numel() > 1:
        slope = weight.view(-1, *(1,) * (x.dim() - 2))
    return torch.where((x > 0) | x.isnan(), x, product(x, slope))


def where_constant(node: Node, condition: Tensor, x: Any, other: Any) -> Tensor:
    """The choice, or where it depends on the input a constant that both sides share."""
    x, other = _as_tensor(x), _as_tensor(other)
    chosen = torch.where(condition != 0, x, other)
    if has_live(condition):
        return torch.where(condition.isnan(), torch.where(x == other, x.double(), LIVE), chosen.double())
    return chosen


def compare_constant(node: Node, left: Any, right: Any) -> Tensor:
    """A flag where nothing depends on the input, else the numbers 0 and 1, and LIVE where that is not known."""
    # Two numbers that are nearly equal may compare differently after another rounding, so their flag counts as live.
    flag: Tensor = same_computation(node, left, right)
    if is_known([left, right]):
        return flag
    left, right = _as_tensor(left), _as_tensor(right)
    is_apart = (left - right).abs() > SHIFT * (1 + left.abs())  # False for NaN
    return torch.where(is_apart, flag.double(), LIVE)


def lerp_constant(node: Node, start: Tensor, end: Tensor, weight: Any) -> Tensor:
    """Start + weight (end - start)."""
    return start + product(_as_tensor(weight), end - start)


def add_product_constant(node: Node, x: Tensor, left: Tensor, right: Tensor, *, value: float = 1) -> Tensor:
    """X + value left right."""
    return x + value * product(left, right)


def add_quotient_constant(node: Node, x: Tensor, left: Tensor, right: Tensor, *, value: float = 1) -> Tensor:
    """X + value left / right."""
    return x + value * product(left, 1 / right)


def gated_channels(equations: Equations, node: Node, x: TrackedTensor, dim: int = -1) -> TrackedTensor:
    """The two halves of an axis are multiplied, so a channel of the one leaves with its partner in the other."""
    ids = list(x.ids)
    along = ids[dim]
    if along is not None:
        first, second = np.split(along, 2)
        ids[dim] = equations.equate(first, second, "")
    return TrackedTensor(shape_of(node), tuple(ids))


def gated_constant(node: Node, x: Tensor, dim: int = -1) -> Tensor:
    """The first half times the sigmoid of the second."""
    value, gate = expand_along(node, x, dim).chunk(2, dim)
    return product(value, gate.sigmoid())


def masked_fill_constant(node: Node, x: Tensor, mask: Tensor, value: Any) -> Tensor:
    """`value` where the mask is set."""
    return where_constant(node, mask, value, x)


FLAGS = NoRule("it makes or changes flags, and a flag is no channel's constant; a flag that is known is computed")

OPERATORS = (
    Operator(
        (
            *(getattr(aten, name).default for name in (
                "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "elu",
                "selu", "celu", "leaky_relu", "mish", "softplus", "neg", "exp", "abs", "sqrt", "rsqrt", "erf", "square",
                "clamp", "clamp_min", "clamp_max", "log", "sin", "cos", "reciprocal", "log1p", "log2", "log10", "expm1",
                "exp2", "sinh", "cosh", "tan", "asin", "acos", "atan", "asinh", "atanh", "erfc", "sinc", "rrelu",
                "deg2rad", "rad2deg",
            )),
            aten.pow.Tensor_Scalar,
        ),
        elementwise_channels, same_computation,
    ),
    Operator(
        (aten.log_sigmoid.default, aten.softshrink.default, aten.logit.default, aten.nan_to_num.default,
         aten.rsub.Scalar, aten.pow.Scalar),
        elementwise_channels, same_computation_where_known,
    ),
    Operator(
        (aten.threshold.default, aten.hardshrink.default, aten.round.default, aten.floor.default, aten.sign.default,
         aten.ceil.default, aten.trunc.default, aten.frac.default, aten.remainder.Scalar, aten.fmod.Scalar),
        elementwise_channels, computation_away_from_jumps,
    ),
    Operator((aten.round.decimals,), elementwise_channels, NoRule("its steps may be as small as a rounding error")),
    Operator(
        (aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default,
         aten.lift_fresh.default,
         aten.contiguous.default, aten._to_copy.default, aten.to.dtype, aten.to.device, aten.to.dtype_layout,
         aten.to.other, aten.type_as.default, aten._conj.default, aten.conj_physical.default,
         aten.resolve_conj.default),
        elementwise_channels, pass_value,
    ),
    Operator(
        (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default),
        elementwise_channels, dropout_constant,
    ),
    Operator((aten.bitwise_not.default, aten.logical_not.default), elementwise_channels, FLAGS),
    Operator(
        (aten.sub.Tensor, aten.maximum.default, aten.minimum.default, aten.clamp.Tensor),
        broadcast_channels, same_computation,
    ),
    Operator(
        (aten.rsub.Tensor, aten.pow.Tensor_Tensor, aten.clamp_min.Tensor, aten.clamp_max.Tensor),
        broadcast_channels, same_computation_where_known,
    ),
    Operator((aten.add.Tensor,), broadcast_channels, add_constant),
    Operator((aten.mul.Tensor,), broadcast_channels, multiply_constant),
    Operator((aten.div.Tensor, aten.div.Tensor_mode), broadcast_channels, divide_constant),
    Operator((aten.where.self,), broadcast_channels, where_constant),
    Operator((aten.masked_fill.Scalar, aten.masked_fill.Tensor), broadcast_channels, masked_fill_constant),
    Operator(
        tuple(getattr(aten, name).Scalar for name in ("eq", "ne", "lt", "le", "gt", "ge")),
        elementwise_channels, compare_constant,
    ),
    Operator(
        tuple(getattr(aten, name).Tensor for name in ("eq", "ne", "lt", "le", "gt", "ge")),
        broadcast_channels, compare_constant,
    ),
    Operator(
        (aten.logical_and.default, aten.logical_or.default, aten.logical_xor.default, aten.bitwise_and.Tensor,
         aten.bitwise_or.Tensor, aten.bitwise_xor.Tensor),
        broadcast_channels, FLAGS,
    ),
    Operator((aten.isnan.default, aten.bitwise_and.Scalar, aten.bitwise_or.Scalar), elementwise_channels, FLAGS),
    Operator((aten.lerp.Scalar, aten.lerp.Tensor), broadcast_channels, lerp_constant),
    Operator((aten.addcmul.default,), broadcast_channels, add_product_constant),
    Operator((aten.addcdiv.default,), broadcast_channels, add_quotient_constant),
    Operator(
        (aten.remainder.Tensor, aten.fmod.Tensor, aten.atan2.default, aten.floor_divide.default),
        broadcast_channels, computation_away_from_jumps,
    ),
    Operator((aten.hypot.default,), broadcast_channels, same_computation_where_known),
    Operator((aten.glu.default,), gated_channels, gated_constant),
    Operator((aten.prelu.default, aten._prelu_kernel.default), prelu_channels, prelu_constant),
)  # fmt: skip
