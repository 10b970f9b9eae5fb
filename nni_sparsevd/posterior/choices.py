"""The choices that the mathematics knows, by name."""

from typing import Literal

Prior = Literal["log_uniform", "log_uniform_exact", "ard"]
Estimator = Literal["local", "local_bf16", "local_detached", "weight"]
Variance = Literal["weight", "channel"]
