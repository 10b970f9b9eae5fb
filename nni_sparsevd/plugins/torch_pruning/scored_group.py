"""A coupled group with the scores of its channels, and the choice of those that are removed together."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Cut:
    """Channels of a group that are removed together."""

    layer: nn.Module
    """The root of the group."""
    function: Any
    """Torch-Pruning's function that cuts the root."""
    indices: list[int]
    """The output channels of the root that are removed."""
    num_heads: dict[nn.Module, int]
    """The heads that are left after the cut, for the projections of an attention; else empty."""


@dataclass(frozen=True)
class Limits:
    """What may be removed of a group, whatever its scores are."""

    round_to: int | None = None
    """The number of channels that are kept is rounded up to a multiple of this; None: it is not."""
    largest_part: float = 1.0
    """The part of the group's channels that may be removed, over all heads."""
    whole_heads: bool = True
    """Whether heads of an attention may be removed."""
    head_dims: bool = True
    """Whether dimensions of the heads of an attention may be removed."""


@dataclass(frozen=True)
class ScoredGroup:
    """A group by its root, and the scores of its channels.

    The group may consist of several channel groups (of a grouped convolution) or heads. All of them must keep the same
    number of channels; here they keep the same places.
    """

    layer: nn.Module
    function: Any
    scores: Tensor  # shape: (channel groups or heads, channels of each)
    is_attention: bool
    projections: tuple[nn.Module, ...]
    """The layers that write queries, keys and values, where all of them have the same heads: these may be removed."""

    def choose_cut(self, cutoff: float, limits: Limits) -> Cut | None:
        """Choose the channels that are removed at a cutoff.

        Args:
            cutoff: A channel is removed where its score is at or below the cutoff in every head that stays.
            limits: What may be removed at all.

        Returns:
            The cut, which leaves at least the best channel; None where nothing is removed.
        """
        heads_kept = self._choose_heads(cutoff, limits)
        # All heads keep the same places, so a place goes only where it is dead in every head that stays.
        best_of_heads = self.scores[heads_kept].amax(0)  # shape: (channels of each,)
        size = len(best_of_heads)
        fewest = math.ceil((1 - limits.largest_part) * self.scores.numel() / int(heads_kept.sum()))
        count = min(int((best_of_heads <= cutoff).sum()), size - max(1, fewest))
        if self.is_attention and not limits.head_dims:
            count = 0
        if limits.round_to:
            kept = math.ceil((size - count) / limits.round_to) * limits.round_to
            count = max(0, size - kept)  # the multiple may be larger than the layer
        removed = torch.zeros_like(self.scores, dtype=torch.bool)
        removed[:, best_of_heads.argsort()[:count]] = True
        removed[~heads_kept] = True
        indices = removed.flatten().nonzero().flatten().tolist()
        if not indices:
            return None
        return Cut(self.layer, self.function, indices, dict.fromkeys(self.projections, int(heads_kept.sum())))

    def _choose_heads(self, cutoff: float, limits: Limits) -> Tensor:
        """True for each head that stays: heads with a channel above the cutoff, and the best head in any case."""
        heads_kept = torch.ones(len(self.scores), dtype=torch.bool)
        if not self.projections or not limits.whole_heads:
            return heads_kept
        best_channel = self.scores.amax(1)
        fewest = math.ceil((1 - limits.largest_part) * len(best_channel))
        count = min(int((best_channel <= cutoff).sum()), len(best_channel) - max(1, fewest))
        heads_kept[best_channel.argsort()[:count]] = False
        return heads_kept
