"""Training: stages of optimisation, the choice of the threshold, checkpoints that resume bit-exactly."""

from .loop import Interrupted
from .scoring import Score, evaluate, evaluate_baked
from .stages import Compressed, compress

__all__ = ["Compressed", "Interrupted", "Score", "compress", "evaluate", "evaluate_baked"]
