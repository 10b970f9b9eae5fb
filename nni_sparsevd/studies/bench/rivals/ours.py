"""Sparse variational dropout on single weights, in its variants."""

import copy
import math

import torch
from torch import nn

from ....convert import bake_, sparsify_
from ....masks import Masks, compute_masks
from ....nn import Variational, named_posteriors, regularize_
from ....posterior import Estimator, Prior
from ....recipe import Stage
from ....regularize import Controller
from ....settings import MaskSettings, PosteriorSettings
from ....training import choose_threshold, mask_posterior_
from ..arena import Arena, Between, Loss, cross_entropy
from .entry import Decide, Prepare, Pruned, Rival, by_level
from .noise import gaussian_dropout, noisy_weights
from .plain import gradually

PULL = 5e-4
"""Factor on the KL of a network that is cut gradually, times the share of weights that it keeps."""


def weights(estimator: Estimator, prior: Prior = "log_uniform", noisy: bool = False) -> Prepare:
    """A posterior on every weight; one training serves all levels.

    With `noisy`, the survivors are tuned as they were trained, with noise and KL, in all steps that are left.
    """

    def prepare(arena: Arena, stage: Stage) -> Decide:
        model = sparsify_(
            arena.network(), PosteriorSettings(estimator=estimator, prior=prior), example_inputs=arena.example
        )

        def pull(model: nn.Module) -> Between:
            return lambda step: regularize_(model, 1 / len(arena.data.train))

        arena.train(model, stage, 0, arena.prune_steps, between=pull(model))

        def decide(level: float | None) -> Pruned:
            if level is None:
                curve = choose_threshold(model, "held_out", MaskSettings(), arena.data, arena.example)
                chosen = MaskSettings(threshold=curve.chosen)
            else:
                chosen = MaskSettings(ratio=level)
            masks = compute_masks(model, chosen, example_inputs=arena.example)
            tuned = copy.deepcopy(model)
            if noisy:
                mask_posterior_(tuned, masks)
                arena.train(tuned, stage, arena.prune_steps, arena.steps, between=pull(tuned), masks=masks)
            return Pruned(bake_(tuned, masks), masks, arena.steps if noisy else arena.prune_steps)

        return decide

    return prepare


def pressed(estimator: Estimator, floor: float | None = None, dropout: float | None = None) -> Prepare:
    """A training for each level: the KL is pressed up or down so that the threshold arrives at the level.

    With `floor`, no weight has an alpha below it while the network decides, and what is left is tuned with just that
    noise, which is Gaussian dropout of the weights (Kingma, Salimans and Welling 2015): a network that fits its
    training images makes the posterior of what it needs as narrow as it can, and then learns nothing from its noise.
    With `dropout`, layers read what they read with noise of that alpha, from start to end.
    """

    def noisy(loss: Loss) -> Loss:
        return loss if dropout is None else gaussian_dropout(dropout, loss)

    def decide(arena: Arena, stage: Stage, level: float) -> Pruned:
        model = sparsify_(arena.network(), PosteriorSettings(estimator=estimator), example_inputs=arena.example)
        controller = Controller(PosteriorSettings().threshold)

        def between(step: int) -> None:
            if step % arena.per_epoch == 0:
                controller.react(_edge(model, level), step / arena.prune_steps)
            if floor is not None:
                _widen_(model, floor)
            regularize_(model, controller.pressure / len(arena.data.train))

        arena.train(model, stage, 0, arena.prune_steps, loss=noisy(cross_entropy), between=between)
        masks = compute_masks(model, MaskSettings(ratio=level))
        loss = cross_entropy if floor is None else noisy_weights(floor)
        return Pruned(bake_(model, masks), masks, arena.prune_steps, noisy(loss))

    return by_level(decide)


def gradual(dropout: float | None = None) -> Prepare:
    """Cut by log alpha, more and more while the network trains, on the schedule of gradual magnitude.

    What is left adapts to each cut, and a short training need not wait until all that has to go has drowned.  The KL
    is a sum over the weights that are left: divided by their share, it pulls as hard at every level.
    """

    def decide(arena: Arena, stage: Stage, level: float) -> Pruned:
        kl_weight = PULL / (1 - level)
        model = sparsify_(arena.network(), PosteriorSettings(estimator="weight"), example_inputs=arena.example)
        loss = cross_entropy if dropout is None else gaussian_dropout(dropout, cross_entropy)
        masks: Masks = {}

        def cut(share: float) -> None:
            masks.update(compute_masks(model, MaskSettings(ratio=share)))
            mask_posterior_(model, masks)

        cut_when_due = gradually(arena, level, cut)

        def between(step: int) -> None:
            cut_when_due(step)
            regularize_(model, kl_weight / len(arena.data.train))

        arena.train(model, stage, 0, arena.prune_steps, loss=loss, between=between, masks=masks)
        masks.update(compute_masks(model, MaskSettings(ratio=level)))
        return Pruned(bake_(model, masks), masks, arena.prune_steps, loss)

    return by_level(decide)


def _widen_(model: nn.Module, alpha: float) -> None:
    """Give every weight an alpha of at least this."""
    with torch.no_grad():
        for _, layer in named_posteriors(model):
            if isinstance(layer, Variational):
                layer.log_sigma2.clamp_(min=layer.weight.square().log() + math.log(alpha))


def _edge(model: nn.Module, level: float) -> float:
    """Log alpha of the last weight that has to go."""
    layers = [module for _, module in named_posteriors(model) if isinstance(module, Variational)]
    values = torch.cat([layer.log_alpha().detach().flatten() for layer in layers])
    return float(values.kthvalue(max(round((1 - level) * values.numel()), 1)).values)


RIVALS = {
    "vd_pressed": Rival("Sparse VD, one weight sample, KL pressed to the level", "ours", pressed("weight")),
    "vd_pressed_noisy": Rival(
        "Sparse VD, one weight sample, KL pressed to the level, alpha at least 0.1", "ours", pressed("weight", 0.1)
    ),
    "vd_pressed_dropout": Rival(
        "Sparse VD, one weight sample, KL pressed to the level, alpha at least 0.1, Gaussian dropout",
        "ours",
        pressed("weight", 0.1, 0.1),
    ),
    "vd_gradual": Rival("Sparse VD, one weight sample, cut gradually", "ours", gradual()),
    "vd_gradual_dropout": Rival("Sparse VD, one weight sample, cut gradually, Gaussian dropout", "ours", gradual(0.1)),
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
