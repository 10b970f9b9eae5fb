"""Sparse variational dropout on single weights, in its variants."""

import copy
import math

import torch
from torch import nn

from ....convert import bake_, sparsify_
from ....masks import Masks, compute_masks
from ....nn import Variational, named_posteriors, regularize_
from ....posterior import DEFAULT_THRESHOLD, Estimator, Prior
from ....recipe import Stage
from ....regularize import Controller, kl_weight_now
from ....settings import MaskSettings, PosteriorSettings
from ....training import choose_threshold, mask_posterior_
from ..arena import AfterBackward, Arena, Loss, cross_entropy
from .entry import Decide, Prepare, Pruned, Rival, without_preparation
from .noise import gaussian_dropout, noisy_weights
from .plain import share_due

GRADUAL_COEFFICIENT = 5e-4
"""Coefficient of the KL of a network that is cut gradually, at a level at which all weights are kept."""


def train_then_cut(estimator: Estimator, prior: Prior = "log_uniform", tune_with_noise: bool = False) -> Prepare:
    """A rival with a posterior on every weight; one training serves all levels.

    Args:
        estimator: How the noise is drawn.
        prior: The prior of the weights.
        tune_with_noise: Whether the kept weights are tuned as they were trained, with noise and KL, in all steps that
            are left.
    """

    def prepare(arena: Arena, stage: Stage) -> Decide:
        settings = PosteriorSettings(estimator=estimator, prior=prior)
        model = sparsify_(arena.network(), settings, example_inputs=arena.example)
        arena.train(model, stage, 0, arena.prune_steps, after_backward=_regularize(arena, model))

        def decide(level: float | None) -> Pruned:
            if level is None:
                curve = choose_threshold(model, "held_out", MaskSettings(), arena.data, arena.example)
                mask_settings = MaskSettings(threshold=curve.chosen)
            else:
                mask_settings = MaskSettings(ratio=level)
            masks = compute_masks(model, mask_settings, example_inputs=arena.example)
            # A copy, because the next level is decided on the same trained posterior.
            tuned = copy.deepcopy(model)
            if not tune_with_noise:
                return Pruned(bake_(tuned, masks), masks, arena.prune_steps)
            mask_posterior_(tuned, masks)
            regularize = _regularize(arena, tuned)
            arena.train(tuned, stage, arena.prune_steps, arena.steps, after_backward=regularize, masks=masks)
            return Pruned(bake_(tuned, masks), masks, arena.steps)

        return decide

    return prepare


def _regularize(arena: Arena, model: nn.Module) -> AfterBackward:
    """Add the gradient of the whole KL at every step."""
    weight = kl_weight_now(1.0, len(arena.data.train))

    def after_backward(step: int) -> None:
        regularize_(model, weight)

    return after_backward


def press_to_level(estimator: Estimator, min_alpha: float | None = None, dropout_alpha: float | None = None) -> Prepare:
    """A rival that presses the KL up or down so that the threshold arrives at the level; one training a level.

    Args:
        estimator: How the noise is drawn.
        min_alpha: No weight has a smaller alpha than this while the network decides, and the kept weights are tuned
            with just that noise, which is Gaussian dropout of the weights (Kingma, Salimans and Welling 2015). A
            network that fits its training images makes the posterior of what it needs as narrow as it can, and then
            learns nothing from its noise. None for posteriors as narrow as they like.
        dropout_alpha: Layers read their inputs with noise of this alpha, from start to end. None for none.
    """

    def with_dropout(loss: Loss) -> Loss:
        return loss if dropout_alpha is None else gaussian_dropout(dropout_alpha, loss)

    def decide(arena: Arena, stage: Stage, level: float) -> Pruned:
        model = sparsify_(arena.network(), PosteriorSettings(estimator=estimator), example_inputs=arena.example)
        controller = Controller(DEFAULT_THRESHOLD)

        def after_backward(step: int) -> None:
            # The controller is made for one call an epoch.
            if step % arena.per_epoch == 0:
                controller.react(_log_alpha_at_level(model, level), step / arena.prune_steps)
            if min_alpha is not None:
                _widen_posteriors_(model, min_alpha)
            regularize_(model, kl_weight_now(controller.pressure, len(arena.data.train)))

        loss = with_dropout(cross_entropy)
        arena.train(model, stage, 0, arena.prune_steps, loss=loss, after_backward=after_backward)
        masks = compute_masks(model, MaskSettings(ratio=level))
        tuning_loss = cross_entropy if min_alpha is None else noisy_weights(min_alpha)
        return Pruned(bake_(model, masks), masks, arena.prune_steps, with_dropout(tuning_loss))

    return without_preparation(decide)


def cut_gradually(dropout_alpha: float | None = None) -> Prepare:
    """A rival that cuts by log alpha, more and more while it trains, on the schedule of gradual magnitude.

    1. The kept weights adapt to each cut, and a short training need not wait until all weights that have to go reach
       the threshold.
    2. The KL is a sum over the weights that are left. Divided by their share, it pulls as hard at every level.

    Args:
        dropout_alpha: Layers read their inputs with noise of this alpha, from start to end. None for none.
    """

    def decide(arena: Arena, stage: Stage, level: float) -> Pruned:
        model = sparsify_(arena.network(), PosteriorSettings(estimator="weight"), example_inputs=arena.example)
        loss = cross_entropy if dropout_alpha is None else gaussian_dropout(dropout_alpha, cross_entropy)
        kl_weight = kl_weight_now(GRADUAL_COEFFICIENT / (1 - level), len(arena.data.train))

        def after_backward(step: int) -> Masks | None:
            masks = None
            share = share_due(arena, level, step)
            if share is not None:
                masks = compute_masks(model, MaskSettings(ratio=share))
                # Noise goes with the mean: a removed weight must not disturb what is left to adapt.
                mask_posterior_(model, masks)
            regularize_(model, kl_weight)
            return masks

        arena.train(model, stage, 0, arena.prune_steps, loss=loss, after_backward=after_backward)
        masks = compute_masks(model, MaskSettings(ratio=level))
        return Pruned(bake_(model, masks), masks, arena.prune_steps, loss)

    return without_preparation(decide)


def _widen_posteriors_(model: nn.Module, min_alpha: float) -> None:
    """Raise the variance of every weight so far that its alpha is at least `min_alpha`."""
    with torch.no_grad():
        for _, layer in named_posteriors(model):
            if isinstance(layer, Variational):
                layer.log_sigma2.clamp_(min=layer.weight.square().log() + math.log(min_alpha))


def _log_alpha_at_level(model: nn.Module, level: float) -> float:
    """Log alpha of the last weight that has to be removed to reach the level."""
    layers = [module for _, module in named_posteriors(model) if isinstance(module, Variational)]
    values = torch.cat([layer.log_alpha().detach().flatten() for layer in layers])
    return float(values.kthvalue(max(round((1 - level) * values.numel()), 1)).values)


PRESSED = "Sparse VD, one weight sample, KL pressed to the level"
RIVALS = {
    "vd_pressed": Rival(PRESSED, "ours", press_to_level("weight")),
    "vd_pressed_noisy": Rival(f"{PRESSED}, alpha at least 0.1", "ours", press_to_level("weight", 0.1)),
    "vd_pressed_dropout": Rival(
        f"{PRESSED}, alpha at least 0.1, Gaussian dropout", "ours", press_to_level("weight", 0.1, 0.1)
    ),
    "vd_gradual": Rival("Sparse VD, one weight sample, cut gradually", "ours", cut_gradually()),
    "vd_gradual_dropout": Rival(
        "Sparse VD, one weight sample, cut gradually, Gaussian dropout", "ours", cut_gradually(0.1)
    ),
    "vd_local": Rival("Sparse VD, local reparameterization", "ours", train_then_cut("local"), automatic=True),
    "vd_weight": Rival("Sparse VD, one weight sample", "ours", train_then_cut("weight"), automatic=True),
    "vd_weight_noisy": Rival(
        "Sparse VD, one weight sample, tuned with noise",
        "ours",
        train_then_cut("weight", tune_with_noise=True),
        automatic=True,
    ),
    "vd_local_noisy": Rival(
        "Sparse VD, local reparameterization, tuned with noise",
        "ours",
        train_then_cut("local", tune_with_noise=True),
        automatic=True,
    ),
    "vd_ard": Rival("Sparse VD, empirical Bayes", "ours", train_then_cut("local", "ard"), automatic=True),
}
