"""Training: stages of optimization, the choice of the threshold, checkpoints that resume bit-exactly.

In the order in which to read:

- `compression`: `compress`, which runs a recipe in a folder, from its beginning or from where it was interrupted.
- `stages`: dense, sparse, decision, fine-tuning, integers of eight bits; `deciding`, `finetuning` and `quantizing` have
  the later ones, and `levels` the networks of a budget of several levels.
- `run` and `stage_context`: what all stages share.
- `loop`: `StageTrainer`, the training loop of every stage, with `batches`, `schedule`, `optimizer`, `learner` (one
  process or several), `averaging` and `teacher`.
- `checkpoint`, `run_folder`, `network_files`: what is on disk.
- `scoring`, `threshold`, `sensitivity`, `mistakes`: what is measured on data.

The other files hold one small thing each, which their first line names.
"""

from .compressed import Compressed
from .compression import compress
from .environment import describe_environment, find_commit
from .heap import keep_freed_memory
from .levels import TunedLevel, find_best_accuracy
from .masked_posterior import mask_posterior_
from .memory_format import find_layer_against_channels_last
from .mistakes import Mistakes, find_mistakes
from .network_files import read_network_
from .optimizer import build_optimizer, rebuild_optimizer, set_learning_rate
from .phases import show_phase
from .schedule import derive_seed, kl_coefficient_at, learning_rate_at
from .scoring import Answers, Score, classify, evaluate, evaluate_baked
from .sensitivity import SENSITIVITY_FILE
from .signals import Interrupted
from .teacher import Teacher
from .threshold import THRESHOLD_GRID, ThresholdCurve, choose_threshold

__all__ = [
    "SENSITIVITY_FILE",
    "THRESHOLD_GRID",
    "Answers",
    "Compressed",
    "Interrupted",
    "Mistakes",
    "Score",
    "Teacher",
    "ThresholdCurve",
    "TunedLevel",
    "build_optimizer",
    "choose_threshold",
    "classify",
    "compress",
    "derive_seed",
    "describe_environment",
    "evaluate",
    "evaluate_baked",
    "find_best_accuracy",
    "find_commit",
    "find_layer_against_channels_last",
    "find_mistakes",
    "keep_freed_memory",
    "kl_coefficient_at",
    "learning_rate_at",
    "mask_posterior_",
    "read_network_",
    "rebuild_optimizer",
    "set_learning_rate",
    "show_phase",
]
