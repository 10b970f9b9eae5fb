"""The mathematics of one Gaussian weight: log alpha, the KL from each prior, its slope.  Pure tensor functions."""

from .choices import DEFAULT_THRESHOLD, Estimator, Prior, Variance
from .divergence import add_kl_gradient_, backward_, kl
from .elements import K1, K2, K3, group_log_alpha, kl_elements, kl_slope, log_alpha, one_a_row, snr

__all__ = [
    "DEFAULT_THRESHOLD",
    "K1",
    "K2",
    "K3",
    "Estimator",
    "Prior",
    "Variance",
    "add_kl_gradient_",
    "backward_",
    "group_log_alpha",
    "kl",
    "kl_elements",
    "kl_slope",
    "log_alpha",
    "one_a_row",
    "snr",
]
