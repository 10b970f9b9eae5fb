"""Sparse variational dropout on whole channels, to a budget in MACs, with the plugin for Torch-Pruning."""

from typing import Literal

from ....plugins.torch_pruning import SparseVDPruner
from ....recipe import Stage
from ....regularize import Budget, SparseVDSettings
from ....settings import PosteriorSettings
from ..arena import Arena, find_classifier
from .distillation import with_distillation
from .entry import Prepare, Pruned, Rival, without_preparation

Granularity = Literal["weight", "gate", "both"]


def press_to_budget(granularity: Granularity) -> Prepare:
    """A rival that presses the KL until the network can be cut to the budget, and then cuts it."""

    def decide(arena: Arena, stage: Stage, level: float) -> Pruned:
        model = arena.network()
        settings = SparseVDSettings(
            n_train=len(arena.data.train),
            learning_rate=stage.learning_rate,
            posterior=PosteriorSettings(granularity=granularity, estimator="weight"),
        )
        pruner = SparseVDPruner(
            model,
            arena.example,
            settings=settings,
            ignored_layers=[find_classifier(model)],
            training_steps=arena.prune_steps,
            budget=Budget(fraction=1 / level),
        )

        def after_backward(step: int) -> None:
            if step % arena.per_epoch == 0:
                pruner.update_regularizer()
            pruner.regularize(model)

        arena.train(model, stage, 0, arena.prune_steps, after_backward=after_backward)
        pruner.step()
        return Pruned(model, None, arena.prune_steps)

    return without_preparation(decide)


RIVALS = {
    "vd_gate": Rival("Sparse VD, gates", "ours", press_to_budget("gate")),
    "vd_gate_distilled": Rival(
        "Sparse VD, gates, tuned with distillation", "ours", with_distillation(press_to_budget("gate"))
    ),
    "vd_both": Rival("Sparse VD, weights and gates", "ours", press_to_budget("both")),
    "vd_weight": Rival("Sparse VD, weights", "ours", press_to_budget("weight")),
}
