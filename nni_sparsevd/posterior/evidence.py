"""How the evidence changes when a weight is fixed at zero: Bayesian model reduction for the posteriors of this package.

Wright, Igel, Selvan: BMRS: Bayesian Model Reduction for Structured Pruning, NeurIPS 2024 (below: BMRS).

Model reduction compares the evidence p(D) under the prior of the training with the evidence p~(D) under a prior p~ that
is concentrated at zero, without training again (BMRS, eq. 5):

    Delta F = log p~(D) - log p(D) = log (integral of p(D | w) p~(w) dw) - log p(D)

A weight goes where Delta F >= 0.  The two priors are:

- *The original prior*: log-uniform on e^a <= |w| <= e^b, the improper prior of Sparse VD made proper.  Only the length
  C = b - a of its range counts, as long as the posterior lies inside, and only by its logarithm.
- *The reduced prior*: a point mass at zero, which is what BMRS_N approximates (BMRS, section 4.2.1) and what removal
  does to the weight.

**Why not the formulas of BMRS.**  Eq. 6 reads the likelihood off the ratio q / p, and has closed forms where q is a
truncated log-normal: eq. 8 with a log-normal p~ (BMRS_N), eq. 10 with a log-uniform p~ (BMRS_U).  Here q is a Gaussian,
whose density at zero is finite, while p grows like 1 / |w|.  So q / p is 0 at w = 0 whatever the data say, and
E_q[p~ / p] falls to 0 with the width of p~ for every weight, noise included: the Gaussian cannot follow the pole of the
true posterior.  The likelihood has to come from somewhere else.  It comes from where training has come to rest:

1. Near q the log likelihood is taken as -lambda (w - m)^2 / 2 + constant.  The lower bound
   -lambda ((theta - m)^2 + sigma^2) / 2 - KL has its maximum in theta and sigma^2 at the posterior.  With
   r = d KL / d log alpha this says

       lambda = -2 r / sigma^2        m = theta (1 + alpha)

2. The reduced evidence is the likelihood at zero: log p~(D) = -lambda m^2 / 2 = r (1 + alpha)^2 / alpha.
3. For log p(D) stands the lower bound: r (1 + alpha) - KL.  The difference of the two is

       Delta F = KL + (1 + 1 / alpha) r

For a Gaussian prior nothing in these steps is approximate, and Delta F is the closed form of Friston and Penny (2011),
the density ratio log q(0) - log p(0).  For the log-uniform prior the bound lies below log p(D), for noise most of all:
Delta F is then the change of the objective that was maximized, and an upper bound on that of the evidence.  A factor on
the KL (`kl_coefficient`, `kl_weight`) multiplies lambda and Delta F alike, and changes no decision.
"""

import math

import numpy as np
from torch import Tensor

from .choices import Prior
from .elements import kl_elements, kl_slope

LOG_RANGE = 20.0
"""C, the length of the log-uniform prior's range in nats.

BMRS (section 5) and Neklyudov et al. (2017) take a range from e^-20 to 1.
"""
SHIFT = 0.5 * (math.log(math.pi) + 1 + np.euler_gamma)
"""What the KL from the log-uniform prior is smaller by than log C, for noise alone.

The KL from 1 / (2 C |w|) is E log |w| + log 2 C - log(2 pi e sigma^2) / 2, and for theta = 0 the mean E log |w| is
log sigma - (gamma + log 2) / 2.  In `kl_elements` that limit is 0.
"""
LOWEST_LOG_ALPHA = -80.0
"""Below it Delta F is less than -10^34; the clamp keeps it finite."""
REASONS_AGAINST_EVIDENCE: dict[str, str] = {
    "ard": "it is fitted to each weight, so no other prior has more evidence, and nothing would go",
}
"""Prior -> why no decision can be made with the change in evidence."""


def evidence_gain(log_alpha: Tensor, prior: Prior = "log_uniform") -> Tensor:
    """Change in log evidence when each weight is fixed at zero: KL + (1 + 1 / alpha) * dKL / dlog alpha.

    The original prior is log-uniform on a range of `LOG_RANGE` nats, or, for "ard", the Gaussian of the best variance;
    the reduced prior is a point mass at zero.  The derivation is at the top of this file.  Weights are independent in
    posterior and prior, so that the gain of removing several is the sum of their gains.

    Args:
        log_alpha: Log alpha of each weight, any shape.
        prior: The prior that the posterior was trained with.

    Returns:
        Nats, as a float64 tensor in the shape of `log_alpha`.  They grow with log alpha, from minus infinity to
        log(LOG_RANGE) - 1.36; for "ard" to 0.
    """
    wide = log_alpha.double().clamp_min(LOWEST_LOG_ALPHA)
    constant = 0.0 if prior == "ard" else math.log(LOG_RANGE) - SHIFT
    return kl_elements(wide, prior) + constant + (1 + (-wide).exp()) * kl_slope(wide, prior)
