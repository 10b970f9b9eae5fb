"""The KL of whole tensors of weights from their prior: value and closed-form gradient in a few passes over them."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .choices import Prior
from .elements import K1, K2, K3, has_one_value_per_row, kl_elements, kl_slope

CHUNK_SIZE = 1 << 16
"""Weights worked on at a time on a CPU, so that a dozen passes over them stay in its cache."""


def kl(theta: Tensor, log_sigma2: Tensor, prior: Prior = "log_uniform") -> Tensor:
    """Sum of the KL of every weight from the prior: a scalar, with the closed-form gradient in theta and log_sigma2.

    `log_sigma2` has the shape of theta, or 1 in some dimensions: one for all weights along them.  Computed in float32
    or wider also under autocast.  The gradient with respect to theta is finite at 0.

    Of parameters that several processes share (FSDP2), each works on its part: the gradient is that part's, the value
    that of the whole.
    """
    if hasattr(theta, "to_local"):  # a DTensor, whose module takes a second to import
        return _of_parts(theta, log_sigma2, prior)
    if log_sigma2.shape != theta.shape and not has_one_value_per_row(log_sigma2, theta):
        log_sigma2 = log_sigma2.expand_as(theta)
    return _KL.apply(theta, log_sigma2, prior)  # type: ignore[no-any-return]


def add_kl_gradient_(theta: Tensor, log_sigma2: Tensor, weight: float, prior: Prior = "log_uniform") -> None:
    """`(weight * kl(theta, log_sigma2, prior)).backward()` for about half of its cost.

    Straight into the `.grad` of two parameters, without the value and without memory for it.  Where they are no
    parameters of one floating-point type and layout it is what the line above says.
    """
    if not weight:
        return
    there = _in_place(theta, log_sigma2)
    if there is None:
        backpropagate_if_trainable(weight * kl(theta, log_sigma2, prior))
        return
    with torch.no_grad(), torch.autocast(theta.device.type, enabled=False):
        for mean, noise, to_mean, to_noise in _parts(*there):
            square = _square(mean)
            slope, _ = _terms(prior, square, noise)
            # d KL / d theta = -2 slope / theta, with the guard of log_alpha: 0 at theta = 0, as by symmetry it must be
            to_mean.addcmul_(mean / square, slope, value=-2 * weight)
            to_noise.add_(slope if to_noise.shape == slope.shape else slope.sum(1, keepdim=True), alpha=weight)


def backpropagate_if_trainable(objective: Tensor) -> None:
    """Its gradient, where it has one: nothing of a frozen layer's."""
    if objective.requires_grad:
        objective.backward()  # type: ignore[no-untyped-call]


def _in_place(theta: Tensor, log_sigma2: Tensor) -> list[Tensor] | None:
    """Both and their gradients as they lie in memory, contiguous; None where they cannot be worked on like that.

    Of parameters that several processes share, this process's part: nobody else need know.
    """
    both = (theta, log_sigma2)
    if theta.dtype != log_sigma2.dtype or theta.dtype not in (torch.float32, torch.float64):
        return None
    if not all(value.is_leaf and value.requires_grad for value in both):
        return None
    for value in both:
        if value.grad is None:
            value.grad = torch.zeros_like(value)
    four = [value.detach() for value in (*both, theta.grad, log_sigma2.grad) if value is not None]
    if any(getattr(value, "placements", None) != getattr(theta, "placements", None) for value in four):
        return None
    mine = [value.to_local() if hasattr(value, "to_local") else value for value in four]
    if mine[1].shape != mine[0].shape and not has_one_value_per_row(mine[1], mine[0]):
        return None
    order = sorted(range(theta.dim()), key=mine[0].stride, reverse=True)  # channels last: the channels
    there = [value.permute(order) for value in mine]
    return there if all(value.is_contiguous() for value in there) else None


def _of_parts(theta: Any, log_sigma2: Any, prior: Prior) -> Tensor:
    """The KL of weights of which this process holds some."""
    from torch.distributed.tensor import DTensor, Partial

    kinds = [Partial() if placement.is_shard() else placement for placement in theta.placements]
    if log_sigma2.shape[0] == theta.shape[0]:
        noise = log_sigma2.to_local()
    else:  # one for all rows: everyone needs it, and everyone has a part of its gradient
        noise = log_sigma2.full_tensor(grad_placements=kinds)
    own = kl(theta.to_local(), noise, prior)
    whole = DTensor.from_local(own.detach(), theta.device_mesh, kinds).full_tensor()
    return own + (whole - own.detach())


class _KL(torch.autograd.Function):
    """Value and both gradients in one go over the weights; autograd through the formula takes about ten times as long.

    With r = d KL / d log alpha:  d KL / d log_sigma2 = r  and  d KL / d theta = -2 r / theta.
    """

    @staticmethod
    def forward(ctx: Any, theta: Tensor, log_sigma2: Tensor, prior: Prior) -> Tensor:
        mean, noise = _wide(theta), _wide(log_sigma2)
        slope = torch.empty_like(mean)
        total = mean.new_zeros((), dtype=torch.float64 if mean.device.type == "cpu" else mean.dtype)
        with torch.autocast(theta.device.type, enabled=False):
            for means, noises, slopes in _parts(mean, noise.clamp_max(80.0), slope):  # e^80 is finite in float32
                found, value = _terms(prior, _square(means), noises)
                slopes.copy_(found)
                total += value()
        ctx.save_for_backward(mean, slope)
        ctx.dtypes, ctx.noise_shape = (theta.dtype, log_sigma2.dtype), log_sigma2.shape
        return total.to(mean.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        mean, slope = ctx.saved_tensors
        pull, along = torch.empty_like(mean), mean.new_empty(ctx.noise_shape)
        with torch.autocast(mean.device.type, enabled=False):
            for theta, r, to_theta, to_noise in _parts(mean, slope, pull, along):
                own = to_noise.shape == r.shape
                scaled = torch.mul(r, grad, out=to_noise) if own else r * grad
                if not own:
                    torch.sum(scaled, 1, keepdim=True, out=to_noise)
                # -2 r theta / theta^2, with the guard of log_alpha: it is 0 at theta = 0, as by symmetry it must be
                torch.mul(theta, scaled, out=to_theta).div_(_square(theta)).mul_(-2)
        return pull.to(ctx.dtypes[0]), along.to(ctx.dtypes[1]), None


def _wide(value: Tensor) -> Tensor:
    return value.detach().to(torch.promote_types(value.dtype, torch.float32)).contiguous()


def _square(theta: Tensor) -> Tensor:
    return torch.addcmul(theta.new_full((), torch.finfo(theta.dtype).tiny), theta, theta)


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same piece of each; whole rows where one of the tensors holds one number a row."""
    count = max(tensors[0].numel(), 1)
    size = CHUNK_SIZE if tensors[0].device.type == "cpu" else count
    if all(tensor.numel() == tensors[0].numel() for tensor in tensors):
        return zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)
    rows = max(size * len(tensors[0]) // count, 1)
    return zip(*(tensor.view(len(tensor), -1).split(rows) for tensor in tensors), strict=True)


def _terms(prior: Prior, square: Tensor, log_sigma2: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """Slope d KL / d log alpha of some weights, and what gives the sum of their KL; `square` is theta^2, guarded.

    The same as `kl_slope` and `kl_elements` (a test holds them together) in as few operations as torch has for it, and
    without log1p and softplus, which cost ten times a logarithm:
    log(1 + 1/alpha) = log(theta^2 + sigma^2) - log sigma^2.
    """
    if prior == "log_uniform_exact":
        ratio = log_sigma2 - square.log()
        return kl_slope(ratio, prior), lambda: kl_elements(ratio, prior).sum()
    both = log_sigma2.exp()
    both = both.add_(square) if both.shape == square.shape else both + square
    copies = square.numel() // max(log_sigma2.numel(), 1)

    def ard() -> Tensor:
        return 0.5 * (both.log().sum() - log_sigma2.sum() * copies)

    if prior == "ard":
        return (square / both).mul_(-0.5), ard  # 1 / alpha over 1 + 1 / alpha is 1 / (1 + alpha)
    gate = torch.add(square.new_full((), K2), log_sigma2 - square.log(), alpha=K3).sigmoid_()
    rest = torch.addcmul(gate, gate, gate, value=-1).mul_(-K1 * K3)
    return rest.addcdiv_(square, both, value=-0.5), lambda: ard() + K1 * (gate.numel() - gate.sum())
