"""What is kept of scored things: those below their threshold, or all but a fraction."""

import torch
from torch import Tensor

from ..settings import MaskSettings


def select_kept(scores: dict[str, Tensor], chosen: MaskSettings, own_thresholds: dict[str, float]) -> dict[str, Tensor]:
    """Find what stays, as True: scores below the threshold, or all but the highest, of which there is a `ratio`."""
    if chosen.ratio is None:
        return {name: score < _threshold(chosen, own_thresholds[name]) for name, score in scores.items()}
    if chosen.scope == "layer":
        return {name: _all_but_highest(score, chosen.ratio) for name, score in scores.items()}
    if not scores:
        return {}
    together = torch.cat([score.flatten() for score in scores.values()])
    sizes = [score.numel() for score in scores.values()]
    pieces = _all_but_highest(together, chosen.ratio).split(sizes)
    return {name: piece.view_as(scores[name]) for name, piece in zip(scores, pieces, strict=True)}


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
