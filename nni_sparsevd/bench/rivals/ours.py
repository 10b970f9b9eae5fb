"""Sparse variational dropout on single weights, in its variants."""

import copy
from collections.abc import Callable

from torch import nn

from ...convert import bake_, sparsify_
from ...masks import compute_masks
from ...nn import kl
from ...recipe import Estimator, Masking, Posterior, Prior, Stage
from ...training.survivors import silence_
from ...training.threshold import threshold_curve
from ..arena import Arena, Between
from .entry import Decide, Pruned, Rival

HELD_OUT = Masking(threshold="held_out")


def weights(
    estimator: Estimator, prior: Prior = "log_uniform", noisy: bool = False
) -> Callable[[Arena, Stage], Decide]:
    """A posterior on every weight; one training serves all levels.

    With `noisy`, the survivors are tuned as they were trained, with noise and KL, in all steps that are left.
    """

    def enter(arena: Arena, stage: Stage) -> Decide:
        model = sparsify_(arena.network(), Posterior(estimator=estimator, prior=prior), example_inputs=arena.example)

        def pull(model: nn.Module) -> Between:
            return lambda step: (kl(model) / len(arena.data.train)).backward()

        arena.train(model, stage, 0, arena.prune_steps, between=pull(model))

        def decide(level: float | None) -> Pruned:
            chosen = Masking(ratio=level) if level is not None else HELD_OUT.model_copy(
                update={"threshold": threshold_curve(model, HELD_OUT, arena.data, arena.example).chosen}
            )  # fmt: skip
            masks = compute_masks(model, chosen, example_inputs=arena.example)
            tuned = copy.deepcopy(model)
            if noisy:
                silence_(tuned, masks)
                arena.train(tuned, stage, arena.prune_steps, arena.steps, between=pull(tuned), masks=masks)
            return Pruned(bake_(tuned, masks), masks, arena.steps if noisy else arena.prune_steps)

        return decide

    return enter


RIVALS = {
    "vd_local": Rival("Sparse VD, local reparameterisation", "ours", weights("local"), automatic=True),
    "vd_weight": Rival("Sparse VD, one weight sample", "ours", weights("weight"), automatic=True),
    "vd_weight_noisy": Rival(
        "Sparse VD, one weight sample, tuned with noise", "ours", weights("weight", noisy=True), automatic=True
    ),
    "vd_local_noisy": Rival(
        "Sparse VD, local reparameterisation, tuned with noise", "ours", weights("local", noisy=True), automatic=True
    ),
    "vd_ard": Rival("Sparse VD, empirical Bayes", "ours", weights("local", "ard"), automatic=True),
}
