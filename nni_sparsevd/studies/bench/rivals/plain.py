"""Global magnitude with torch.nn.utils.prune: the plain baseline, at once and gradually (Zhu and Gupta 2017)."""

from torch import nn
from torch.nn.utils import prune

from ....masks import Masks, apply_masks_
from ....recipe import Stage
from ..arena import Arena, Loss, cross_entropy
from .entry import Prepare, Pruned, Rival, without_preparation
from .noise import gaussian_dropout

UPDATES = 50
"""How often the gradual schedule prunes again."""


def share_due(arena: Arena, level: float, step: int) -> float | None:
    """The share of zeros that the gradual schedule asks for at a step (Zhu and Gupta 2017, eq. 1).

    The share rises fast at first, and reaches `level` after nine tenths of the steps.

    Args:
        arena: What the rival gets; its `prune_steps` are the length of the schedule.
        level: The share of zeros at the end.
        step: The step, from 0.

    Returns:
        The share, or None at a step in which nothing is pruned.
    """
    every = max(arena.prune_steps // UPDATES, 1)
    if step == 0 or step % every:
        return None
    left = 1 - min(step / (0.9 * arena.prune_steps), 1.0)
    return level * (1 - left**3)


def magnitude_masks(model: nn.Module, level: float) -> Masks:
    """Masks that keep the largest weights of all linear and convolution layers together.

    Args:
        model: The network; it stays as it is.
        level: The share of weights to remove.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)}
    targets = [(layer, "weight") for layer in layers.values()]
    prune.global_unstructured(targets, pruning_method=prune.L1Unstructured, amount=level)
    masks = {name: {"weight": layer.get_buffer("weight_mask").clone()} for name, layer in layers.items()}
    # `prune` has split each weight into a parameter and a mask; the network gets its plain parameters back.
    for layer, target in targets:
        prune.remove(layer, target)
    return masks


def cut_at_once(arena: Arena, stage: Stage, level: float) -> Pruned:
    """Decide on the dense start."""
    model = arena.network()
    return Pruned(model, magnitude_masks(model, level), 0)


def cut_gradually(loss: Loss | None = None) -> Prepare:
    """A rival that prunes more and more while it trains on `loss`, or that of the league, and is fine-tuned on it."""

    def decide(arena: Arena, stage: Stage, level: float) -> Pruned:
        model = arena.network()

        def prune_when_due(step: int) -> Masks | None:
            share = share_due(arena, level, step)
            return None if share is None else magnitude_masks(model, share)

        arena.train(model, stage, 0, arena.prune_steps, loss=loss, after_backward=prune_when_due)
        # The schedule's last update may lie some steps back, and its share may be below the level.
        masks = magnitude_masks(model, level)
        apply_masks_(model, masks)
        return Pruned(model, masks, arena.prune_steps, loss)

    return without_preparation(decide)


RIVALS = {
    "magnitude": Rival("global magnitude", "torch", without_preparation(cut_at_once)),
    "magnitude_gradual": Rival("global magnitude, gradual", "torch", cut_gradually()),
    "magnitude_gradual_dropout": Rival(
        "global magnitude, gradual, Gaussian dropout", "torch", cut_gradually(gaussian_dropout(0.1, cross_entropy))
    ),
}
