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
    """Sum of the KL of every weight from the prior, with the gradient in closed form.

    The result is computed in float32 or wider, under autocast too.  The gradient with respect to `theta` is finite
    where `theta` is 0.  Parameters may be split among processes (FSDP2): the value is then that of the whole tensor,
    and each process gets the gradient of its own part.

    Args:
        theta: Means of the weights, any shape.
        log_sigma2: Logarithm of the variances, in the shape of `theta`, or with size 1 in some dimensions: one variance
            for all weights along these.
        prior: The prior.

    Returns:
        A scalar, in nats.
    """
    if hasattr(theta, "to_local"):  # isinstance(theta, DTensor) would import its module, which takes a second
        return _kl_of_sharded(theta, log_sigma2, prior)
    if log_sigma2.shape != theta.shape and not has_one_value_per_row(log_sigma2, theta):
        log_sigma2 = log_sigma2.expand_as(theta)
    return _KL.apply(theta, log_sigma2, prior)  # type: ignore[no-any-return]


def add_kl_gradient_(theta: Tensor, log_sigma2: Tensor, weight: float, prior: Prior = "log_uniform") -> None:
    """Add the gradient of `weight * kl(theta, log_sigma2, prior)` to the `.grad` of both parameters.

    The same as `(weight * kl(theta, log_sigma2, prior)).backward()` for about half of its cost: neither the value nor
    the graph of autograd is made.  Tensors for which that is impossible (frozen, not leaves, in half precision, of
    different memory layouts) go through `backward` instead.

    Args:
        theta: Means of the weights, any shape.
        log_sigma2: Logarithm of the variances, in the shape of `theta`, or with size 1 in some dimensions.
        weight: Factor on the gradient; with 0 nothing is done.
        prior: The prior.
    """
    if not weight:
        return
    views = _views_of_memory(theta, log_sigma2)
    if views is None:
        backpropagate_kl(lambda: kl(theta, log_sigma2, prior), weight)
        return
    with torch.no_grad(), torch.autocast(theta.device.type, enabled=False):
        for thetas, log_variances, theta_grads, log_variance_grads in _split_into_chunks(*views):
            square = _guarded_square(thetas)
            slope, _ = _slope_and_sum(prior, square, log_variances)
            # d KL / d theta = -2 slope / theta.  Written as theta / theta^2 with the guard of log_alpha in the
            # denominator, it is 0 at theta = 0, as it must be by symmetry.
            theta_grads.addcmul_(thetas / square, slope, value=-2 * weight)
            per_row = log_variance_grads.shape != slope.shape
            log_variance_grads.add_(slope.sum(1, keepdim=True) if per_row else slope, alpha=weight)


def backpropagate_kl(compute_kl: Callable[[], Tensor], weight: float) -> None:
    """Backpropagate from `weight` times a KL, also under `torch.no_grad`; do nothing where all tensors are frozen."""
    with torch.enable_grad():
        objective = weight * compute_kl()
    if objective.requires_grad:
        objective.backward()  # type: ignore[no-untyped-call]


def _views_of_memory(theta: Tensor, log_sigma2: Tensor) -> list[Tensor] | None:
    """Both parameters and both gradients, each as a contiguous view that can be written into; None if there is none.

    Why each condition is needed:

    1. One type of at least 32 bits: the computation runs in the parameters' own memory, without a wider copy.
    2. Leaves that learn: other tensors have no `.grad` to add to.
    3. The same placements: of parameters that are split among processes, each process works on its own part, so the
       parts must lie side by side.
    4. One order of dimensions in memory: chunks of the four views must hold the same weights.
    """
    parameters = (theta, log_sigma2)
    if theta.dtype != log_sigma2.dtype or theta.dtype not in (torch.float32, torch.float64):
        return None
    if not all(parameter.is_leaf and parameter.requires_grad for parameter in parameters):
        return None
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    tensors = [value.detach() for value in (*parameters, theta.grad, log_sigma2.grad) if value is not None]
    placements = getattr(theta, "placements", None)
    if any(getattr(tensor, "placements", None) != placements for tensor in tensors):
        return None
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    local_theta, local_log_sigma2 = local[0], local[1]
    if local_log_sigma2.shape != local_theta.shape and not has_one_value_per_row(local_log_sigma2, local_theta):
        return None
    # Dimensions by falling stride: a tensor that is channels last becomes contiguous, too.
    order = sorted(range(theta.dim()), key=local_theta.stride, reverse=True)
    views = [tensor.permute(order) for tensor in local]
    return views if all(view.is_contiguous() for view in views) else None


def _kl_of_sharded(theta: Any, log_sigma2: Any, prior: Prior) -> Tensor:
    """The KL of weights that are split among processes, with the gradient of this process's part."""
    from torch.distributed.tensor import DTensor, Partial

    kinds = [Partial() if placement.is_shard() else placement for placement in theta.placements]
    if log_sigma2.shape[0] == theta.shape[0]:
        local_log_sigma2 = log_sigma2.to_local()
    else:  # one variance for all rows: every process needs it, and each computes a part of its gradient
        local_log_sigma2 = log_sigma2.full_tensor(grad_placements=kinds)
    own = kl(theta.to_local(), local_log_sigma2, prior)
    whole = DTensor.from_local(own.detach(), theta.device_mesh, kinds).full_tensor()
    return own + (whole - own.detach())  # the value of the whole, the gradient of this part


class _KL(torch.autograd.Function):
    """Value and both gradients in one pass over the weights; autograd through the formula takes ten times as long.

    With r = d KL / d log alpha:  d KL / d log_sigma2 = r  and  d KL / d theta = -2 r / theta.
    """

    @staticmethod
    def forward(ctx: Any, theta: Tensor, log_sigma2: Tensor, prior: Prior) -> Tensor:
        wide_theta = _widen(theta)
        wide_log_sigma2 = _widen(log_sigma2).clamp_max(80.0)  # e^80 is finite in float32
        slope = torch.empty_like(wide_theta)
        on_cpu = wide_theta.device.type == "cpu"
        total = wide_theta.new_zeros((), dtype=torch.float64 if on_cpu else wide_theta.dtype)
        with torch.autocast(theta.device.type, enabled=False):
            for thetas, log_variances, slopes in _split_into_chunks(wide_theta, wide_log_sigma2, slope):
                chunk_slope, compute_sum = _slope_and_sum(prior, _guarded_square(thetas), log_variances)
                slopes.copy_(chunk_slope)
                total += compute_sum()
        ctx.save_for_backward(wide_theta, slope)
        ctx.dtypes, ctx.log_sigma2_shape = (theta.dtype, log_sigma2.dtype), log_sigma2.shape
        return total.to(wide_theta.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        theta, slope = ctx.saved_tensors
        theta_grad, log_sigma2_grad = torch.empty_like(theta), theta.new_empty(ctx.log_sigma2_shape)
        with torch.autocast(theta.device.type, enabled=False):
            chunks = _split_into_chunks(theta, slope, theta_grad, log_sigma2_grad)
            for thetas, slopes, theta_grads, log_variance_grads in chunks:
                if log_variance_grads.shape == slopes.shape:
                    scaled = torch.mul(slopes, grad, out=log_variance_grads)
                else:
                    scaled = slopes * grad
                    torch.sum(scaled, 1, keepdim=True, out=log_variance_grads)
                # -2 r theta / theta^2, guarded as in add_kl_gradient_
                torch.mul(thetas, scaled, out=theta_grads).div_(_guarded_square(thetas)).mul_(-2)
        return theta_grad.to(ctx.dtypes[0]), log_sigma2_grad.to(ctx.dtypes[1]), None


def _widen(value: Tensor) -> Tensor:
    """A contiguous tensor of at least 32 bits, without gradient."""
    return value.detach().to(torch.promote_types(value.dtype, torch.float32)).contiguous()


def _guarded_square(theta: Tensor) -> Tensor:
    """theta^2 plus the smallest normal number: the guard that keeps log alpha finite."""
    return torch.addcmul(theta.new_full((), torch.finfo(theta.dtype).tiny), theta, theta)


def _split_into_chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split contiguous tensors into chunks that hold the same weights.

    The first tensor holds one number per weight.  Where another holds one number per row, chunks are whole rows.
    """
    count = max(tensors[0].numel(), 1)
    size = CHUNK_SIZE if tensors[0].device.type == "cpu" else count
    if all(tensor.numel() == tensors[0].numel() for tensor in tensors):
        return zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)
    rows = max(size * len(tensors[0]) // count, 1)
    return zip(*(tensor.view(len(tensor), -1).split(rows) for tensor in tensors), strict=True)


def _slope_and_sum(prior: Prior, square: Tensor, log_sigma2: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """Slope d KL / d log alpha of some weights, and a function that computes the sum of their KL.

    The values are those of `kl_slope` and `kl_elements` (a test compares them), in as few operations as torch has for
    them:

    1. log1p and softplus cost ten times a logarithm, so the formulas are rewritten with
       log(1 + 1/alpha) = log(theta^2 + sigma^2) - log sigma^2.
    2. The sum is a function of its own because `add_kl_gradient_` needs the slope alone.
    3. The slope is made in buffers of its own: the sum still reads `sigmoid` and `total` later.

    Args:
        prior: The prior.
        square: theta^2, guarded.
        log_sigma2: Logarithm of the variances, in the shape of `square` or one per row.
    """
    if prior == "log_uniform_exact":
        ratio = log_sigma2 - square.log()
        return kl_slope(ratio, prior), lambda: kl_elements(ratio, prior).sum()
    total = log_sigma2.exp()
    total = total.add_(square) if total.shape == square.shape else total + square  # theta^2 + sigma^2
    copies = square.numel() // max(log_sigma2.numel(), 1)

    def compute_ard_sum() -> Tensor:
        return 0.5 * (total.log().sum() - log_sigma2.sum() * copies)

    if prior == "ard":
        # 1 / alpha over 1 + 1 / alpha is 1 / (1 + alpha) = theta^2 / (theta^2 + sigma^2)
        return (square / total).mul_(-0.5), compute_ard_sum
    sigmoid = torch.add(square.new_full((), K2), log_sigma2 - square.log(), alpha=K3).sigmoid_()
    sigmoid_slope = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1).mul_(-K1 * K3)
    slope = sigmoid_slope.addcdiv_(square, total, value=-0.5)
    return slope, lambda: compute_ard_sum() + K1 * (sigmoid.numel() - sigmoid.sum())
