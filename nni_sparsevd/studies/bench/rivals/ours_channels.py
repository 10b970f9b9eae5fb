"""Sparse variational dropout on whole channels, to a budget in MACs."""

import torch

from ....plugins.torch_pruning import SparseVDPruner
from ....recipe import SparseStage, Stage
from ....regularize import Budget, GradualPruner, SparseVDSettings
from ....settings import PosteriorSettings
from ....training import build_optimizer, rebuild_optimizer
from ..arena import Arena, find_classifier
from .distillation import with_distillation
from .entry import Prepare, Pruned, Rival, without_preparation


def press_to_budget(posterior: PosteriorSettings) -> Prepare:
    """A rival that presses the KL until the network can be cut to the budget, and then cuts it.

    It plays with the plugin for Torch-Pruning.

    Args:
        posterior: What is learned.
    """

    def decide(arena: Arena, stage: Stage, level: float) -> Pruned:
        model = arena.network()
        settings = SparseVDSettings(
            n_train=len(arena.data.train),
            learning_rate=stage.learning_rate,
            posterior=posterior,
        )
        pruner = SparseVDPruner(
            model,
            arena.example,
            settings=settings,
            ignored_layers=[find_classifier(model)],
            training_steps=arena.prune_steps,
            round_to=arena.host_round_to,
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


def remove_gradually(arena: Arena, stage: Stage, level: float) -> Pruned:
    """A rival whose channels leave a few at a time while it trains, as `compress` meets a budget."""
    model = arena.network()
    stage = SparseStage(**stage.model_dump())  # gates learn at the rate that is the default of `compress`
    pruner = GradualPruner(
        model,
        arena.example,
        Budget(fraction=1 / level),
        n_train=len(arena.data.train),
        steps=arena.prune_steps,
        round_to=arena.league.round_to,
    )

    def after_backward(step: int) -> None:
        pruner.learn(arena.league.data.batch_size)
        pruner.regularize()

    def after_step(steps_done: int, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        if not pruner.remove_(optimizer):
            return optimizer
        return rebuild_optimizer(optimizer, model, stage)

    arena.train(
        model,
        stage,
        0,
        arena.prune_steps,
        optim=build_optimizer(model, stage),
        after_backward=after_backward,
        after_step=after_step,
    )
    return Pruned(pruner.finish(), None, arena.prune_steps)


GATES = PosteriorSettings(granularity="gate")
BOTH = PosteriorSettings(granularity="both", estimator="weight")
WEIGHTS = PosteriorSettings(granularity="weight", estimator="weight")
LOG_NORMAL = PosteriorSettings(granularity="gate", gate="log_normal", threshold=0.0)
RIVALS = {
    "vd_gradual": Rival("Sparse VD, gates, removed gradually", "ours", without_preparation(remove_gradually)),
    "vd_gate": Rival("Sparse VD, gates", "ours", press_to_budget(GATES)),
    "vd_sbp": Rival("Structured Bayesian pruning, log-normal gates", "ours", press_to_budget(LOG_NORMAL)),
    "vd_gate_distilled": Rival(
        "Sparse VD, gates, tuned with distillation", "ours", with_distillation(press_to_budget(GATES))
    ),
    "vd_both": Rival("Sparse VD, weights and gates", "ours", press_to_budget(BOTH)),
    "vd_weight": Rival("Sparse VD, weights", "ours", press_to_budget(WEIGHTS)),
}
