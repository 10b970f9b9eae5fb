"""Training: stages of optimization, the choice of the threshold, checkpoints that resume bit-exactly."""

from .compression import compress
from .environment import describe_environment
from .masked_posterior import mask_posterior_
from .network_files import read_network_
from .optimizer import build_optimizer, set_learning_rate
from .schedule import derive_seed, kl_coefficient_at, learning_rate_at
from .scoring import Score, evaluate, evaluate_baked
from .signals import Interrupted
from .stages import Compressed
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
