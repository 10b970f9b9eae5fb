"""Training: stages of optimisation, the choice of the threshold, checkpoints that resume bit-exactly."""

from .environment import describe_environment
from .loop import Interrupted
from .masked_posterior import mask_posterior_
from .network_files import read_network_
from .optimizer import build_optimizer, set_learning_rate
from .schedule import derive_seed, kl_coefficient_at, learning_rate_at
from .scoring import Score, evaluate, evaluate_baked
from .stages import Compressed, compress
from .threshold import THRESHOLD_GRID, ThresholdCurve, choose_threshold

__all__ = [
    "THRESHOLD_GRID",
    "Compressed",
    "Interrupted",
    "Score",
    "ThresholdCurve",
    "build_optimizer",
    "choose_threshold",
    "compress",
    "derive_seed",
    "describe_environment",
    "evaluate",
    "evaluate_baked",
    "kl_coefficient_at",
    "learning_rate_at",
    "mask_posterior_",
    "read_network_",
    "set_learning_rate",
]
