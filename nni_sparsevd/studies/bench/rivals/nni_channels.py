"""Pruners of NNI on whole channels, as its documentation uses them: dependency groups, pruner, ModelSpeedup."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

from nni.compression import TorchEvaluator
from nni.compression.pruning import (
    AGPPruner,
    FPGMPruner,
    L1NormPruner,
    L2NormPruner,
    LinearPruner,
    SlimPruner,
)
from nni.compression.speedup import ModelSpeedup
from nni.compression.utils import auto_set_denpendency_group_ids
from torch import nn

from ....masks import apply_masks_
from ....plugins.nni import enable
from ....plugins.nni.exact import parameter_masks
from ....recipe import Stage
from ..arena import Arena
from ..cutting import cut_to
from .entry import Prepare, Pruned, Rival, without_preparation
from .nni import (
    ConfigList,
    MakePruner,
    all_steps,
    compute_nni_masks,
    make_movement,
    make_scheduled,
    make_taylor,
    no_steps,
    one_epoch,
)


def config_channels(arena: Arena, model: nn.Module, ratio: float) -> ConfigList:
    """The config_list: coupled output channels of every layer but the classifier, at one ratio."""
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    entry = {"op_names": layers[:-1], "sparse_ratio": ratio, "granularity": "out_channel"}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints every group
        config_list: ConfigList = auto_set_denpendency_group_ids(model, [entry], arena.example)
    return config_list


def speed_up(arena: Arena, model: nn.Module, masks: Any) -> nn.Module:
    """The smaller network that NNI makes of a network and its masks."""
    apply_masks_(model, parameter_masks(masks))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints every module
        small: nn.Module = ModelSpeedup(model, arena.example, masks).speedup_model()
    return small


def find_ratio(arena: Arena, target: float) -> float:
    """The share of channels to remove from every layer so that at most `target` MACs are left.

    The number of channels that are left depends on the ratio alone, so the plainest pruner finds it for all of them.
    """

    def cut(ratio: float) -> nn.Module:
        model = arena.network()
        pruner = L1NormPruner(model, config_channels(arena, model, ratio))
        _, masks = pruner.compress()
        pruner.unwrap_model()
        return speed_up(arena, model, masks)

    return cut_to(target, cut, arena.example[:1])[1]


def prune_channels(make_pruner: MakePruner, steps_of: Callable[[Arena], int]) -> Prepare:
    """A rival that prunes whole channels with a pruner of NNI.

    Args:
        make_pruner: Builds the pruner.
        steps_of: How many steps the pruner takes.
    """

    def decide(arena: Arena, stage: Stage, level: float) -> Pruned:
        enable()  # NNI's own pruners need the repairs
        model, steps = arena.network(), steps_of(arena)
        config_list = config_channels(arena, model, find_ratio(arena, arena.dense_macs / level))
        masks = compute_nni_masks(make_pruner, arena, stage, model, config_list, steps)
        return Pruned(speed_up(arena, model, masks), None, steps)

    return without_preparation(decide)


def make_simple(pruner: Any) -> MakePruner:
    """A pruner of NNI that looks at the weights alone."""

    def make(model: nn.Module, config_list: ConfigList, evaluator: TorchEvaluator, steps: int) -> Any:
        return pruner(model, config_list, evaluator)

    return make


def make_slim(model: nn.Module, config_list: ConfigList, evaluator: TorchEvaluator, steps: int) -> Any:
    """The channels with the smallest scales, which are trained with an L1 penalty for `steps` steps."""
    return SlimPruner(model, config_list, evaluator, steps)


LINEAR = make_scheduled(LinearPruner, L1NormPruner)
AGP = make_scheduled(AGPPruner, L1NormPruner)
RIVALS = {
    "nni_l1": Rival("L1Norm", "NNI", prune_channels(make_simple(L1NormPruner), no_steps)),
    "nni_l2": Rival("L2Norm", "NNI", prune_channels(make_simple(L2NormPruner), no_steps)),
    "nni_fpgm": Rival("FPGM", "NNI", prune_channels(make_simple(FPGMPruner), no_steps)),
    "nni_l1_linear": Rival("L1Norm, Linear", "NNI", prune_channels(LINEAR, all_steps)),
    "nni_l1_agp": Rival("L1Norm, AGP", "NNI", prune_channels(AGP, all_steps)),
    "nni_slim": Rival("Slim", "NNI", prune_channels(make_slim, all_steps)),
    "nni_taylor": Rival("TaylorFO", "NNI", prune_channels(make_taylor, one_epoch)),
    "nni_movement": Rival("Movement", "NNI", prune_channels(make_movement, all_steps)),
}
