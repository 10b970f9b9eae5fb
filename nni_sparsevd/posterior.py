"""The mathematics of a Gaussian weight posterior N(theta, sigma^2): log alpha, three KL terms, relevance.

Pure tensor functions.  log alpha = log sigma^2 - log theta^2; a weight drowns in its own noise as it grows.  Every KL
here is shifted by a constant so that it goes to 0 as log alpha -> infinity, where the prior has won.

Molchanov, Ashukha, Vetrov: Variational Dropout Sparsifies Deep Neural Networks, ICML 2017 (below: the paper).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .dawson import dawson, dawson_integral
from .recipe import Prior

K1, K2, K3 = 0.63576, 1.87320, 1.48695
"""Constants of the paper's approximation (eq. 14)."""


def log_alpha(theta: Tensor, log_sigma2: Tensor) -> Tensor:
    """Log sigma^2 - log theta^2, elementwise, float32 or wider; finite for theta = 0 (at most log_sigma2 + 87)."""
    # float16's smallest number, 6e-5, would hide every weight below 0.008
    wide = torch.promote_types(theta.dtype, torch.float32)
    theta, log_sigma2 = theta.to(wide), log_sigma2.to(wide)
    return log_sigma2 - (theta.square() + torch.finfo(theta.dtype).tiny).log()


def group_log_alpha(theta: Tensor, log_sigma2: Tensor, dim: int | list[int]) -> Tensor:
    """log(sum sigma^2 / sum theta^2) over `dim`: the log alpha of everything summed over, as one."""
    signal = theta.square().sum(dim) + torch.finfo(theta.dtype).tiny
    return log_sigma2.expand_as(theta).logsumexp(dim) - signal.log()


def snr(theta: Tensor, log_sigma2: Tensor) -> Tensor:
    """Signal-to-noise ratio |theta| / sigma; log alpha = -2 log snr."""
    return theta.abs() * (-0.5 * log_sigma2).exp()


def kl(theta: Tensor, log_sigma2: Tensor, prior: Prior = "log_uniform") -> Tensor:
    """Sum of the KL of every weight from the prior: a scalar, with the closed-form gradient in theta and log_sigma2.

    `log_sigma2` has the shape of theta, or 1 in some dimensions: one for all weights along them.  Computed in float32
    or wider also under autocast.  The gradient with respect to theta is finite at 0.

    Of parameters that several processes share (FSDP2), each works on its part: the gradient is that part's, the value
    that of the whole.
    """
    if hasattr(theta, "to_local"):  # a DTensor, whose module takes a second to import
        return _of_parts(theta, log_sigma2, prior)
    if log_sigma2.shape != theta.shape and not one_a_row(log_sigma2, theta):
        log_sigma2 = log_sigma2.expand_as(theta)
    return _KL.apply(theta, log_sigma2, prior)  # type: ignore[no-any-return]


def one_a_row(noise: Tensor, theta: Tensor) -> bool:
    """Whether sigma^2, or its logarithm, is one number for each row of theta."""
    return noise.shape[:1] == theta.shape[:1] and noise.numel() == len(noise)


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


def kl_elements(log_alpha: Tensor, prior: Prior = "log_uniform") -> Tensor:
    """KL of each weight.

    log_uniform: the paper's approximation, eq. 14 (error below 0.009).
    log_uniform_exact: 2 * integral of Dawson over [0, t], t = 1 / sqrt(2 alpha); the integral of `kl_slope`.
    ard: empirical Bayes, log(1 + 1/alpha) / 2 (Kharitonov et al. 2018).
    """
    if prior == "log_uniform":
        return K1 * torch.sigmoid(-K2 - K3 * log_alpha) + 0.5 * F.softplus(-log_alpha)
    if prior == "ard":
        return 0.5 * F.softplus(-log_alpha)
    return 2 * dawson_integral(_t(log_alpha))


def kl_slope(log_alpha: Tensor, prior: Prior = "log_uniform") -> Tensor:
    """D KL / d log alpha of each weight: never positive, in closed form.

    log_uniform_exact: -t Dawson(t), t = |theta| / (sqrt(2) sigma) = 1 / sqrt(2 alpha) (Hron et al. 2017, eq. 8).
    """
    if prior == "log_uniform":
        gate = torch.sigmoid(-K2 - K3 * log_alpha)
        return -K1 * K3 * gate * (1 - gate) - 0.5 * torch.sigmoid(-log_alpha)
    if prior == "ard":
        return -0.5 * torch.sigmoid(-log_alpha)
    t = _t(log_alpha)
    return -t * dawson(t)


def _t(log_alpha: Tensor) -> Tensor:
    """|theta| / (sqrt(2) sigma)."""
    return (-0.5 * (log_alpha + math.log(2))).exp()


CACHED = 1 << 16
"""Weights worked on at a time on a CPU, so that a dozen passes over them stay in its cache."""


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
            for part in _parts(mean, noise, slope):
                total += _value_and_slope(prior, *part)
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
    return theta.square().add_(torch.finfo(theta.dtype).tiny)


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same piece of each; whole rows where one of the tensors holds one number a row."""
    count = max(tensors[0].numel(), 1)
    size = CACHED if tensors[0].device.type == "cpu" else count
    if all(tensor.numel() == tensors[0].numel() for tensor in tensors):
        return zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)
    rows = max(size * len(tensors[0]) // count, 1)
    return zip(*(tensor.view(len(tensor), -1).split(rows) for tensor in tensors), strict=True)


def _value_and_slope(prior: Prior, theta: Tensor, log_sigma2: Tensor, slope: Tensor) -> Tensor:
    """Sum of the KL of some weights; writes d KL / d log alpha of each to `slope`.

    The same as `kl_elements` and `kl_slope` (a test holds them together), with temporaries reused and without log1p
    and softplus, which cost ten times a logarithm:  log(1 + 1/alpha) = log(theta^2 + sigma^2) - log sigma^2.
    """
    square = _square(theta)
    if prior == "log_uniform_exact":
        ratio = square.log_().neg_().add_(log_sigma2)
        slope.copy_(kl_slope(ratio, prior))
        return kl_elements(ratio, prior).sum()
    noise = log_sigma2.clamp_max(80.0)  # its exponential stays finite in float32
    both = noise.exp()
    both = both.add_(square) if both.shape == square.shape else both + square
    torch.div(square, both, out=slope).mul_(-0.5)  # 1 / (1 + alpha)
    value = 0.5 * (both.log_().sum() - noise.sum() * (square.numel() // max(noise.numel(), 1)))
    if prior == "log_uniform":
        gate = torch.sub(K3 * log_sigma2 + K2, square.log_(), alpha=K3).sigmoid_()
        value += K1 * (gate.numel() - gate.sum())
        slope.addcmul_(gate, gate - 1, value=K1 * K3)
    return value
