"""Pruners of NNI on whole channels, as its documentation uses them: dependency groups, pruner, ModelSpeedup."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

from nni.compression.pruning import (
    AGPPruner,
    FPGMPruner,
    L1NormPruner,
    L2NormPruner,
    LinearPruner,
    SlimPruner,
    TaylorPruner,
)
from nni.compression.speedup import ModelSpeedup
from nni.compression.utils import auto_set_denpendency_group_ids
from torch import nn

from ....masks import apply_masks_
from ....plugins.nni.exact import parameter_masks
from ....recipe import Stage
from ..arena import Arena
from ..cutting import cut_to
from .entry import Prepare, Pruned, Rival, by_level
from .nni import Make, compressed, movement, nothing, one_epoch, scheduled, whole


def whole_channels(arena: Arena, model: nn.Module, ratio: float) -> list[dict[str, Any]]:
    """The config_list: coupled output channels of every layer but the classifier, at one ratio."""
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    entry = {"op_names": layers[:-1], "sparse_ratio": ratio, "granularity": "out_channel"}
    with contextlib.redirect_stdout(io.StringIO()):  # both print what they come upon
        found: list[dict[str, Any]] = auto_set_denpendency_group_ids(model, [entry], arena.example)
    return found


def small(arena: Arena, model: nn.Module, masks: Any) -> nn.Module:
    """What NNI makes of a masked model."""
    apply_masks_(model, parameter_masks(masks))
    with contextlib.redirect_stdout(io.StringIO()):
        faster: nn.Module = ModelSpeedup(model, arena.example, masks).speedup_model()
    return faster


def ratio_for(arena: Arena, target: float) -> float:
    """The ratio at which every layer's share leaves `target` MACs: what is left depends on it alone."""

    def cut(ratio: float) -> nn.Module:
        model = arena.network()
        pruner = L1NormPruner(model, whole_channels(arena, model, ratio))
        _, masks = pruner.compress()
        pruner.unwrap_model()
        return small(arena, model, masks)

    return cut_to(target, cut, arena.example[:1])[1]


def rival(make: Make, steps_of: Callable[[Arena], int]) -> Prepare:
    """An entry that prunes whole channels with the pruner that `make` builds, within `steps_of` steps."""

    def decide(arena: Arena, stage: Stage, level: float) -> Pruned:
        model, steps = arena.network(), steps_of(arena)
        entries = whole_channels(arena, model, ratio_for(arena, arena.dense_macs / level))
        return Pruned(small(arena, model, compressed(make, arena, stage, model, entries, steps)), None, steps)

    return by_level(decide)


RIVALS = {
    "nni_l1": Rival("L1Norm", "NNI", rival(lambda m, e, v, _: L1NormPruner(m, e, v), nothing)),
    "nni_l2": Rival("L2Norm", "NNI", rival(lambda m, e, v, _: L2NormPruner(m, e, v), nothing)),
    "nni_fpgm": Rival("FPGM", "NNI", rival(lambda m, e, v, _: FPGMPruner(m, e, v), nothing)),
    "nni_l1_linear": Rival("L1Norm, Linear", "NNI", rival(scheduled(LinearPruner, L1NormPruner), whole)),
    "nni_l1_agp": Rival("L1Norm, AGP", "NNI", rival(scheduled(AGPPruner, L1NormPruner), whole)),
    "nni_slim": Rival("Slim", "NNI", rival(lambda m, e, v, n: SlimPruner(m, e, v, n), whole)),
    "nni_taylor": Rival("TaylorFO", "NNI", rival(lambda m, e, v, n: TaylorPruner(m, e, v, n), one_epoch)),
    "nni_movement": Rival("Movement", "NNI", rival(movement, whole)),
}
