"""The mathematics of one Gaussian weight: log alpha, the KL from each prior, its slope.  Pure tensor functions."""

from .choices import DEFAULT_THRESHOLD, Estimator, Prior, Variance
from .divergence import add_kl_gradient_, backpropagate_if_trainable, kl
from .elements import K1, K2, K3, group_log_alpha, has_one_value_per_row, kl_elements, kl_slope, log_alpha, snr
from .evidence import REASONS_AGAINST_EVIDENCE, evidence_gain, evidence_log_alpha

__all__ = [
    "DEFAULT_THRESHOLD",
    "K1",
    "K2",
    "K3",
    "REASONS_AGAINST_EVIDENCE",
    "Estimator",
    "Prior",
    "Variance",
    "add_kl_gradient_",
    "backpropagate_if_trainable",
    "evidence_gain",
    "evidence_log_alpha",
    "group_log_alpha",
    "has_one_value_per_row",
    "kl",
    "kl_elements",
    "kl_slope",
    "log_alpha",
    "snr",
]
