"""Whether the steps of the sparse stage take a gate as far as the threshold."""

import math

from accelerate.logging import get_logger

from ..recipe import Recipe
from .schedule import learning_rate_at

logger = get_logger(__name__)  # of several processes, the main one speaks


def warn_of_gates_that_cannot_arrive(recipe: Recipe, steps: int) -> None:
    """Warn, before anything is trained, where no gate can reach the threshold, so that nothing would be removed.

    Gates are compared with a threshold only where no budget and no ratio decides. Adam moves a parameter by about the
    learning rate a step at most; other optimizers have no such bound.

    Args:
        recipe: The recipe.
        steps: Steps of the sparse stage.
    """
    sparse, posterior, threshold = recipe.sparse, recipe.posterior, recipe.resolved_threshold
    learns = steps > 0 and sparse.kl_coefficient > 0 and sparse.checkpoint is None
    has_gates_alone = posterior.granularity == "gate" and posterior.gate == "gaussian"
    something_else_decides = recipe.budget.kind is not None or recipe.masks.ratio is not None
    if not (learns and has_gates_alone and "adam" in sparse.optimizer):
        return
    if something_else_decides or not isinstance(threshold, float):
        return
    travel = sparse.gate_rate * sum(learning_rate_at(sparse, step / steps) for step in range(steps))
    # From mu = 1: log sigma^2 may rise by the travel, and mu fall by it.
    if travel >= 1 or posterior.init_log_sigma2 + travel - 2 * math.log(1 - travel) >= threshold:
        return
    logger.warning(
        "sparse.epochs = %d: in %d steps a gate moves by %.2g at most, and it takes 1 to reach the threshold (log "
        "alpha %g), so nothing will be removed. Take sparse.epochs = %d or more, or sparse.gate_rate = %.2g; a budget, "
        "such as budget.macs=0.5, needs neither",
        *(sparse.epochs, steps, travel, threshold, math.ceil(sparse.epochs / travel), sparse.gate_rate / travel),
    )
