"""Sparse variational dropout on whole channels, to a budget in MACs, with the plugin for Torch-Pruning."""

from typing import Literal

from ....plugins.torch_pruning import Budget, SparseVDPruner, SparseVDSettings
from ....recipe import Stage
from ....settings import PosteriorSettings
from ..arena import Arena, classifier
from .distillation import distilled
from .entry import Prepare, Pruned, Rival, by_level

Granularity = Literal["weight", "gate", "both"]


def budgeted(granularity: Granularity) -> Prepare:
    """Press the KL until the network is as small as asked, then cut."""

    def decide(arena: Arena, stage: Stage, level: float) -> Pruned:
        model = arena.network()
        settings = SparseVDSettings(
            n_train=len(arena.data.train), learning_rate=stage.learning_rate,
            posterior=PosteriorSettings(granularity=granularity, estimator="weight"),
        )  # fmt: skip
        pruner = SparseVDPruner(
            model, arena.example, settings=settings, ignored_layers=[classifier(model)],
            training_steps=arena.prune_steps, budget=Budget(fraction=1 / level),
        )  # fmt: skip

        def between(step: int) -> None:
            if step % arena.per_epoch == 0:
                pruner.update_regularizer()
            pruner.regularize(model)

        arena.train(model, stage, 0, arena.prune_steps, between=between)
        pruner.step()
        return Pruned(model, None, arena.prune_steps)

    return by_level(decide)


RIVALS = {
    "vd_gate": Rival("Sparse VD, gates", "ours", budgeted("gate")),
    "vd_gate_distilled": Rival("Sparse VD, gates, tuned with distillation", "ours", distilled(budgeted("gate"))),
    "vd_both": Rival("Sparse VD, weights and gates", "ours", budgeted("both")),
    "vd_weight": Rival("Sparse VD, weights", "ours", budgeted("weight")),
}
