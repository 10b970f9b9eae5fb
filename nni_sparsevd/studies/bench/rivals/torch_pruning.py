"""Pruners of Torch-Pruning on whole channels, as its documentation uses them: importance, pruner, step."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from ....recipe import Stage
from ..arena import Arena, Batch, cross_entropy, find_classifier
from ..cutting import cut_to
from .distillation import with_distillation
from .entry import Decide, Prepare, Pruned, Rival, without_preparation

ROUNDS = 5
"""Rounds of cutting and training in turn."""
GatherData = Callable[[nn.Module, Batch, Any, Any], None]
"""(network, batch, pruner, importance): gathers what an importance needs before it scores channels."""


def gather_nothing(model: nn.Module, batch: Batch, pruner: Any, importance: Any) -> None:
    """Most importances score by the weights alone."""


def gather_gradients(model: nn.Module, batch: Batch, pruner: Any, importance: Any) -> None:
    """Taylor scores by weights and gradients."""
    cross_entropy(batch, model).backward()


def gather_gradients_by_sample(model: nn.Module, batch: Batch, pruner: Any, importance: Any) -> None:
    """Hessian scores by squared gradients of single samples."""
    importance.zero_grad()
    for loss in F.cross_entropy(model(batch[0]), batch[1], reduction="none"):
        model.zero_grad()
        loss.backward(retain_graph=True)
        importance.accumulate_grad(model)


def gather_fisher_matrix(model: nn.Module, batch: Batch, pruner: Any, importance: Any) -> None:
    """OBDC scores by a Kronecker-factored Fisher matrix."""
    importance._prepare_model(model, pruner)
    cross_entropy(batch, model).backward()
    importance.step()
    importance._rm_hooks(model)


@dataclass(frozen=True)
class Method:
    """An importance, the pruner that goes with it, and the data that the importance needs."""

    title: str
    """The method as the tables call it."""
    importance: Callable[[int], Any]
    """Number of classes -> importance."""
    pruner: Callable[..., Any] = tp.pruner.BasePruner
    """Builds the pruner."""
    gather_data: GatherData = gather_nothing
    """Called before the importance scores channels."""
    batches: int = 1
    """Batches that it is called with, one after the other."""

    def make(self, arena: Arena, model: nn.Module, ratio: float) -> tuple[Any, Any]:
        """(pruner, importance) that would cut the share `ratio` of the channels, ranked over all layers."""
        importance = self.importance(arena.data.num_classes)
        pruner = self.pruner(
            model,
            arena.example,
            importance=importance,
            pruning_ratio=ratio,
            global_pruning=True,
            round_to=arena.host_round_to,
            ignored_layers=[find_classifier(model)],
            # Mutable defaults of Torch-Pruning: without these, pruners share the entries of each other's networks.
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        )
        return pruner, importance

    def cut(self, arena: Arena, model: nn.Module, target: float, step: int) -> nn.Module:
        """The network cut to `target` MACs; what the importance needs is gathered on the batches from `step` on."""

        def cut_at(ratio: float) -> nn.Module:
            small = copy.deepcopy(model)  # the search tries many ratios on the same network
            pruner, importance = self.make(arena, small, ratio)
            for batch_step in range(step, step + self.batches):
                self.gather_data(small, arena.lay_out(arena.batch(batch_step), small), pruner, importance)
            pruner.step()
            small.zero_grad()  # gradients that the importance has gathered are not those of training
            return small

        return cut_to(target, cut_at, arena.example[:1])[0]


def cut_at_once(method: Method) -> Prepare:
    """A rival that cuts the dense start."""

    def decide(arena: Arena, stage: Stage, level: float) -> Pruned:
        return Pruned(method.cut(arena, arena.network(), arena.dense_macs / level, 0), None, 0)

    return without_preparation(decide)


def cut_in_rounds(method: Method) -> Prepare:
    """A rival that cuts the same part of the MACs in each of several rounds, and trains between them."""

    def decide(arena: Arena, stage: Stage, level: float) -> Pruned:
        model, steps = arena.network(), arena.prune_steps // ROUNDS
        for round_ in range(ROUNDS):
            target = arena.dense_macs / level ** ((round_ + 1) / ROUNDS)
            model = method.cut(arena, model, target, round_ * steps)
            arena.train(model, stage, round_ * steps, (round_ + 1) * steps)
        return Pruned(model, None, ROUNDS * steps)

    return without_preparation(decide)


def regularize_then_cut(method: Method) -> Prepare:
    """A rival that trains with the pruner's regularizer and then cuts; one training serves all levels."""

    def prepare(arena: Arena, stage: Stage) -> Decide:
        model = arena.network()
        pruner, _ = method.make(arena, model, 0.5)
        pruner.update_regularizer()  # only once: it would set a regularizer that grows back to its start

        def after_backward(step: int) -> None:
            starts_epoch = step > 0 and step % arena.per_epoch == 0
            if starts_epoch and isinstance(pruner, tp.pruner.GrowingRegPruner):
                pruner.update_reg()
            pruner.regularize(model)

        arena.train(model, stage, 0, arena.prune_steps, after_backward=after_backward)

        def decide(level: float | None) -> Pruned:
            assert level is not None
            small = method.cut(arena, model, arena.dense_macs / level, arena.prune_steps)
            return Pruned(small, None, arena.prune_steps)

        return decide

    return prepare


SCORING = {
    "random": Method("Random", lambda _: tp.importance.RandomImportance()),
    "l1": Method("Magnitude L1", lambda _: tp.importance.GroupMagnitudeImportance(p=1)),
    "l2": Method("Magnitude L2", lambda _: tp.importance.GroupMagnitudeImportance(p=2)),
    "lamp": Method("LAMP", lambda _: tp.importance.LAMPImportance()),
    "fpgm": Method("FPGM", lambda _: tp.importance.FPGMImportance()),
    "taylor": Method("Taylor", lambda _: tp.importance.GroupTaylorImportance(), gather_data=gather_gradients),
    # Its documentation scores by one batch; small batches leave much noise in the scores.
    "taylor_10": Method(
        "Taylor over 10 batches",
        lambda _: tp.importance.GroupTaylorImportance(),
        gather_data=gather_gradients,
        batches=10,
    ),
    "hessian": Method(
        "Hessian", lambda _: tp.importance.GroupHessianImportance(), gather_data=gather_gradients_by_sample
    ),
    "obdc": Method(
        "OBDC", lambda classes: tp.importance.OBDCImportance(num_classes=classes), gather_data=gather_fisher_matrix
    ),
}
"""Methods that score the channels of a network as it is."""
REGULARIZING = {
    "bn_scale": Method("BNScale", lambda _: tp.importance.BNScaleImportance(), tp.pruner.BNScalePruner),
    "group_norm": Method("GroupNorm", lambda _: tp.importance.GroupMagnitudeImportance(p=2), tp.pruner.GroupNormPruner),
    "growing_reg": Method(
        "GrowingReg", lambda _: tp.importance.GroupMagnitudeImportance(p=2), tp.pruner.GrowingRegPruner
    ),
}
"""Methods that regularize the channels while the network trains."""
DISTILLED = ("tp_fpgm", "tp_growing_reg", "tp_l1_turns", "tp_taylor_turns")
"""Rivals that our distilled rival is compared with, which therefore have a distilled form, too."""


def _make_rivals() -> dict[str, Rival]:
    """All rivals by name; names and titles stand in published results, and "turns" in them are our rounds."""
    rivals: dict[str, Rival] = {}
    for name, method in SCORING.items():
        rivals[f"tp_{name}"] = Rival(method.title, "Torch-Pruning", cut_at_once(method))
    for name, method in SCORING.items():
        title = f"{method.title}, in {ROUNDS} turns"
        rivals[f"tp_{name}_turns"] = Rival(title, "Torch-Pruning", cut_in_rounds(method))
    for name, method in REGULARIZING.items():
        rivals[f"tp_{name}"] = Rival(method.title, "Torch-Pruning", regularize_then_cut(method))
    for name in DISTILLED:
        plain = rivals[name]
        title = f"{plain.title}, tuned with distillation"
        rivals[f"{name}_distilled"] = replace(plain, title=title, prepare=with_distillation(plain.prepare))
    return rivals


RIVALS = _make_rivals()
