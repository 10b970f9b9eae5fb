"""One rule an operator: how channels pass through it.

A rule gets the equations, the node and its arguments (tensors as `TrackedTensor`) and gives back what it knows of the
result.  An operator without a rule pins every channel that enters it: it stays, and the plan says why.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch.fx import Node

from .labels import Equations, IndexIds, TrackedTensor, Written
from .scales import query_rows

Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}
aten = torch.ops.aten
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
CONVOLUTIONS |= {aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding}
READERS = CONVOLUTIONS | TRANSPOSED | {aten.linear.default}


Function = TypeVar("Function", bound=Callable[..., Any])


def rule(*operators: Any) -> Callable[[Function], Function]:
    """Enter a function as the rule of these operators."""

    def register(function: Function) -> Function:
        for operator in operators:
            RULES[operator] = function
        return function

    return register


def all_overloads(packet: Any) -> list[Any]:
    """The operators that share a name."""
    return [getattr(packet, name) for name in packet.overloads()]


def shape_of(node: Node) -> tuple[int, ...]:
    return tuple(int(size) for size in node.meta["val"].shape)


def opaque(equations: Equations, node: Node | None, *arguments: Any, reason: str) -> Any:
    """Nothing is known of the result, so nothing that goes in may be removed."""

    def pin(value: Any) -> None:
        if isinstance(value, TrackedTensor):
            for atoms in value.atoms:
                equations.pin(atoms, reason)
        elif isinstance(value, dict):
            pin(list(value.values()))
        elif isinstance(value, list | tuple):
            for item in value:
                pin(item)

    pin(arguments)
    values = node.meta["val"] if node else []
    if isinstance(values, list | tuple):
        return [TrackedTensor(tuple(v.shape), (None,) * v.dim()) for v in values if v is not None]
    if not isinstance(values, torch.Tensor):  # a number
        return None
    return TrackedTensor(tuple(values.shape), (None,) * values.dim())


def op_name(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).removeprefix("aten.").split(".")[0]


# Readers: a contraction over the channels that come in, and new channels that go out.


@rule(*CONVOLUTIONS)
def convolution(
    eq: Equations,
    node: Node,
    x: TrackedTensor,
    weight: TrackedTensor,
    bias: TrackedTensor | None = None,
    *settings: Any,
) -> TrackedTensor:
    groups = settings[3] if len(settings) > 3 else 1
    outputs, inputs = weight.at(0), x.at(1)
    for atoms in weight.atoms[2:]:
        eq.pin(atoms, "kernel size")
    if groups == 1:
        eq.equate(inputs, weight.at(1), f"{op_name(node)} reads something that is no channel")
    else:
        _grouped(eq, node, inputs, weight, groups)
    if bias is not None:
        eq.equate(weight.at(0), bias.at(0), "bias")
    return TrackedTensor(shape_of(node), (x.at(0), outputs, *(None,) * (len(x.shape) - 2)))


def _grouped(eq: Equations, node: Node, inputs: IndexIds | None, weight: TrackedTensor, groups: int) -> None:
    """Depthwise: an output lives with its input.  Else whole groups go, or the same position of every group."""
    outputs, local = weight.at(0), weight.at(1)
    if inputs is None or outputs is None or groups == inputs.size:
        eq.pin(local, "input axis of a depthwise convolution")
        repeated = inputs if inputs is None else np.repeat(inputs, weight.shape[0] // groups)
        eq.equate(repeated, outputs, "depthwise convolution of something that is no channel")
        return
    group = eq.fresh(groups)
    eq.link_block(inputs.reshape(groups, -1), [group, local])
    each = eq.fresh(outputs.size // groups)
    eq.link_block(outputs.reshape(groups, -1), [group, each])
    eq.written.append(Written(node, (node.meta["module"], "groups", None), group))


@rule(aten.linear.default)
def linear(
    eq: Equations, node: Node, x: TrackedTensor, weight: TrackedTensor, bias: TrackedTensor | None = None
) -> TrackedTensor:
    eq.equate(x.at(-1), weight.at(1), "linear reads something that is no channel")
    if bias is not None:
        eq.equate(weight.at(0), bias.at(0), "bias")
    return TrackedTensor(shape_of(node), (*x.atoms[:-1], weight.at(0)))


@rule(*TRANSPOSED)
def transposed_convolution(
    eq: Equations,
    node: Node,
    x: TrackedTensor,
    weight: TrackedTensor,
    bias: TrackedTensor | None = None,
    *settings: Any,
) -> TrackedTensor:
    groups = settings[3] if len(settings) > 3 else 1
    for atoms in weight.atoms[2:]:
        eq.pin(atoms, "kernel size")
    if groups > 1:
        for axis in (x.at(1), *weight.atoms[:2]):
            eq.pin(axis, "grouped transposed convolution")
    eq.equate(x.at(1), weight.at(0), "conv_transpose reads something that is no channel")
    if bias is not None and groups == 1:
        eq.equate(weight.at(1), bias.at(0), "bias")
    outputs = weight.at(1) if groups == 1 else None
    if bias is not None and groups > 1:
        eq.pin(bias.at(0), "grouped transposed convolution")
    return TrackedTensor(shape_of(node), (x.at(0), outputs, *(None,) * (len(x.shape) - 2)))


@rule(aten.embedding.default)
def embedding(
    eq: Equations, node: Node, weight: TrackedTensor, indices: TrackedTensor, *settings: Any
) -> TrackedTensor:
    eq.pin(weight.at(0), "vocabulary")
    return TrackedTensor(shape_of(node), (*indices.atoms, weight.at(1)))


# Normalisations.


@rule(aten.batch_norm.default, aten.instance_norm.default)
def batch_norm(eq: Equations, node: Node, x: TrackedTensor, *settings: Any) -> TrackedTensor:
    for state in settings[:4]:
        if state is not None:
            eq.equate(x.at(1), state.at(0), f"{op_name(node)} of something that is no channel")
    for dim, atoms in enumerate(x.atoms):
        if dim != 1 and settings[4]:  # statistics of its own, as in standardised weights
            eq.pin(atoms, f"{op_name(node)} over this axis: removing one changes the statistics of the others")
    if not any(isinstance(state, TrackedTensor) for state in settings[:4]):  # its module would remember the old number
        eq.pin(x.at(1), f"{op_name(node)} without weights keeps its number of channels")
    return x


@rule(aten.layer_norm.default, aten.rms_norm.default)
def layer_norm(eq: Equations, node: Node, x: TrackedTensor, normalized: Sequence[int], *states: Any) -> TrackedTensor:
    if node.meta["module"] in eq.layer_norms and (channels := x.at(-1)) is not None and len(normalized) == 1:
        for state in states[:2]:
            if isinstance(state, TrackedTensor):
                eq.equate(channels, state.at(0), "layer norm")
        eq.remembered.append((node, channels))
        return x
    return _mixing(eq, x, range(len(x.shape) - len(normalized), len(x.shape)), states, op_name(node))


@rule(aten.group_norm.default)
def group_norm(eq: Equations, node: Node, x: TrackedTensor, groups: int, *states: Any) -> TrackedTensor:
    if groups == x.shape[1]:  # one group a channel: nothing is mixed
        for state in states[:2]:
            if state is not None:
                eq.equate(x.at(1), state.at(0), "group norm")
        if all(
            state is None for state in states[:2]
        ):  # nothing would be cut, so its module would not be brought up to date
            eq.pin(x.at(1), "group_norm without weights keeps its number of groups")
        return x
    return _mixing(eq, x, (1,), states, "group_norm")


def _mixing(eq: Equations, x: TrackedTensor, dims: Sequence[int], states: Sequence[Any], name: str) -> TrackedTensor:
    reason = f"{name} over the channels: removing one changes the statistics of the others"
    for dim in dims:
        eq.pin(x.at(dim), reason)
    for state in states:
        if isinstance(state, TrackedTensor):
            for atoms in state.atoms:
                eq.pin(atoms, reason)
    return x


# Element by element.


@rule(*(overload for name in (
    "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "elu", "selu", "celu",
    "leaky_relu", "mish", "softplus", "log_sigmoid", "softsign", "neg", "exp", "abs", "sqrt", "rsqrt", "erf", "sin",
    "cos", "square", "reciprocal", "log", "clone", "alias", "detach", "lift_fresh_copy", "dropout", "feature_dropout",
    "alpha_dropout", "clamp", "clamp_min", "clamp_max", "_to_copy", "contiguous", "to", "type_as", "bitwise_not",
    "logical_not", "threshold", "hardshrink", "softshrink", "logit", "nan_to_num", "round", "floor", "sign",
) if hasattr(aten, name) for overload in all_overloads(getattr(aten, name))),
    aten.pow.Tensor_Scalar, aten.pow.Scalar, aten.rsub.Scalar)  # fmt: skip
def elementwise(eq: Equations, node: Node, *arguments: Any, **options: Any) -> TrackedTensor:
    x = next(value for value in arguments if isinstance(value, TrackedTensor))
    return TrackedTensor(shape_of(node), x.atoms)


@rule(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.div.Tensor_mode, aten.maximum.default)
@rule(aten.minimum.default, aten.pow.Tensor_Tensor, aten.rsub.Tensor, aten.clamp.Tensor, aten.where.self)
@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.eq.Tensor, aten.lt.Tensor, aten.gt.Tensor)
@rule(aten.logical_and.default, aten.logical_or.default, aten.expand_as.default)
def broadcast(eq: Equations, node: Node, *arguments: Any, **options: Any) -> TrackedTensor:
    tensors = [value for value in arguments if isinstance(value, TrackedTensor)]
    shape = shape_of(node)
    result = tensors[0]
    for other in tensors[1:]:
        both = np.broadcast_shapes(result.shape, other.shape)
        atoms = tuple(aligned(eq, result, other, dim - len(both), op_name(node)) for dim in range(len(both)))
        result = TrackedTensor(both, atoms)
    return TrackedTensor(shape, result.atoms)


def aligned(eq: Equations, x: TrackedTensor, y: TrackedTensor, dim: int, name: str) -> IndexIds | None:
    """Axis `dim` (counted from the end) of the broadcast of two tensors."""
    sides = [side for side in (x, y) if -dim <= len(side.shape)]
    wide = [side for side in sides if side.shape[dim] > 1]
    for side in sides:  # a stretched axis of a parameter must stay of size one
        if side.shape[dim] == 1 and (wide or len(sides) == 1):
            eq.pin(side.at(dim), "broadcast axis")
    chosen = wide or sides
    if len(chosen) == 1:
        return chosen[0].at(dim)
    return eq.equate(chosen[0].at(dim), chosen[1].at(dim), f"{name} with something that is no channel")


@rule(aten.prelu.default, aten._prelu_kernel.default)
def prelu(eq: Equations, node: Node, x: TrackedTensor, weight: TrackedTensor) -> TrackedTensor:
    slope = max(weight.shape, default=1)
    if slope > 1:
        eq.equate(x.at(1), weight.at(weight.shape.index(slope)), "prelu")
    else:
        eq.pin(weight.at(0), "one slope for all channels")
    return x


@rule(aten.softmax.int, aten._softmax.default, aten.log_softmax.int)
def softmax(eq: Equations, node: Node, x: TrackedTensor, dim: int, *settings: Any) -> TrackedTensor:
    eq.pin(x.at(dim), "softmax over the channels")
    return x


# Products of two computed tensors: attention.


@rule(aten.matmul.default, aten.bmm.default)
def matmul(eq: Equations, node: Node, x: TrackedTensor, y: TrackedTensor) -> TrackedTensor:
    if len(x.shape) < 2 or len(y.shape) < 2:
        return cast(TrackedTensor, opaque(eq, node, x, y, reason="matmul with a vector"))
    eq.contract(node, x, y, (-1, -2), "matmul with something that is no channel")
    rank = len(shape_of(node))
    batch = tuple(aligned(eq, x, y, dim - rank, "matmul") for dim in range(rank - 2))
    return TrackedTensor(shape_of(node), (*batch, x.at(-2), y.at(-1)))


@rule(aten.scaled_dot_product_attention.default)
def attention(
    eq: Equations, node: Node, q: TrackedTensor, k: TrackedTensor, v: TrackedTensor,
    mask: TrackedTensor | None = None, *settings: Any,
    scale: float | None = None, enable_gqa: bool = False, **options: Any,
) -> TrackedTensor:  # fmt: skip
    if enable_gqa and q.shape[-3] != k.shape[-3]:
        return cast(TrackedTensor, opaque(eq, node, q, k, v, mask, reason="attention with shared keys"))
    shape = shape_of(node)
    eq.contract(node, q, k, (-1, -1), "attention with something that is no channel")
    if scale is None and (dimensions := q.at(-1)) is not None:
        if query_rows(node.args[0]) is None:  # type: ignore[arg-type]
            eq.pin(
                dimensions, "attention is scaled by the number of dimensions, and more than a layer writes its queries"
            )
        else:
            eq.scales.append((node, dimensions))
    for tokens in (q.at(-2), k.at(-2), v.at(-2)):
        eq.pin(tokens, "attention over the channels")
    scores = TrackedTensor((*shape[:-1], k.shape[-2]), (*(None,) * (len(shape) - 1), None))
    for side in (q, k, v):
        heads = TrackedTensor((*side.shape[:-2], 1, 1), (*side.atoms[:-2], None, None))
        scores = _joined(eq, scores, heads)
    if mask is not None:
        scores = _joined(eq, scores, mask)
    return TrackedTensor(shape, (*scores.atoms[:-1], v.at(-1)))


def _joined(eq: Equations, scores: TrackedTensor, other: TrackedTensor) -> TrackedTensor:
    """Attention scores and something that is broadcast to them: an axis that is known on one side only is that one."""
    atoms = list(scores.atoms)
    for dim in range(1, len(other.shape) + 1):
        found = other.at(-dim)
        if found is not None and other.shape[-dim] > 1:
            atoms[-dim] = found if atoms[-dim] is None else eq.equate(atoms[-dim], found, "")
        elif found is not None:
            eq.pin(found, "broadcast axis")
    return TrackedTensor(scores.shape, tuple(atoms))
