"""Pruners of Torch-Pruning on whole channels, as its documentation uses them: importance, pruner, step."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from ....recipe import Stage
from ..arena import Arena, Batch, classifier, cross_entropy
from ..cutting import cut_to
from .distillation import distilled
from .entry import Decide, Prepare, Pruned, Rival, by_level

ROUNDS = 5
"""Of cutting and training in turn."""
Feed = Callable[[nn.Module, Batch, Any, Any], None]
"""(network, batch, pruner, importance): what an importance needs to be told before it judges."""


def nothing(model: nn.Module, batch: Batch, pruner: Any, importance: Any) -> None:
    """Most judge by the weights alone."""


def gradient(model: nn.Module, batch: Batch, pruner: Any, importance: Any) -> None:
    """Taylor judges by weights and gradients."""
    cross_entropy(batch, model).backward()


def gradients_by_sample(model: nn.Module, batch: Batch, pruner: Any, importance: Any) -> None:
    """Hessian judges by squared gradients of single samples."""
    importance.zero_grad()
    for loss in F.cross_entropy(model(batch[0]), batch[1], reduction="none"):
        model.zero_grad()
        loss.backward(retain_graph=True)
        importance.accumulate_grad(model)


def fisher(model: nn.Module, batch: Batch, pruner: Any, importance: Any) -> None:
    """OBDC judges by a Kronecker-factored Fisher matrix."""
    importance._prepare_model(model, pruner)
    cross_entropy(batch, model).backward()
    importance.step()
    importance._rm_hooks(model)


@dataclass(frozen=True)
class Judge:
    """An importance, the pruner that goes with it, and what it has to be told."""

    importance: Callable[[int], Any]
    """Number of classes -> importance."""
    pruner: Callable[..., Any] = tp.pruner.BasePruner
    feed: Feed = nothing

    def make(self, arena: Arena, model: nn.Module, ratio: float) -> tuple[Any, Any]:
        """(pruner, importance) that would cut `ratio` of the channels, ranked over all layers."""
        importance = self.importance(arena.data.num_classes)
        pruner = self.pruner(
            model, arena.example, importance=importance, pruning_ratio=ratio, global_pruning=True,
            ignored_layers=[classifier(model)], in_channel_groups={}, out_channel_groups={}, num_heads={},
        )  # fmt: skip
        return pruner, importance

    def cut(self, arena: Arena, model: nn.Module, target: float, step: int) -> nn.Module:
        """The network cut to `target` MACs; judged on the batch of `step`."""

        def at(ratio: float) -> nn.Module:
            small = copy.deepcopy(model)
            pruner, importance = self.make(arena, small, ratio)
            self.feed(small, arena.batch(step), pruner, importance)
            pruner.step()
            small.zero_grad()
            return small

        return cut_to(target, at, arena.example[:1])[0]


def at_once(judge: Judge) -> Prepare:
    """Cut the dense start."""

    def decide(arena: Arena, stage: Stage, level: float) -> Pruned:
        return Pruned(judge.cut(arena, arena.network(), arena.dense_macs / level, 0), None, 0)

    return by_level(decide)


def in_turns(judge: Judge) -> Prepare:
    """Cut the same part of the MACs in each of several rounds, and train between them."""

    def decide(arena: Arena, stage: Stage, level: float) -> Pruned:
        model, each = arena.network(), arena.prune_steps // ROUNDS
        for turn in range(ROUNDS):
            model = judge.cut(arena, model, arena.dense_macs / level ** ((turn + 1) / ROUNDS), turn * each)
            arena.train(model, stage, turn * each, (turn + 1) * each)
        return Pruned(model, None, ROUNDS * each)

    return by_level(decide)


def regularized(judge: Judge) -> Prepare:
    """Train with the pruner's regulariser, then cut; one training serves all levels."""

    def prepare(arena: Arena, stage: Stage) -> Decide:
        model = arena.network()
        pruner, _ = judge.make(arena, model, 0.5)
        pruner.update_regularizer()  # once: it would set what grows back to its start

        def between(step: int) -> None:
            if step and step % arena.per_epoch == 0 and isinstance(pruner, tp.pruner.GrowingRegPruner):
                pruner.update_reg()
            pruner.regularize(model)

        arena.train(model, stage, 0, arena.prune_steps, between=between)

        def decide(level: float | None) -> Pruned:
            assert level is not None
            small = judge.cut(arena, model, arena.dense_macs / level, arena.prune_steps)
            return Pruned(small, None, arena.prune_steps)

        return decide

    return prepare


IMPORTANCES = {
    "random": Judge(lambda _: tp.importance.RandomImportance()),
    "l1": Judge(lambda _: tp.importance.GroupMagnitudeImportance(p=1)),
    "l2": Judge(lambda _: tp.importance.GroupMagnitudeImportance(p=2)),
    "lamp": Judge(lambda _: tp.importance.LAMPImportance()),
    "fpgm": Judge(lambda _: tp.importance.FPGMImportance()),
    "taylor": Judge(lambda _: tp.importance.GroupTaylorImportance(), feed=gradient),
    "hessian": Judge(lambda _: tp.importance.GroupHessianImportance(), feed=gradients_by_sample),
    "obdc": Judge(lambda classes: tp.importance.OBDCImportance(num_classes=classes), feed=fisher),
}
REGULARISERS = {
    "bn_scale": Judge(lambda _: tp.importance.BNScaleImportance(), tp.pruner.BNScalePruner),
    "group_norm": Judge(lambda _: tp.importance.GroupMagnitudeImportance(p=2), tp.pruner.GroupNormPruner),
    "growing_reg": Judge(lambda _: tp.importance.GroupMagnitudeImportance(p=2), tp.pruner.GrowingRegPruner),
}
NAMES = {
    "random": "Random", "l1": "Magnitude L1", "l2": "Magnitude L2", "lamp": "LAMP", "fpgm": "FPGM", "taylor": "Taylor",
    "hessian": "Hessian", "obdc": "OBDC", "bn_scale": "BNScale", "group_norm": "GroupNorm", "growing_reg": "GrowingReg",
}  # fmt: skip
RIVALS = {
    **{f"tp_{name}": Rival(NAMES[name], "Torch-Pruning", at_once(judge)) for name, judge in IMPORTANCES.items()},
    **{f"tp_{name}_turns": Rival(f"{NAMES[name]}, in {ROUNDS} turns", "Torch-Pruning", in_turns(judge))
       for name, judge in IMPORTANCES.items()},
    **{f"tp_{name}": Rival(NAMES[name], "Torch-Pruning", regularized(judge)) for name, judge in REGULARISERS.items()},
}  # fmt: skip
# what our distilled entry is to be measured against
RIVALS |= {
    f"{name}_distilled": replace(RIVALS[name], title=f"{RIVALS[name].title}, tuned with distillation",
                                 prepare=distilled(RIVALS[name].prepare))
    for name in ("tp_fpgm", "tp_growing_reg", "tp_l1_turns", "tp_taylor_turns")
}  # fmt: skip
