"""Global magnitude with torch.nn.utils.prune: the plain baseline, at once and gradually (Zhu and Gupta 2017)."""

from collections.abc import Callable

from torch import nn
from torch.nn.utils import prune

from ....masks import Masks, apply_masks_
from ....recipe import Stage
from ..arena import Arena, Between, Loss, cross_entropy
from .entry import Prepare, Pruned, Rival, by_level
from .noise import gaussian_dropout

UPDATES = 50
"""How often the gradual schedule prunes again."""


def gradually(arena: Arena, level: float, cut: Callable[[float], None]) -> Between:
    """Call `cut` now and then with the share of zeros that is due: fast at first, `level` after nine tenths of the
    steps (Zhu and Gupta 2017, eq. 1).
    """
    every = max(arena.prune_steps // UPDATES, 1)

    def between(step: int) -> None:
        if step and step % every == 0:
            left = 1 - min(step / (0.9 * arena.prune_steps), 1.0)
            cut(level * (1 - left**3))

    return between


def magnitude_masks(model: nn.Module, level: float) -> Masks:
    """Masks that keep the largest weights of all layers together."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)}
    chosen = [(layer, "weight") for layer in layers.values()]
    prune.global_unstructured(chosen, pruning_method=prune.L1Unstructured, amount=level)
    masks = {name: {"weight": layer.get_buffer("weight_mask").clone()} for name, layer in layers.items()}
    for layer, target in chosen:
        prune.remove(layer, target)
    return masks


def at_once(arena: Arena, stage: Stage, level: float) -> Pruned:
    """Decide on the dense start."""
    model = arena.network()
    return Pruned(model, magnitude_masks(model, level), 0)


def gradual(loss: Loss = cross_entropy) -> Prepare:
    """Prune while training on `loss`, more and more, fast at first."""

    def decide(arena: Arena, stage: Stage, level: float) -> Pruned:
        model = arena.network()
        masks: Masks = {}
        between = gradually(arena, level, lambda share: masks.update(magnitude_masks(model, share)))
        arena.train(model, stage, 0, arena.prune_steps, loss=loss, between=between, masks=masks)
        masks.update(magnitude_masks(model, level))
        apply_masks_(model, masks)
        return Pruned(model, masks, arena.prune_steps, loss)

    return by_level(decide)


RIVALS = {
    "magnitude": Rival("global magnitude", "torch", by_level(at_once)),
    "magnitude_gradual": Rival("global magnitude, gradual", "torch", gradual()),
    "magnitude_gradual_dropout": Rival(
        "global magnitude, gradual, Gaussian dropout", "torch", gradual(gaussian_dropout(0.1, cross_entropy))
    ),
}
