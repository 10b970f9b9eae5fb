"""Training: stages of optimisation, the choice of the threshold, checkpoints that resume bit-exactly."""

from .compress import Compressed, compress
from .evaluate import Score, evaluate, evaluate_baked
from .loop import Interrupted

__all__ = ["Compressed", "Interrupted", "Score", "compress", "evaluate", "evaluate_baked"]
