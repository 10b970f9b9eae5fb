"""The choices that the mathematics knows, by name, and the threshold that it starts from."""

from typing import Literal

Prior = Literal["log_uniform", "log_uniform_exact", "ard"]
Estimator = Literal["local", "local_bf16", "local_detached", "weight"]
Variance = Literal["weight", "channel"]

DEFAULT_THRESHOLD = 3.0
"""Log alpha from which a weight or channel is removed, unless the settings say otherwise.

The paper's choice (section 5): alpha = e^3 = 20 is a binary dropout rate of alpha / (1 + alpha) = 0.95, so such a
weight is almost nothing but noise, and removing it hardly changes the output.
"""
