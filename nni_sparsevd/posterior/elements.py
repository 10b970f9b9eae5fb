"""The mathematics of a Gaussian weight posterior N(theta, sigma^2): log alpha, three KL terms, relevance.

Pure tensor functions.  log alpha = log sigma^2 - log theta^2; a weight drowns in its own noise as it grows.  Every KL
here is shifted by a constant so that it goes to 0 as log alpha -> infinity, where the prior has won.

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


def has_one_value_per_row(noise: Tensor, theta: Tensor) -> bool:
    """Whether sigma^2, or its logarithm, is one number for each row of theta."""
    return noise.shape[:1] == theta.shape[:1] and noise.numel() == len(noise)


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
    return -t * dawson_function(t)


def _t(log_alpha: Tensor) -> Tensor:
    """|theta| / (sqrt(2) sigma)."""
    return (-0.5 * (log_alpha + math.log(2))).exp()
