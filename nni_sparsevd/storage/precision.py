"""How precisely the weights of each layer have to be written: a step that follows from their posterior.

Louizos, Ullrich, Welling: Bayesian Compression for Deep Learning, NeurIPS 2017, choose the bits of a layer by the
variances of its posterior: digits that the posterior's noise blurs are noise.  Here a layer's weights are multiples of
one standard deviation, where 1 / sigma^2 is the mean over the weights that are kept:

    d = mean(1 / sigma^2)^(-1/2)

Why the precisions are averaged, and what it costs: rounding to multiples of d moves a weight by a variance of d^2 / 12.
Near the optimum the loss of all training data has the curvature 1 / sigma^2 in each weight, so that it rises by the sum
of d^2 / (24 sigma^2): with this d by a nat for 24 weights, whatever the layer.  A step of sqrt(12) d would make the
whole description shortest, labels and weights together, because a weight takes -log d nats.  But its rise of half a nat
a weight shows in the accuracy, and here a weight takes only 1.8 bits more.
"""

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..nn import Variational, is_variational, make_plain_copy


def choose_steps(model: nn.Module, posterior: nn.Module) -> dict[str, float]:
    """Choose the step of each layer's weights.

    Args:
        model: An ordinary network, masked or shrunk.
        posterior: The variational network that it was baked from, with posteriors on weights.

    Returns:
        Name of a weight, as in the state dict -> its step.  A layer of which nothing is left has none.

    Raises:
        ModelError: `posterior` has no posterior on weights, or has one of a weight that `model` does not have, or that
            is larger there.
    """
    if not is_variational(posterior):
        raise ModelError(
            f"coding='posterior': {type(posterior).__name__} has no posterior either; give the network before bake_"
        )
    layers = [(name, layer) for name, layer in posterior.named_modules(remove_duplicate=False)]
    variational = {name: layer for name, layer in layers if isinstance(layer, Variational)}
    if not variational:
        raise ModelError(
            f"coding='posterior': {type(posterior).__name__} has gates alone; it needs posteriors on weights, "
            "granularity='weight' or 'both'"
        )
    means = dict(make_plain_copy(posterior).named_parameters(remove_duplicate=False))
    weights = dict(model.named_parameters(remove_duplicate=False))
    steps = {}
    for layer_name, layer in variational.items():
        name = f"{layer_name}.weight".removeprefix(".")
        _check_weight(name, weights.get(name), layer)
        step = _choose_step(weights[name], layer, means[name])
        if step is not None:
            steps[name] = step
    # A weight that other layers share has its step under each of its names.
    shared = {weights[name]: step for name, step in steps.items()}
    return {name: shared[weight] for name, weight in weights.items() if weight in shared}


def _check_weight(name: str, weight: Tensor | None, layer: Variational) -> None:
    shape = tuple(layer.weight.shape)
    found = None if weight is None else tuple(weight.shape)
    fits = found is not None and len(found) == len(shape)
    if not fits or any(size > whole for size, whole in zip(found or (), shape, strict=True)):
        raise ModelError(
            f"coding='posterior': {name} has the shape {shape} in the posterior and {found} in the network, which was "
            "not baked from it"
        )


@torch.no_grad()
def _choose_step(weight: Tensor, layer: Variational, mean: Tensor) -> float | None:
    """The step of what is kept of a weight, whose means are `mean` once gates are multiplied in."""
    if not weight.any():
        return None
    # Of a shrunk network it is not known where the weights were: what the posterior itself keeps stands for them.
    kept = ((weight != 0) if weight.shape == layer.weight.shape else layer.mask()).cpu()
    theta = layer.weight.double().cpu()
    # A gate that is multiplied into the weights is multiplied into their deviations, too.
    factors = (mean.double().cpu() / theta).abs().where(theta != 0, 1.0)
    precision = (-layer.log_sigma2.double().cpu()).exp().expand_as(theta) / factors.square().clamp_min(1e-30)
    return float(precision[kept].mean() ** -0.5) if kept.any() else None
