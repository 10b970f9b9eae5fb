"""The choices that the mathematics knows, by name, and the threshold that it starts from."""

from typing import Literal

Prior = Literal["log_uniform", "log_uniform_exact", "ard"]
Estimator = Literal["local", "local_bf16", "local_detached", "weight"]
Variance = Literal["weight", "channel"]

DEFAULT_THRESHOLD = 3.0
"""Log alpha from which a weight or channel is removed, unless the settings say otherwise.

The noise then has e^3 = 20 times the power of the signal, as in binary dropout that drops 95 % of the weights.
"""
