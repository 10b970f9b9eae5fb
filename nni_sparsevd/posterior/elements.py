"""The mathematics of a Gaussian weight posterior N(theta, sigma^2): log alpha, three KL terms, relevance.

Pure tensor functions.  log alpha = log sigma^2 - log theta^2: the larger it is, the more of the weight is noise.  Every
KL here is shifted by a constant so that it goes to 0 as log alpha -> infinity, where posterior and prior agree.

Molchanov, Ashukha, Vetrov: Variational Dropout Sparsifies Deep Neural Networks, ICML 2017 (below: the paper).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .choices import Prior
from .dawson import dawson_function, dawson_integral

K1, K2, K3 = 0.63576, 1.87320, 1.48695
"""Constants of the paper's approximation (eq. 14)."""
LINEAR_BELOW = -40.0
"""Log alpha below which the exact KL is a straight line of slope -1/2, to all digits of float64.

Its tail is -slope = t Dawson(t) = 1/2 + 1 / (4 t^2) + ..., and here 1 / t^2 = 2 alpha < 1e-17.
"""


def log_alpha(theta: Tensor, log_sigma2: Tensor) -> Tensor:
    """Logarithm of the noise-to-signal ratio of each weight: log alpha = log sigma^2 - log theta^2.

    Args:
        theta: Means of the weights, any shape.
        log_sigma2: Logarithm of the variances, in the shape of `theta` or broadcastable to it.

    Returns:
        A tensor in the shape of `theta`, float32 or wider; finite also where theta is 0 (at most log_sigma2 + 87 in
        float32).
    """
    theta, log_sigma2 = _widen(theta), _widen(log_sigma2)
    return log_sigma2 - (theta.square() + torch.finfo(theta.dtype).tiny).log()


def group_log_alpha(theta: Tensor, log_sigma2: Tensor, dim: int | list[int]) -> Tensor:
    """Log alpha of all weights of a channel together: log(sum sigma^2 / sum theta^2).

    Args:
        theta: Means of the weights, any shape.
        log_sigma2: Logarithm of the variances, in the shape of `theta` or broadcastable to it.
        dim: The dimensions to sum over.

    Returns:
        A tensor in the shape of `theta` without the dimensions `dim`, float32 or wider.
    """
    theta, log_sigma2 = _widen(theta), _widen(log_sigma2)
    signal = theta.square().sum(dim) + torch.finfo(theta.dtype).tiny
    return log_sigma2.expand_as(theta).logsumexp(dim) - signal.log()


def _widen(values: Tensor) -> Tensor:
    """The values in float32 or wider: in float16 the guard of a logarithm, the smallest number, would be 6e-5, and
    would hide every weight below 0.008.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def snr(theta: Tensor, log_sigma2: Tensor) -> Tensor:
    """Signal-to-noise ratio |theta| / sigma of each weight; log alpha = -2 log snr.

    Args:
        theta: Means of the weights, any shape.
        log_sigma2: Logarithm of the variances, in the shape of `theta` or broadcastable to it.

    Returns:
        A tensor in the shape of `theta`.
    """
    return theta.abs() * (-0.5 * log_sigma2).exp()


def has_one_value_per_row(shared: Tensor, theta: Tensor) -> bool:
    """Whether `shared` (sigma^2 or its logarithm) holds exactly one number for each row of `theta`."""
    return shared.shape[:1] == theta.shape[:1] and shared.numel() == len(shared)


def kl_elements(log_alpha: Tensor, prior: Prior = "log_uniform") -> Tensor:
    """KL of each weight from the prior.

    - log_uniform: the paper's approximation, eq. 14 (error below 0.009).
    - log_uniform_exact: 2 * integral of Dawson's function over [0, t], t = 1 / sqrt(2 alpha); the integral of
      `kl_slope`.
    - ard: empirical Bayes, log(1 + 1/alpha) / 2 (Kharitonov et al. 2018).

    Args:
        log_alpha: Log alpha of each weight, any shape.
        prior: The prior.

    Returns:
        A tensor in the shape of `log_alpha`, in nats, never negative; 0 at infinity.
    """
    if prior == "log_uniform":
        return K1 * torch.sigmoid(-K2 - K3 * log_alpha) + 0.5 * F.softplus(-log_alpha)
    if prior == "ard":
        return 0.5 * F.softplus(-log_alpha)
    # On the line t is not needed, and further out it would overflow.
    off_line = log_alpha.clamp_min(LINEAR_BELOW)
    return 2 * dawson_integral(_t(off_line)) + 0.5 * (off_line - log_alpha)


def kl_slope(log_alpha: Tensor, prior: Prior = "log_uniform") -> Tensor:
    """Derivative of the KL of each weight with respect to its log alpha, in closed form.

    For log_uniform_exact it is -t Dawson(t), t = |theta| / (sqrt(2) sigma) = 1 / sqrt(2 alpha) (Hron et al. 2017,
    eq. 8); for the other priors it is the derivative of the formula in `kl_elements`.

    Args:
        log_alpha: Log alpha of each weight, any shape.
        prior: The prior.

    Returns:
        A tensor in the shape of `log_alpha`, never positive.
    """
    if prior == "log_uniform":
        sigmoid = torch.sigmoid(-K2 - K3 * log_alpha)
        return -K1 * K3 * sigmoid * (1 - sigmoid) - 0.5 * torch.sigmoid(-log_alpha)
    if prior == "ard":
        return -0.5 * torch.sigmoid(-log_alpha)
    t = _t(log_alpha.clamp_min(LINEAR_BELOW))
    return -t * dawson_function(t)


def _t(log_alpha: Tensor) -> Tensor:
    """Signal-to-noise ratio over sqrt(2): t = |theta| / (sqrt(2) sigma) = 1 / sqrt(2 alpha)."""
    return (-0.5 * (log_alpha + math.log(2))).exp()
