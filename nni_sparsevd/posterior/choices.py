"""The choices that the mathematics knows, by name, and the default threshold."""

from typing import Literal

Prior = Literal["log_uniform", "log_uniform_exact", "ard"]
"""Log-uniform with the paper's approximate KL, log-uniform with the exact KL, or empirical Bayes."""
Estimator = Literal["local", "local_bf16", "local_detached", "weight"]
"""Local reparameterization, the same with its variance in bfloat16 or without a gradient into the input, or one sample
of the weights per batch."""
Variance = Literal["weight", "channel"]
"""One sigma^2 per weight, or one for all weights of an output channel."""
GateFamily = Literal["gaussian", "log_normal"]
"""A gate's posterior: Gaussian, or log-normal on (0, 1] under a log-uniform prior (Neklyudov et al. 2017)."""

DEFAULT_THRESHOLD = 3.0
"""Log alpha from which a weight or channel is removed, unless the settings say otherwise.

The paper's choice (section 5): alpha = e^3 = 20 is a binary dropout rate of alpha / (1 + alpha) = 0.95, so such a
weight is almost nothing but noise, and removing it hardly changes the output.
"""
