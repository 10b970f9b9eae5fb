"""The mathematics of one random weight: log alpha, the KL from each prior, its slope.  Pure tensor functions.

A weight is N(theta, sigma^2), and alpha = sigma^2 / theta^2 its noise-to-signal ratio.  In the order in which to read:

- `choices`: the names of the priors and estimators, and the default threshold.
- `elements`: log alpha, the KL and its slope, weight by weight; `dawson` has the special functions of the exact KL.
- `divergence`: the KL of a whole tensor, with its gradient in closed form.
- `evidence`: what removing a weight does to the model evidence.
- `log_normal`: another posterior, for gates between 0 and 1.
"""

from .choices import DEFAULT_THRESHOLD, Estimator, GateFamily, Prior, Variance
from .divergence import add_kl_gradient_, backpropagate_kl, kl
from .elements import K1, K2, K3, group_log_alpha, has_one_value_per_row, kl_elements, kl_slope, log_alpha, snr
from .evidence import REASONS_AGAINST_EVIDENCE, evidence_gain
from .log_normal import (
    PRIOR_LOG_ALPHA,
    draw_log_normal,
    log_normal_evidence_gain,
    log_normal_kl,
    log_normal_log_alpha,
    log_normal_mean,
)

__all__ = [
    "DEFAULT_THRESHOLD",
    "K1",
    "K2",
    "K3",
    "PRIOR_LOG_ALPHA",
    "REASONS_AGAINST_EVIDENCE",
    "Estimator",
    "GateFamily",
    "Prior",
    "Variance",
    "add_kl_gradient_",
    "backpropagate_kl",
    "draw_log_normal",
    "evidence_gain",
    "group_log_alpha",
    "has_one_value_per_row",
    "kl",
    "kl_elements",
    "kl_slope",
    "log_alpha",
    "log_normal_evidence_gain",
    "log_normal_kl",
    "log_normal_log_alpha",
    "log_normal_mean",
    "snr",
]
