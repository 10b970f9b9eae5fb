"""Pruners of NNI on single weights, through its documented usage: config_list, evaluator, schedule, compress."""

from collections.abc import Callable
from typing import Any

import nni
import torch
from nni.compression import TorchEvaluator
from nni.compression.pruning import AGPPruner, LevelPruner, LinearPruner, MovementPruner, SlimPruner, TaylorPruner
from torch import nn

from ....masks import apply_masks_
from ....plugins.nni.exact import parameter_masks
from ....recipe import Stage
from ..arena import Arena, cross_entropy
from .entry import Prepare, Pruned, Rival, by_level

UPDATES = 20
"""How often a schedule prunes again."""
Make = Callable[[nn.Module, list[dict[str, Any]], TorchEvaluator, int], Any]
"""(network, config_list, evaluator, steps) -> pruner."""


def evaluator(arena: Arena, stage: Stage, model: nn.Module) -> TorchEvaluator:
    """The arena's batches and steps, as NNI wants them."""

    def training(
        model: nn.Module,
        optimizers: torch.optim.Optimizer,
        training_step: Callable[..., Any],
        lr_schedulers: Any = None,
        max_steps: int | None = None,
        max_epochs: int | None = None,
    ) -> None:
        steps = max_steps if max_steps is not None else (max_epochs or arena.league.prune_epochs) * arena.per_epoch
        arena.train(model, stage, 0, steps, optim=optimizers, loss=training_step)

    traced = nni.trace(torch.optim.Adam)(model.parameters(), lr=stage.learning_rate)
    return TorchEvaluator(training, traced, cross_entropy)


def rival(make: Make, globally: bool, steps_of: Callable[[Arena], int]) -> Prepare:
    """An entry that prunes single weights with the pruner that `make` builds, within `steps_of` steps."""

    def decide(arena: Arena, stage: Stage, level: float) -> Pruned:
        model, steps = arena.network(), steps_of(arena)
        found = parameter_masks(compressed(make, arena, stage, model, single_weights(model, level, globally), steps))
        apply_masks_(model, found)
        return Pruned(model, found, steps)

    return by_level(decide)


def compressed(
    make: Make, arena: Arena, stage: Stage, model: nn.Module, entries: list[dict[str, Any]], steps: int
) -> Any:
    """Masks of the pruner that `make` builds; `model` is trained with it, and unwrapped."""
    pruner = make(model, entries, evaluator(arena, stage, model), steps)
    told_before = steps == 0 or isinstance(pruner, TaylorPruner | SlimPruner)
    _, masks = pruner.compress() if told_before else pruner.compress(steps, None)
    pruner.unwrap_model()
    return masks


def single_weights(model: nn.Module, level: float, globally: bool) -> list[dict[str, Any]]:
    """The config_list: blocks of one weight each, where a pruner's own default would be whole channels."""
    found = {type(m).__name__: m.weight.dim() for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    shared = {"target_names": ["weight"], "sparse_ratio": level, **({"global_group_id": 0} if globally else {})}
    return [{"op_types": [kind], "granularity": [1] * dims, **shared} for kind, dims in found.items()]


def scheduled(schedule: Any, pruner: Any) -> Make:
    """A pruner in one of NNI's schedules, which ends after nine tenths of the steps."""
    return lambda model, entries, evaluator, steps: schedule(
        pruner(model, entries, evaluator), max(int(0.9 * steps) // UPDATES, 1), UPDATES, evaluator
    )


def movement(model: nn.Module, entries: list[dict[str, Any]], evaluator: TorchEvaluator, steps: int) -> Any:
    """Warm up for a tenth of the steps, cool down over the last."""
    return MovementPruner(model, entries, evaluator, max(steps // 10, 1), max(9 * steps // 10, 2))


def nothing(arena: Arena) -> int:
    """Steps of a pruner that looks at the weights alone."""
    return 0


def one_epoch(arena: Arena) -> int:
    """Steps of a pruner that gathers gradients."""
    return arena.per_epoch


def whole(arena: Arena) -> int:
    """All steps that there are to decide."""
    return arena.prune_steps


RIVALS = {
    "nni_level": Rival("Level", "NNI", rival(lambda m, e, v, _: LevelPruner(m, e, v), False, nothing)),
    "nni_level_global": Rival("Level, global", "NNI", rival(lambda m, e, v, _: LevelPruner(m, e, v), True, nothing)),
    "nni_level_linear": Rival("Level, global, Linear", "NNI", rival(scheduled(LinearPruner, LevelPruner), True, whole)),
    "nni_level_agp": Rival("Level, global, AGP", "NNI", rival(scheduled(AGPPruner, LevelPruner), True, whole)),
    "nni_taylor": Rival("TaylorFO", "NNI", rival(lambda m, e, v, n: TaylorPruner(m, e, v, n), False, one_epoch)),
    "nni_movement": Rival("Movement", "NNI", rival(movement, False, whole)),
}
