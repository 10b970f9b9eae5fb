"""Sparse variational dropout on single weights, in its variants."""

import copy
from collections.abc import Callable

from ...convert import bake_, sparsify_
from ...masks import compute_masks
from ...nn import kl
from ...recipe import Estimator, Masking, Posterior, Prior, Stage
from ...training.threshold import threshold_curve
from ..arena import Arena
from .entry import Decide, Pruned, Rival

HELD_OUT = Masking(threshold="held_out")


def weights(estimator: Estimator, prior: Prior = "log_uniform") -> Callable[[Arena, Stage], Decide]:
    """A posterior on every weight; one training serves all levels."""

    def enter(arena: Arena, stage: Stage) -> Decide:
        model = sparsify_(arena.network(), Posterior(estimator=estimator, prior=prior), example_inputs=arena.example)
        pulled = 1 / len(arena.data.train)

        def between(step: int) -> None:
            (pulled * kl(model)).backward()

        arena.train(model, stage, 0, arena.prune_steps, between=between)

        def decide(level: float | None) -> Pruned:
            chosen = Masking(ratio=level) if level is not None else HELD_OUT.model_copy(
                update={"threshold": threshold_curve(model, HELD_OUT, arena.data, arena.example).chosen}
            )  # fmt: skip
            masks = compute_masks(model, chosen, example_inputs=arena.example)
            return Pruned(bake_(copy.deepcopy(model), masks), masks, arena.prune_steps)

        return decide

    return enter


RIVALS = {
    "vd_local": Rival("Sparse VD, local reparameterisation", "ours", weights("local"), automatic=True),
    "vd_weight": Rival("Sparse VD, one weight sample", "ours", weights("weight"), automatic=True),
    "vd_ard": Rival("Sparse VD, empirical Bayes", "ours", weights("local", "ard"), automatic=True),
}
