"""One rule an operator: its abstract value, from those of its arguments."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from ..graph import CONVOLUTIONS, TRANSPOSED, match_axes
from .abstract_values import LIVE, compressed, full_along, known, live_like, mapped, product, uniform

aten = torch.ops.aten
PADDED_POOLS = {aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default}


ELEMENTWISE = {getattr(aten, name).default for name in (
    "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "elu", "selu", "celu",
    "leaky_relu", "mish", "softplus", "neg", "exp", "abs", "sqrt", "rsqrt", "erf", "square", "clamp", "clamp_min",
    "clamp_max", "log", "sin", "cos", "reciprocal",
)} | {aten.pow.Tensor_Scalar, aten.add.Tensor, aten.sub.Tensor, aten.maximum.default, aten.minimum.default,
     aten.clamp.Tensor}  # fmt: skip
"""What gives NaN for NaN, so that a dependence on the input is never lost."""


PASSING = {aten.clone.default, aten.alias.default, aten.detach.default, aten.dropout.default, aten.to.dtype,
           aten.to.device, aten.to.dtype_layout, aten.type_as.default, aten._to_copy.default,
           aten.feature_dropout.default, aten.contiguous.default}  # fmt: skip


UNIFORM = {aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, *PADDED_POOLS,
           aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default,
           aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec,
           aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec, aten.upsample_trilinear3d.vec}  # fmt: skip


def pooled(node: Node, x: Tensor) -> Tensor:
    """A window over equal values gives that value, unless padding zeros are counted in."""
    x = uniform(x, range(2, x.dim()))
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
        return at_every_place(x).expand(full[-1])[None]
    return uniform(x, range(2, x.dim())).expand(-1, full[1], *(1,) * (x.dim() - 2)).flatten(1)


def at_every_place(x: Tensor) -> Tensor:
    """What each channel along the last dimension carries, shape (channels,) or (1,): NaN where it varies."""
    return uniform(x, range(x.dim() - 1)).reshape(-1)


def used_taps(rows: Tensor) -> Tensor:
    """Which inputs each output of a weight reads with any tap, shape (outputs, inputs)."""
    if rows.dim() == 2 or rows[0, 0].numel() == 1:
        return rows.reshape(rows.shape[:2]) != 0
    ones = torch.ones(rows[0, 0].numel(), dtype=rows.dtype)
    return rows.flatten(2).abs() @ ones > 0  # a product is many times faster here than a reduction of short rows


def _convolution(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None, *settings: Any) -> Tensor:
    default = 1 if node.target in CONVOLUTIONS else 0
    groups = settings[3] if len(settings) > 3 else 1
    if default == 0 and groups > 1:
        return live_like(x)
    space = x.dim() - 2
    x, weight = at_reader(node, x), full_along(node, weight, *range(weight.dim()), argument=1)
    live, constant = live_and_constant(x, pads_zeros(node))
    rows = weight if default else weight.transpose(0, 1)
    used = used_taps(rows).view(groups, -1, rows.shape[1])
    grouped = x.shape[0], groups, -1
    reads_live = (used & live.view(grouped).unsqueeze(2)).any(3).flatten(1)
    result = torch.zeros(reads_live.shape, dtype=torch.float64)
    if constant.any():
        total = rows.double().flatten(2).sum(2).view(groups, -1, rows.shape[1])
        result = torch.einsum("goi,bgi->bgo", total, constant.view(grouped)).flatten(1)
    result = (result if bias is None else result + bias).masked_fill(reads_live, LIVE)
    return result.view(*result.shape, *(1,) * space)


def _linear(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    weight = full_along(node, weight, 0, 1, argument=1)
    x = x.expand(*x.shape[:-1], weight.shape[1])
    live, constant = live_and_constant(x, varies=False)
    columns = constant.flatten(0, -2).any(0)
    value = F.linear(constant[..., columns], weight[:, columns].double(), bias)
    patterns, which = torch.unique(live.flatten(0, -2), dim=0, return_inverse=True)  # few: most places are alike
    reads_live = torch.stack([(weight[:, pattern] != 0).any(1) for pattern in patterns])
    return value.masked_fill(reads_live[which].view(value.shape), LIVE)


def _batch_norm(
    node: Node, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, own: bool, momentum: float, eps: float, *_: Any
) -> Tensor:
    def along(state: Tensor) -> Tensor:
        return state.view(-1, *(1,) * (x.dim() - 2))

    if own:  # statistics of the tensor itself
        if known([x]):
            full = full_along(node, x, *range(x.dim()))
            return compressed(F.batch_norm(full, None, None, weight, bias, True, 0.0, eps))
        mean, var = live_like(x).flatten()[:1], torch.ones(1, dtype=torch.float64)
    scale = (var + eps).rsqrt() * (1 if weight is None else weight)
    return product(x - along(mean), along(scale)) + (0 if bias is None else along(bias))


def _instance_norm(
    node: Node, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, own: bool, momentum: float, eps: float, *_: Any
) -> Tensor:
    if not own:
        return _batch_norm(node, x, weight, bias, mean, var, False, momentum, eps)
    x = uniform(x, range(2, x.dim()))
    shape = (-1, *(1,) * (x.dim() - 2))
    centred = torch.where(x.isnan(), x, 0.0)
    scaled = centred if weight is None else product(centred, weight.view(shape))
    return scaled if bias is None else scaled + bias.view(shape)


def _layer_norm(node: Node, x: Tensor, normalized: Any, weight: Any = None, bias: Any = None, *eps: Any) -> Tensor:
    """A channel whose scale is zero carries its shift, whatever the statistics are."""
    if weight is None:
        return live_like(x)
    return product(live_like(x), weight) + (0 if bias is None else bias)


def _group_norm(node: Node, x: Tensor, groups: int, weight: Any = None, bias: Any = None, *eps: Any) -> Tensor:
    shape = (-1, *(1,) * (x.dim() - 2))
    states = [None if state is None else state.view(shape) for state in (weight, bias)]
    return _layer_norm(node, x, None, *states)


def _multiply(node: Node, left: Any, right: Any) -> Tensor:
    return product(
        *(
            side if isinstance(side, Tensor) else torch.tensor(float(side), dtype=torch.float64)
            for side in (left, right)
        )
    )


def _divide(node: Node, left: Any, right: Any, **options: Any) -> Tensor:
    return live_like(node.meta["val"]) if options.get("rounding_mode") else _multiply(node, left, 1 / right)


def _prelu(node: Node, x: Tensor, weight: Tensor) -> Tensor:
    slope = weight.view(-1, *(1,) * (x.dim() - 2)) if weight.numel() > 1 else weight
    return torch.where(x > 0, x, product(x, slope))


def _matmul(node: Node, x: Tensor, y: Tensor) -> Tensor:
    """A sum of products is zero where each has a factor that is zero."""
    if x.dim() < 2 or y.dim() < 2:
        return live_like(node.meta["val"])
    x, y = full_along(node, x, -1), full_along(node, y, -2, argument=1)
    used, other = (x != 0).double(), (y != 0).double()
    live = x.isnan().double() @ other + used @ y.isnan().double()
    return (x.nan_to_num() @ y.nan_to_num()).masked_fill(live > 0, LIVE)


def _attention(node: Node, q: Tensor, k: Tensor, v: Tensor, mask: Any = None, *rest: Any, **options: Any) -> Tensor:
    """An average over the tokens: of equal values, that value."""
    v = uniform(v, range(v.dim() - 2, v.dim() - 1))
    return v if mask is None and options.get("attn_mask") is None else torch.where(v == 0, v, LIVE)


# Moving: what is uniform along an axis stays so.


def _view(node: Node, x: Tensor, *sizes: Any) -> Tensor:
    old, new = node.args[0].meta["val"].shape, node.meta["val"].shape  # type: ignore[union-attr]
    before, after = list(x.shape), [1] * len(new)
    for merged, split in match_axes(tuple(old), tuple(new)):
        if any(x.shape[dim] > 1 for dim in merged):
            for dim in merged:
                before[dim] = old[dim]
            for dim in split:
                after[dim] = new[dim]
    return compressed(x.expand(before).reshape(after))


def _moved(node: Node, x: Tensor, *settings: Any, **options: Any) -> Tensor:
    target: Any = node.target
    moved: Tensor = target(x, *settings, **options)
    return moved


def _squeeze(node: Node, x: Tensor, dims: int | Sequence[int]) -> Tensor:
    full = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    gone = [dim for dim in ([dims] if isinstance(dims, int) else dims) if full[dim] == 1]
    return x.squeeze(gone)


def _pad(node: Node, x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """What equals the padding, or is padded with itself, stays what it is."""
    padded = [x.dim() - 1 - at // 2 for at, width in enumerate(pad) if width]
    x = uniform(x, sorted(set(padded)))
    return torch.where(x == (value or 0.0), x, LIVE) if padded and mode == "constant" else x


def _stretched(node: Node, x: Tensor, *settings: Any, **options: Any) -> Tensor:
    lead = node.meta["val"].dim() - x.dim()
    return x.reshape(*(1,) * lead, *x.shape)


def _cut(node: Node, x: Tensor, *settings: Any, **options: Any) -> Any:
    """Pieces along the one axis that the arguments name; every other may stay as it is."""
    target: Any = node.target
    named = {argument.name: at for at, argument in enumerate(target._schema.arguments)}
    at = named["dim"] - 1
    dim = settings[at] if len(settings) > at else options.get("dim", 0)
    return mapped(compressed, target(full_along(node, x, dim), *settings, **options))


def _reduced(node: Node, x: Tensor, *settings: Any, **options: Any) -> Tensor:
    full = full_along(node, x, *(settings[0] if settings and settings[0] else range(x.dim())))
    target: Any = node.target
    reduced: Tensor = target(full, *settings, **{**options, "dtype": None} if "dtype" in options else options)
    return reduced


def _roll(node: Node, x: Tensor, shifts: Any, dims: Sequence[int] = ()) -> Tensor:
    full = full_along(node, x, *(dims or range(x.dim())))
    return compressed(aten.roll.default(full, shifts, dims))


def _cat(node: Node, parts: list[Tensor], dim: int = 0) -> Tensor:
    sources: Any = node.args[0]
    rank = node.meta["val"].dim()
    sizes = [max(part.shape[d] for part in parts) for d in range(rank)]
    full = []
    for part, source in zip(parts, sources, strict=True):
        sizes[dim] = source.meta["val"].shape[dim]
        full.append(part.expand(sizes))
    return compressed(torch.cat(full, dim))


def _stack(node: Node, parts: list[Tensor], dim: int = 0) -> Tensor:
    return compressed(torch.stack(list(torch.broadcast_tensors(*parts)), dim))


def _index(node: Node, x: Tensor, indices: Sequence[Any]) -> Tensor:
    """A table that is looked up at places which do not depend on the input."""
    if any(index is not None and index.is_floating_point() for index in indices):
        return live_like(node.meta["val"])
    full = full_along(node, x, *(dim for dim, index in enumerate(indices) if index is not None))
    return compressed(aten.index.Tensor(full, indices))


RULES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(CONVOLUTIONS | TRANSPOSED, _convolution),
    aten.linear.default: _linear,
    aten.batch_norm.default: _batch_norm,
    aten.instance_norm.default: _instance_norm,
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten.mul.Tensor: _multiply,
    aten.div.Tensor: _divide,
    aten.prelu.default: _prelu,
    aten.matmul.default: _matmul,
    aten.bmm.default: _matmul,
    aten.scaled_dot_product_attention.default: _attention,
    **dict.fromkeys(
        (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
         aten.reshape_as.default, aten.view_as.default, aten.unflatten.int), _view),
    **dict.fromkeys((aten.permute.default, aten.transpose.int, aten.unsqueeze.default, aten.t.default,
                     aten.mT.default, aten.movedim.int, aten.flip.default), _moved),
    **dict.fromkeys((aten.squeeze.dim, aten.squeeze.dims), _squeeze),
    **dict.fromkeys((aten.expand.default, aten.expand_as.default), _stretched),
    **dict.fromkeys((aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int,
                     aten.select.int, aten.slice.Tensor, aten.narrow.default), _cut),
    aten.roll.default: _roll,
    **dict.fromkeys((aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default), _reduced),
    aten.pad.default: _pad,
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.index.Tensor: _index,
}  # fmt: skip
