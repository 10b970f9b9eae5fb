"""What the pruner says: which granularity it has chosen, and that a posterior is untrained, unsound or collapsed."""

import logging
import warnings
from collections.abc import Mapping

from ...errors import SparseVDWarning, TrainingError
from .targets import Spaces, Values, active

logger = logging.getLogger("nni.compression.pruning.SparseVDPruner")
"""NNI shows what is logged below its own name."""
UNTRAINED = (
    "SparseVDPruner: no evaluator, and the posterior has not been trained: this is pruning by magnitude. Pass an "
    "evaluator, or train the wrapped model on loss + pruner.kl() / n_train first"
)
"""What is said before a posterior decides that has learned nothing."""


def log_defaults(defaults: Mapping[str, list[str]]) -> None:
    """Log which granularity was chosen where the config_list names none.

    Args:
        defaults: "channels" and "weights" -> the targets that they were chosen for.
    """
    for chosen, names in defaults.items():
        if not names:
            continue
        if chosen == "channels":
            meaning = "whole output channels, as in TaylorPruner and L1NormPruner; write [1] for single weights"
        else:
            meaning = "single weights, since no ratio is given; write 'out_channel' for channels, which can leave"
        named = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
        logger.info("SparseVDPruner: no granularity for %d targets (%s): %s", len(names), named, meaning)


def warn_of_earlier_masks(names: list[str]) -> None:
    """Name the modules that an earlier pruner of the chain prunes already: NNI leaves them to it, without a word.

    Args:
        names: The modules; without any there is no warning.
    """
    if names:
        warnings.warn(
            f"SparseVDPruner: an earlier pruner of the chain has masked {', '.join(names)}, and NNI masks no target "
            "twice: these masks stay. To prune further, unwrap the model, and make a new pruner for it",
            SparseVDWarning,
            stacklevel=3,
        )


def warn_of_nothing(spaces: Spaces, masks: Values) -> None:
    """Warn where the masks remove nothing at all, though no ratio or threshold of 0 asks for that."""
    targets = [entry for entry in active(spaces) if entry[2].sparse_ratio != 0 and entry[2].sparse_threshold != 0]
    if targets and all(bool((masks[name][target] == 1).all()) for name, target, _ in targets):
        warnings.warn(
            "SparseVDPruner: the masks remove nothing. No block has reached its threshold, or its ratio rounds to "
            "none: train for longer, raise kl_coefficient, or give a larger sparse_ratio",
            SparseVDWarning,
            stacklevel=2,
        )


def check_finite(log_alpha: Values) -> None:
    """Refuse a posterior that is not finite.

    Args:
        log_alpha: Log alpha of every block.

    Raises:
        TrainingError: One is NaN; the message names the targets.
    """
    unsound = []
    for name, targets in log_alpha.items():
        unsound += [f"{name}.{target}" for target, value in targets.items() if value.isnan().any()]
    if unsound:
        raise TrainingError(f"the posterior of {', '.join(unsound)} is not finite: lower the learning rates")


def warn_of_collapse(spaces: Spaces, masks: Values) -> None:
    """Name the targets of which a threshold, as opposed to a ratio, has left a single block."""
    collapsed = []
    for name, target, space in active(spaces):
        mask = masks[name][target]
        if space.sparse_threshold is not None and mask.numel() > 1 and mask.sum() <= 1:
            collapsed.append(name)
    if collapsed:
        warnings.warn(
            f"SparseVDPruner: all but one block of {', '.join(collapsed)} is removed, because its noise has outgrown "
            "its signal. If that is not what the data say: start from a trained network, warm up for longer "
            "(settings.warmup), or lower kl_coefficient",
            SparseVDWarning,
            stacklevel=2,
        )
