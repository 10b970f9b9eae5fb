"""Pruners of NNI on single weights, through its documented usage: config_list, evaluator, schedule, compress."""

from collections.abc import Callable
from typing import Any

import nni
import torch
from nni.compression import TorchEvaluator
from nni.compression.pruning import AGPPruner, LevelPruner, LinearPruner, MovementPruner, SlimPruner, TaylorPruner
from torch import nn

from ....errors import SettingError
from ....masks import apply_masks_
from ....plugins.nni import enable
from ....plugins.nni.exact import parameter_masks
from ....recipe import Stage
from ..arena import Arena
from .entry import Prepare, Pruned, Rival, without_preparation

UPDATES = 20
"""How often a schedule prunes again."""
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
"""NNI builds the optimizer of a rival again and again, from its class."""
ConfigList = list[dict[str, Any]]
"""NNI's settings of a pruner: which layers, which targets, how sparse."""
MakePruner = Callable[[nn.Module, ConfigList, TorchEvaluator, int], Any]
"""(network, config_list, evaluator, steps) -> pruner."""


def make_evaluator(arena: Arena, stage: Stage, model: nn.Module) -> TorchEvaluator:
    """The arena's batches and steps, as NNI wants them."""

    def train(
        model: nn.Module,
        optimizers: torch.optim.Optimizer,
        training_step: Callable[..., Any],
        lr_schedulers: Any = None,
        max_steps: int | None = None,
        max_epochs: int | None = None,
    ) -> None:
        if max_steps is None:
            max_steps = (max_epochs or arena.league.prune_epochs) * arena.per_epoch
        arena.train(model, stage, 0, max_steps, optim=optimizers, loss=training_step)

    if stage.optimizer not in OPTIMIZERS:
        raise SettingError(f"NNI's rivals train with one of {', '.join(OPTIMIZERS)}, not with {stage.optimizer!r}")
    optimizer = nni.trace(OPTIMIZERS[stage.optimizer])
    traced_optimizer = optimizer(model.parameters(), lr=stage.learning_rate, weight_decay=stage.weight_decay)
    return TorchEvaluator(train, traced_optimizer, arena.loss)


def prune_weights(make_pruner: MakePruner, steps_of: Callable[[Arena], int], *, globally: bool) -> Prepare:
    """A rival that prunes single weights with a pruner of NNI.

    Args:
        make_pruner: Builds the pruner.
        steps_of: How many steps the pruner takes.
        globally: Whether the level is one share of all layers together, or the share of each layer.
    """

    def decide(arena: Arena, stage: Stage, level: float) -> Pruned:
        enable()  # NNI's own pruners need the repairs
        model, steps = arena.network(), steps_of(arena)
        config_list = config_single_weights(model, level, globally)
        masks = parameter_masks(compute_nni_masks(make_pruner, arena, stage, model, config_list, steps))
        apply_masks_(model, masks)
        return Pruned(model, masks, steps)

    return without_preparation(decide)


def compute_nni_masks(
    make_pruner: MakePruner, arena: Arena, stage: Stage, model: nn.Module, config_list: ConfigList, steps: int
) -> Any:
    """Train `model` with a pruner of NNI, unwrap it, and return NNI's masks."""
    pruner = make_pruner(model, config_list, make_evaluator(arena, stage, model), steps)
    # These two have their number of steps from the constructor, and one without steps trains nothing.
    knows_its_steps = steps == 0 or isinstance(pruner, TaylorPruner | SlimPruner)
    _, masks = pruner.compress() if knows_its_steps else pruner.compress(steps, None)
    pruner.unwrap_model()
    return masks


def config_single_weights(model: nn.Module, level: float, globally: bool) -> ConfigList:
    """The config_list: blocks of one weight each, where a pruner's own default would be whole channels."""
    dims: dict[str, int] = {}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            dims[type(module).__name__] = module.weight.dim()
    shared: dict[str, Any] = {"target_names": ["weight"], "sparse_ratio": level}
    if globally:
        shared["global_group_id"] = 0
    return [{"op_types": [kind], "granularity": [1] * weight_dims, **shared} for kind, weight_dims in dims.items()]


# Pruners.  They name their arguments so that each line below can be compared with NNI's documentation.


def make_level(model: nn.Module, config_list: ConfigList, evaluator: TorchEvaluator, steps: int) -> Any:
    """The smallest weights, at once."""
    return LevelPruner(model, config_list, evaluator)


def make_taylor(model: nn.Module, config_list: ConfigList, evaluator: TorchEvaluator, steps: int) -> Any:
    """The weights with the smallest products of weight and gradient, gathered in `steps` steps."""
    return TaylorPruner(model, config_list, evaluator, steps)


def make_movement(model: nn.Module, config_list: ConfigList, evaluator: TorchEvaluator, steps: int) -> Any:
    """The weights that move to zero; the schedule warms up for a tenth of the steps and cools down over the last."""
    return MovementPruner(model, config_list, evaluator, max(steps // 10, 1), max(9 * steps // 10, 2))


def make_scheduled(schedule: Any, pruner: Any) -> MakePruner:
    """A pruner in one of NNI's schedules, which ends after nine tenths of the steps."""

    def make(model: nn.Module, config_list: ConfigList, evaluator: TorchEvaluator, steps: int) -> Any:
        interval = max(int(0.9 * steps) // UPDATES, 1)
        return schedule(pruner(model, config_list, evaluator), interval, UPDATES, evaluator)

    return make


# Steps that pruners take.


def no_steps(arena: Arena) -> int:
    """Of a pruner that looks at the weights alone."""
    return 0


def one_epoch(arena: Arena) -> int:
    """Of a pruner that gathers gradients."""
    return arena.per_epoch


def all_steps(arena: Arena) -> int:
    """Of a pruner that decides while the network trains."""
    return arena.prune_steps


LINEAR = make_scheduled(LinearPruner, LevelPruner)
AGP = make_scheduled(AGPPruner, LevelPruner)
RIVALS = {
    "nni_level": Rival("Level", "NNI", prune_weights(make_level, no_steps, globally=False)),
    "nni_level_global": Rival("Level, global", "NNI", prune_weights(make_level, no_steps, globally=True)),
    "nni_level_linear": Rival("Level, global, Linear", "NNI", prune_weights(LINEAR, all_steps, globally=True)),
    "nni_level_agp": Rival("Level, global, AGP", "NNI", prune_weights(AGP, all_steps, globally=True)),
    "nni_taylor": Rival("TaylorFO", "NNI", prune_weights(make_taylor, one_epoch, globally=False)),
    "nni_movement": Rival("Movement", "NNI", prune_weights(make_movement, all_steps, globally=False)),
}
