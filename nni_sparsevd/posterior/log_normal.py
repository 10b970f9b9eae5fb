"""The truncated log-normal posterior of a gate under a truncated log-uniform prior: structured Bayesian pruning.

Neklyudov, Molchanov, Ashukha, Vetrov: Structured Bayesian Pruning via Log-Normal Multiplicative Noise, NeurIPS 2017
(below: SBP).  log z is N(mu, sigma^2) restricted to [a, b] = [-20, 0], so that 0 < z <= 1, and its prior is uniform
there.  With alpha = (a - mu) / sigma and beta = (b - mu) / sigma, the normal has the mass Z = Phi(beta) - Phi(alpha) in
the interval.  (As in the paper; the noise-to-signal ratio, alpha elsewhere in this package, is spelt out here.)

Why these are not further functions of log alpha beside `kl_elements` and `kl_slope`: the family is another one.  Its KL
depends on mu and sigma separately, its mean is not mu, and its noise-to-signal ratio is not sigma^2 / mu^2.

Everything is computed in float64, from logarithms of Phi on the side of its lower tail.  A gate that keeps its channel
has mu at the right end of the interval or beyond, where the difference of two Phi near 1 would round to 0.
"""

import math

import torch
from torch import Tensor

LOG_LOWER, LOG_UPPER = -20.0, 0.0
"""a and b, the interval of log z in SBP's experiments and in BMRS's."""
PRIOR_LOG_ALPHA = math.log((LOG_UPPER - LOG_LOWER) / 2 - 1)
"""Log noise-to-signal ratio of a gate whose posterior is the prior, 2.2.

The log-uniform distribution on (0, 1], to e^-20 exactly, has E[z] = 1 / C and E[z^2] = 1 / 2C with C = b - a.
"""


def log_normal_mean(mu: Tensor, log_sigma2: Tensor) -> Tensor:
    """E[z] of each gate, the factor of its channel when nothing is sampled.

    Args:
        mu: Locations of log z, any shape.
        log_sigma2: Logarithm of the squared scales of log z, in the shape of `mu`.

    Returns:
        Numbers between 0 and 1, in the shape and type of `mu`.
    """
    return _log_moment(*_bound(mu, log_sigma2), 1).exp().to(mu.dtype)


def log_normal_log_alpha(mu: Tensor, log_sigma2: Tensor) -> Tensor:
    """Logarithm of the noise-to-signal ratio Var z / E[z]^2 of each gate, -2 log SNR, which SBP prunes by.

    Args:
        mu: Locations of log z, any shape.
        log_sigma2: Logarithm of the squared scales of log z, in the shape of `mu`.

    Returns:
        A tensor in the shape of `mu`, float32 or wider, at least -60.
    """
    bounded = _bound(mu, log_sigma2)
    # Var z / E[z]^2 = E[z^2] / E[z]^2 - 1.  Rounding hides what is below 10^-12: it may even turn negative there.
    excess = _log_moment(*bounded, 2) - 2 * _log_moment(*bounded, 1)
    ratio = torch.expm1(excess.clamp_min(1e-26))
    return ratio.log().to(torch.promote_types(mu.dtype, torch.float32))


def log_normal_kl(mu: Tensor, log_sigma2: Tensor) -> Tensor:
    """KL of each gate from the log-uniform prior in closed form, 0 where the posterior is the prior.

        log(b - a) - log(2 pi e sigma^2) / 2 - log Z - (alpha phi(alpha) - beta phi(beta)) / (2 Z)

    Args:
        mu: Locations of log z, any shape.
        log_sigma2: Logarithm of the squared scales of log z, in the shape of `mu`.

    Returns:
        Nats, a float64 tensor in the shape of `mu`.
    """
    mu, log_sigma2 = _bound(mu, log_sigma2)
    alpha, beta = _ends(mu, log_sigma2)
    log_mass = _log_mass(alpha, beta)
    slant = alpha * _density_over(alpha, log_mass) - beta * _density_over(beta, log_mass)
    return math.log(LOG_UPPER - LOG_LOWER) - 0.5 * (math.log(2 * math.pi * math.e) + log_sigma2) - log_mass - slant / 2


def log_normal_evidence_gain(mu: Tensor, log_sigma2: Tensor) -> Tensor:
    """Change in log evidence when the prior of each gate is concentrated at the lower end, z = e^-20: BMRS_N.

    Wright, Igel, Selvan: BMRS, NeurIPS 2024, eq. 8, with the reduced prior log-normal at mu~ = a, in the limit of a
    vanishing sigma~: log(b - a) plus the log density of log z at a.

    Args:
        mu: Locations of log z, any shape.
        log_sigma2: Logarithm of the squared scales of log z, in the shape of `mu`.

    Returns:
        Nats, a float64 tensor in the shape of `mu`; 0 where the posterior is the prior.
    """
    mu, log_sigma2 = _bound(mu, log_sigma2)
    alpha, beta = _ends(mu, log_sigma2)
    log_density = -0.5 * (math.log(2 * math.pi) + log_sigma2 + alpha.square()) - _log_mass(alpha, beta)
    return math.log(LOG_UPPER - LOG_LOWER) + log_density


def draw_log_normal(mu: Tensor, log_sigma2: Tensor, uniform: Tensor) -> Tensor:
    """Draw gates by the inverse of their distribution function.

    Args:
        mu: Locations of log z.
        log_sigma2: Logarithm of the squared scales of log z, in the shape of `mu`.
        uniform: Numbers from (0, 1), in a shape that `mu` is broadcast to.

    Returns:
        z in the shape of `uniform` and the type of `mu`, differentiable in `mu` and `log_sigma2`.
    """
    bounded_mu, bounded_log_sigma2 = _bound(mu, log_sigma2)
    lower, upper, mirrored = _turn_to_lower_tail(*_ends(bounded_mu, bounded_log_sigma2))
    level = torch.where(mirrored, 1 - uniform.double(), uniform.double())
    # Not `ndtr`, which is 0 below about -8.
    below = torch.special.log_ndtr(lower).exp()
    share = below + level * (torch.special.log_ndtr(upper).exp() - below)
    # Beyond 37 standard deviations the masses round to 0: z is then the end of the interval, and the KL alone moves mu.
    deviation = torch.special.ndtri(share.clamp(torch.finfo(torch.float64).tiny, 1 - 1e-16))
    log_z = bounded_mu + (0.5 * bounded_log_sigma2).exp() * torch.where(mirrored, -deviation, deviation)
    return log_z.clamp(LOG_LOWER, LOG_UPPER).exp().to(mu.dtype)


def _bound(mu: Tensor, log_sigma2: Tensor) -> tuple[Tensor, Tensor]:
    """Both parameters in float64, within bounds beyond which rounding would win.

    1. A scale of e^7 is the prior to six digits, and one of e^-20 is a constant.
    2. A normal whose mean lies 1,000 scales outside the interval is, inside, an exponential at its end.
    """
    log_sigma2 = log_sigma2.double().clamp(-40.0, 14.0)
    reach = 1e3 * (0.5 * log_sigma2).exp()
    return mu.double().maximum(LOG_LOWER - reach).minimum(LOG_UPPER + reach), log_sigma2


def _ends(mu: Tensor, log_sigma2: Tensor) -> tuple[Tensor, Tensor]:
    """The ends of the interval in standard deviations from mu: alpha and beta."""
    inverse = (-0.5 * log_sigma2).exp()
    return (LOG_LOWER - mu) * inverse, (LOG_UPPER - mu) * inverse


def _turn_to_lower_tail(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An interval of the same mass whose middle is not above 0, and whether it is the mirror image."""
    mirrored = alpha + beta > 0
    return torch.where(mirrored, -beta, alpha), torch.where(mirrored, -alpha, beta), mirrored


def _log_mass(alpha: Tensor, beta: Tensor) -> Tensor:
    """log(Phi(beta) - Phi(alpha))."""
    lower, upper, _ = _turn_to_lower_tail(alpha, beta)
    # What is left out has no mass, and the slope of log Phi would overflow there.
    lower = lower.maximum(upper - 1e5)
    log_upper: Tensor = torch.special.log_ndtr(upper)
    log_share: Tensor = torch.log(-torch.expm1(torch.special.log_ndtr(lower) - log_upper))
    return log_upper + log_share


def _log_moment(mu: Tensor, log_sigma2: Tensor, power: int) -> Tensor:
    """Log E[z^power]: the normal under the integral is that of log z, moved by power * sigma^2."""
    alpha, beta = _ends(mu, log_sigma2)
    sigma = (0.5 * log_sigma2).exp()
    moved = _log_mass(alpha - power * sigma, beta - power * sigma)
    return power * mu + 0.5 * power**2 * log_sigma2.exp() + moved - _log_mass(alpha, beta)


def _density_over(point: Tensor, log_mass: Tensor) -> Tensor:
    """phi(point) / Z."""
    return (-0.5 * point.square() - 0.5 * math.log(2 * math.pi) - log_mass).exp()
