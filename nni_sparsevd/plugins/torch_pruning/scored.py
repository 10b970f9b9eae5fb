"""A coupled group, how relevant each of its channels is, and which of them may go together."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Scored:
    """A group by its root.  The same places go from each channel group, be it of a convolution or a head."""

    layer: nn.Module
    function: Any
    relevant: Tensor  # shape: (channel groups or heads, channels of each)
    projections: tuple[nn.Module, ...]
    """Of attention: the layers that write queries, keys and values.  Whole heads may go, too."""

    def removable(self, cutoff: float, round_to: int | None) -> tuple[list[int], int]:
        """(indices of what goes, heads left): at or below the cutoff, never all, rounded by keeping more."""
        heads = torch.ones(len(self.relevant), dtype=torch.bool)
        if self.projections:
            best = self.relevant.amax(1)
            heads = (best > cutoff) | (best == best.max())
        relevant = self.relevant[heads].amax(0)
        size = len(relevant)
        count = min(int((relevant <= cutoff).sum()), size - 1)
        if round_to:
            count = max(0, size - math.ceil((size - count) / round_to) * round_to)
        gone = torch.zeros_like(self.relevant, dtype=torch.bool)
        gone[:, relevant.argsort()[:count]] = True
        gone[~heads] = True
        return gone.flatten().nonzero().flatten().tolist(), int(heads.sum())
