"""Results on PyTorch's meta device, which has shapes and no data, for the operators that networks consist of.

PyTorch computes the result of most operators on that device in Python, through several layers of its reference
implementations: a batch norm takes milliseconds.  A network is traced a few times for a plan, so that is nearly all of
the plan's time.  Each function here covers the plain case of an operator, and returns None for every other one, errors
included: PyTorch itself is asked then.  A transposed convolution is also checked here, as PyTorch checks it only where
there are data.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def make_result(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
    """What an operator returns on the meta device, None where PyTorch has to be asked.

    Args:
        target: The overload.
        args: Its arguments, tensors on the meta device.
        kwargs: Its options.

    Returns:
        A tensor of the right shape, type and strides; the first argument itself for an in-place operator.
    """
    make = _RESULTS.get(target)
    if make is None or kwargs:
        return None
    for value in args[:2]:  # a network may make a tensor on another device
        if isinstance(value, Tensor) and not value.is_meta:
            return None
    return make(*args)


def _keeps_strides(x: Tensor) -> bool:
    """Whether the result of an elementwise operator has the strides of a tensor: where it has no gaps."""
    if not x.is_floating_point():
        return False
    if x.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _matches(x: Tensor | None, shape: Sequence[int]) -> bool:
    """Whether an optional parameter is left out or has this shape."""
    return x is None or x.shape == tuple(shape)


def _has_gaps_alone(x: Tensor) -> bool:
    """Whether a tensor is a part of a contiguous one, such as a gate of an LSTM: results have no gaps."""
    # An axis of size 1 has a stride that says nothing, and PyTorch may put it elsewhere.
    strides = x.stride()
    falls = all(before > after for before, after in itertools.pairwise(strides))
    return x.is_floating_point() and min(x.shape, default=0) > 1 and falls and strides[-1] > 0


def _like(x: Tensor, *_: Any) -> Tensor | None:
    if _keeps_strides(x):
        return _empty_like(x)
    return _empty(x, x.shape) if _has_gaps_alone(x) else None


def _empty_like(x: Tensor) -> Tensor:
    return _empty(x, x.shape) if x.is_contiguous() else torch.empty_like(x)


def _empty(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A contiguous tensor of another shape."""
    # `new_empty` and `empty_like` are computed in Python on the meta device, too.
    return torch.empty(shape, dtype=x.dtype, device=x.device)


def _in_place(x: Tensor, *_: Any) -> Tensor | None:
    return x if x.is_floating_point() else None


def _broadcast(x: Tensor, y: Any) -> Tensor | None:
    if not isinstance(x, Tensor):
        return None
    if not isinstance(y, Tensor):
        return _like(x) if isinstance(y, int | float) else None
    if x.shape == y.shape and x.dtype == y.dtype and _has_gaps_alone(x) and _has_gaps_alone(y):
        return _empty(x, x.shape)
    whole, part = (x, y) if x.numel() >= y.numel() else (y, x)
    if x.dtype != y.dtype or not _keeps_strides(whole) or not _fits(part, whole):
        return None
    # The tensors may be stored in different orders: then only one without an order of its own leaves no doubt.
    is_one_order = part.shape == whole.shape or (whole.is_contiguous() and part.is_contiguous())
    has_no_order = sum(size > 1 for size in part.shape) < 2
    return _empty_like(whole) if is_one_order or has_no_order else None


def _broadcast_in_place(x: Tensor, y: Any) -> Tensor | None:
    if not x.is_floating_point():
        return None
    if not isinstance(y, Tensor):
        return x if isinstance(y, int | float) else None
    return x if x.dtype == y.dtype and _fits(y, x) else None


def _fits(part: Tensor, whole: Tensor) -> bool:
    """Whether one tensor is broadcast to the shape of the other."""
    if part.shape == whole.shape:
        return True
    if part.dim() > whole.dim() or whole.numel() == 0 or part.dim() == 0:
        return False
    sizes = zip(part.shape, whole.shape[-part.dim() :], strict=True)
    return all(size in (1, full) for size, full in sizes)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if weight.dim() != 2 or x.dim() < 2 or x.numel() == 0 or x.shape[-1] != weight.shape[1]:
        return None
    if not x.is_floating_point() or x.dtype != weight.dtype or not _matches(bias, weight.shape[:1]):
        return None
    return _empty(x, (*x.shape[:-1], weight.shape[0]))


def _transposed_convolution(x: Tensor, weight: Tensor, *_: Any) -> None:
    """Check the number of channels, which PyTorch does only where there are data; the result is left to PyTorch.

    Raises:
        RuntimeError: The input has another number of channels than the weight.
    """
    channels = x.shape[-weight.dim() + 1] if x.dim() >= weight.dim() - 1 else 0
    if channels != weight.shape[0]:
        raise RuntimeError(f"a weight for {weight.shape[0]} channels cannot read {channels}")


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    if x.dim() != 4 or weight.dim() != 4 or x.numel() == 0 or x.shape[1] != weight.shape[1] * groups:
        return None
    if weight.shape[0] % groups or not _matches(bias, weight.shape[:1]) or x.dtype != weight.dtype:
        return None
    if not x.is_floating_point():
        return None
    settings = [_pair(setting) for setting in (stride, padding, dilation)]
    sizes = []
    for size, kernel, step, padded, spread in zip(x.shape[2:], weight.shape[2:], *settings, strict=True):
        room = size + 2 * padded - spread * (kernel - 1) - 1
        if room < 0 or step < 1:
            return None
        sizes.append(room // step + 1)
    return _empty(x, (x.shape[0], weight.shape[0], *sizes))


def _pair(setting: Any) -> tuple[int, int]:
    if isinstance(setting, int):
        return setting, setting
    return (setting[0], setting[-1])


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None, *settings: Any
) -> Tensor | None:
    uses_batch = bool(settings[0])
    if uses_batch != (mean is None) or uses_batch != (variance is None) or x.dim() < 2 or not x.is_contiguous():
        return None
    states = [state for state in (weight, bias, mean, variance) if state is not None]
    fits = all(state.shape == x.shape[1:2] and state.dtype == x.dtype for state in states)
    return _like(x) if fits else None


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, *_: Any
) -> Tensor | None:
    fits = tuple(shape) == x.shape[x.dim() - len(shape) :] and _matches(weight, shape) and _matches(bias, shape)
    is_same_type = weight is None or weight.dtype == x.dtype
    return _empty(x, x.shape) if fits and is_same_type and x.is_floating_point() else None


def _softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor | None:
    return _like(x) if dtype is None and -x.dim() <= dim < x.dim() and x.is_contiguous() else None


def _roll(x: Tensor, shifts: Any, dims: Sequence[int] = ()) -> Tensor | None:
    fits = len(shifts) == len(dims) > 0 and all(-x.dim() <= dim < x.dim() for dim in dims)
    return _like(x) if fits and x.numel() and x.is_contiguous() else None


def _mean(x: Tensor, dims: Sequence[int] | None, keepdim: bool = False, *_: Any) -> Tensor | None:
    if dims is None or not x.is_floating_point() or not x.is_contiguous() or x.numel() == 0:
        return None
    if not all(-x.dim() <= dim < x.dim() for dim in dims):
        return None
    reduced = {dim % x.dim() for dim in dims}
    if not reduced or len(reduced) < len(dims):
        return None
    sizes = []
    for dim, size in enumerate(x.shape):
        if dim not in reduced:
            sizes.append(size)
        elif keepdim:
            sizes.append(1)
    return _empty(x, sizes)


def _concatenate(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    if not -first.dim() <= dim < first.dim() or not first.is_floating_point():
        return None
    dim %= first.dim()
    for value in tensors:
        if not value.is_meta or not value.is_contiguous() or value.dtype != first.dtype or value.dim() != first.dim():
            return None
        if value.shape[:dim] != first.shape[:dim] or value.shape[dim + 1 :] != first.shape[dim + 1 :]:
            return None
    return _empty(first, (*first.shape[:dim], sum(value.shape[dim] for value in tensors), *first.shape[dim + 1 :]))


def _attention(query: Tensor, key: Tensor, value: Tensor, *settings: Any) -> Tensor | None:
    """Plain self-attention: one shape of queries, keys and values, and no mask."""
    if settings or query.dim() != 4 or not query.shape == key.shape == value.shape or not query.is_floating_point():
        return None
    if not query.dtype == key.dtype == value.dtype or query.numel() == 0:
        return None
    return _empty(query, query.shape)


_UNARY = (
    *(aten.relu, aten.silu, aten.gelu, aten.sigmoid, aten.tanh, aten.hardswish, aten.hardsigmoid, aten.hardtanh),
    *(aten.leaky_relu, aten.elu, aten.mish, aten.exp, aten.sqrt, aten.rsqrt, aten.neg, aten.abs),
)
_RESULTS: dict[Any, Callable[..., Tensor | None]] = {
    **{packet.default: _like for packet in _UNARY},
    **{getattr(aten, f"{packet.__name__}_").default: _in_place for packet in _UNARY},
    **{packet.Tensor: _broadcast for packet in (aten.add, aten.sub, aten.mul, aten.div)},
    **{packet.Tensor: _broadcast_in_place for packet in (aten.add_, aten.sub_, aten.mul_, aten.div_)},
    aten.linear.default: _linear,
    aten.conv2d.default: _convolution,
    aten.conv_transpose1d.default: _transposed_convolution,
    aten.conv_transpose2d.input: _transposed_convolution,
    aten.conv_transpose3d.input: _transposed_convolution,
    aten.batch_norm.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.softmax.int: _softmax,
    aten.mean.dim: _mean,
    aten.cat.default: _concatenate,
    aten.roll.default: _roll,
    aten.scaled_dot_product_attention.default: _attention,
}
