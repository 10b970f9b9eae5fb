"""What is kept of scored things: those below their threshold, or all but a fraction."""

from collections.abc import Hashable
from typing import TypeVar

import torch
from torch import Tensor

from ..settings import MaskSettings

Owner = TypeVar("Owner", bound=Hashable)
"""What the scores of one tensor belong to: a layer, a gate, or the name of a channel group."""


def select_kept(
    scores: dict[Owner, Tensor], chosen: MaskSettings, own_thresholds: dict[Owner, float]
) -> dict[Owner, Tensor]:
    """Select what stays: scores below the threshold, or all but the part `chosen.ratio` with the highest scores.

    Args:
        scores: Owner -> scores, any shape; the higher a score, the sooner its weight or channel goes.
        chosen: How to decide.
        own_thresholds: Owner -> the threshold that holds where the settings name none.

    Returns:
        Owner -> booleans in the shape of the scores, True for what stays.
    """
    if chosen.ratio is None:
        return {owner: score < _threshold(chosen, own_thresholds[owner]) for owner, score in scores.items()}
    if chosen.scope == "layer":
        return {owner: _all_but_highest(score, chosen.ratio) for owner, score in scores.items()}
    if not scores:
        return {}
    together = torch.cat([score.flatten() for score in scores.values()])
    sizes = [score.numel() for score in scores.values()]
    pieces = _all_but_highest(together, chosen.ratio).split(sizes)
    return {owner: piece.view_as(scores[owner]) for owner, piece in zip(scores, pieces, strict=True)}


def _threshold(chosen: MaskSettings, own_threshold: float) -> float:
    """The threshold that was asked for, or else the layer's own; what loses no evidence goes (BMRS, section 3.2)."""
    if chosen.threshold == "evidence":
        return 0.0
    return chosen.threshold if isinstance(chosen.threshold, float) else own_threshold


def _all_but_highest(score: Tensor, ratio: float) -> Tensor:
    """False at exactly round(ratio * size) places, those of the highest scores; among equals at the later ones."""
    kept = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    order = score.flatten().argsort(stable=True)
    kept[order[: score.numel() - round(ratio * score.numel())]] = True
    return kept.view_as(score)
