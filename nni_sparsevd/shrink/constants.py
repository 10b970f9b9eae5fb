"""What a channel carries when it does not depend on the input.

The network is run once on abstract values: a tensor is stored with size 1 along every dimension in which it is
uniform, and NaN stands for "depends on the input".  NaN then spreads through additions and activations by itself;
only operators that can stop it (a zero weight) or that break uniformity (zero padding) need a rule of their own.
All in float64.  The claim is sound for every finite input: a value that is no NaN is what the network computes there.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from ..graph import CONVOLUTIONS, TRANSPOSED, Trace, item

aten = torch.ops.aten
LIVE = float("nan")
PADDED_POOLS = {aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default}
ELEMENTWISE = {getattr(aten, name).default for name in (
    "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "elu", "selu", "celu",
    "leaky_relu", "mish", "softplus", "neg", "exp", "abs", "sqrt", "rsqrt", "erf", "square", "clamp", "clamp_min",
    "clamp_max",
)} | {aten.pow.Tensor_Scalar, aten.add.Tensor, aten.sub.Tensor, aten.maximum.default, aten.minimum.default}  # fmt: skip
PASSING = {aten.clone.default, aten.alias.default, aten.detach.default, aten.dropout.default, aten.to.dtype,
           aten._to_copy.default, aten.feature_dropout.default, aten.contiguous.default}  # fmt: skip
UNIFORM = {aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, *PADDED_POOLS,
           aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default,
           aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec}  # fmt: skip
MOVING = {aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.permute.default,
          aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.expand.default,
          aten.cat.default, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int,
          aten.select.int, aten.slice.Tensor, aten.mean.dim, aten.sum.dim_IntList, aten.roll.default}  # fmt: skip


def constants(trace: Trace, states: dict[str, Tensor]) -> dict[Node, Any]:
    """The constant value of every node of `trace`, NaN where it depends on the input, for these parameter values."""
    values: dict[Node, Any] = {}
    for node in trace.graph.nodes:
        if node.op == "placeholder":
            name = trace.state(node)
            if isinstance(node.meta.get("val"), Tensor):
                values[node] = states[name].double() if name else _live(node.meta["val"])
            else:
                values[node] = None
        elif node.op == "call_function":
            values[node] = _evaluate(node, values)
    return values


def _evaluate(node: Node, values: dict[Node, Any]) -> Any:
    target: Any = node.target
    if getattr(target, "__name__", "") == "getitem":
        return item(node, values)
    arguments: Any = map_arg(node.args, lambda source: values[source])
    options: Any = map_arg(node.kwargs, lambda source: values[source])
    if target in ELEMENTWISE:
        return target(*arguments, **options)
    if target in PASSING:
        return arguments[0]
    if target in MOVING:
        full: Any = map_arg(node.args, lambda source: _expanded(source, values))
        return _mapped(_compressed, target(*full, **options))
    if target in UNIFORM:
        return _pooled(node, arguments[0])
    if target in RULES:
        return RULES[target](node, *arguments, **options)
    return _mapped(_live, node.meta["val"])


def _live(like: Tensor) -> Tensor:
    """Depends on the input everywhere."""
    return torch.full([1] * like.dim(), LIVE, dtype=torch.float64)


def _mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    return [_mapped(function, item) for item in value] if isinstance(value, list | tuple) else function(value)


def _expanded(node: Node, values: dict[Node, Any]) -> Tensor:
    value: Tensor = values[node]
    return value.expand(node.meta["val"].shape).contiguous()


def _compressed(value: Tensor) -> Tensor:
    """Size 1 along every dimension in which the tensor is uniform."""
    for dim, size in enumerate(value.shape):
        first = value.narrow(dim, 0, 1)
        if size > 1 and ((value == first) | (value.isnan() & first.isnan())).all():
            value = first
    return value


def _uniform(value: Tensor, dims: range) -> Tensor:
    """The same with every one of `dims` of size 1: live wherever the value varies along them."""
    for dim in dims:
        if value.shape[dim] > 1:
            low, high = value.amin(dim, keepdim=True), value.amax(dim, keepdim=True)
            value = torch.where(low == high, low, LIVE)
    return value


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Zero times anything finite is zero, also where the other factor depends on the input."""
    return torch.where((left == 0) | (right == 0), torch.zeros((), dtype=torch.float64), left * right)


def _pooled(node: Node, x: Tensor) -> Tensor:
    """A window over equal values gives that value, unless padding zeros are counted in."""
    x = _uniform(x, range(2, x.dim()))
    if node.target in PADDED_POOLS and len(node.args) > 6 and node.args[6] is not None:  # a divisor of its own
        return torch.where(x == 0, x, LIVE)
    padding = node.args[3] if node.target in PADDED_POOLS and len(node.args) > 3 else 0
    counted = node.args[5] if len(node.args) > 5 else True
    padded = counted and any(padding if isinstance(padding, list | tuple) else [padding])
    return torch.where(x == 0, x, LIVE) if padded else x


def live_and_constant(x: Tensor, varies: bool) -> tuple[Tensor, Tensor]:
    """Per input channel of a reader: does what it reads vary (`varies`: zero padding around it), and the constant."""
    live = x.isnan() | ((x != 0) if varies else torch.zeros_like(x, dtype=torch.bool))
    return live, x.masked_fill(live, 0.0)


def pads_zeros(node: Node) -> bool:
    """Whether a convolution sees zeros around its input, so that a constant is not constant at the border."""
    if node.target in TRANSPOSED:
        return True  # windows at the border overlap fewer inputs, padding or not
    padding = node.args[4] if len(node.args) > 4 else 0
    if isinstance(padding, str):
        return padding != "valid" and any(size > 1 for size in node.args[1].meta["val"].shape[2:])  # type: ignore[union-attr]
    return any(padding if isinstance(padding, list | tuple) else [padding])  # type: ignore[list-item]


def at_reader(node: Node, x: Tensor) -> Tensor:
    """What each input channel of the reader `node` carries, shape (batch, channels): NaN where it varies."""
    full = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    if node.target == aten.linear.default:
        return _uniform(x, range(x.dim() - 1)).expand(*(1,) * (x.dim() - 1), full[-1]).reshape(1, -1)
    return _uniform(x, range(2, x.dim())).expand(-1, full[1], *(1,) * (x.dim() - 2)).flatten(1)


def _convolution(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None, *settings: Any) -> Tensor:
    default = 1 if node.target in CONVOLUTIONS else 0
    groups = settings[3] if len(settings) > 3 else 1
    if default == 0 and groups > 1:
        return _live(x)
    space = x.dim() - 2
    x = at_reader(node, x)
    live, constant = live_and_constant(x, pads_zeros(node))
    taps = weight.flatten(2) if default else weight.transpose(0, 1).flatten(2)
    outputs = taps.shape[0]
    used, total = (taps != 0).any(2).double(), taps.sum(2)
    grouped = x.shape[0], groups, -1
    reads_live = torch.einsum("goi,bgi->bgo", used.view(groups, -1, used.shape[1]), live.double().view(grouped))
    value = torch.einsum("goi,bgi->bgo", total.view(groups, -1, total.shape[1]), constant.view(grouped))
    result = value.reshape(-1, outputs) + (0 if bias is None else bias)
    result = result.masked_fill(reads_live.reshape(-1, outputs) > 0, LIVE)
    return result.view(*result.shape, *(1,) * space)


def _linear(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x = x.expand(*x.shape[:-1], weight.shape[1])
    live, constant = live_and_constant(x, varies=False)
    value = F.linear(constant, weight, bias)
    return value.masked_fill(F.linear(live.double(), (weight != 0).double()) > 0, LIVE)


def _batch_norm(node: Node, x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor, *settings: Any) -> list[Any]:
    def along(state: Tensor) -> Tensor:
        return state.view(-1, *(1,) * (x.dim() - 2))

    scale = (var + settings[1]).rsqrt() * (1 if weight is None else weight)
    return [_product(x - along(mean), along(scale)) + (0 if bias is None else along(bias)), None, None]


def _layer_norm(node: Node, x: Tensor, normalized: Any, weight: Any = None, bias: Any = None, *eps: Any) -> Tensor:
    """A channel whose scale is zero carries its shift, whatever the statistics are."""
    if weight is None:
        return _live(x)
    return _product(_live(x), weight) + (0 if bias is None else bias)


def _multiply(node: Node, left: Any, right: Any) -> Tensor:
    return _product(
        *(
            side if isinstance(side, Tensor) else torch.tensor(float(side), dtype=torch.float64)
            for side in (left, right)
        )
    )


def _divide(node: Node, left: Any, right: Any, **options: Any) -> Tensor:
    return _multiply(node, left, 1 / right)


def _prelu(node: Node, x: Tensor, weight: Tensor) -> Tensor:
    slope = weight.view(-1, *(1,) * (x.dim() - 2)) if weight.numel() > 1 else weight
    return torch.where(x > 0, x, _product(x, slope))


RULES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(CONVOLUTIONS | TRANSPOSED, _convolution),
    aten.linear.default: _linear,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.mul.Tensor: _multiply,
    aten.div.Tensor: _divide,
    aten.prelu.default: _prelu,
}
