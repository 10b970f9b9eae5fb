"""`SparseVDImportance`: how much of what a coupled group computes is signal, and how much its own noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.pruner import function

from ...errors import SettingError
from ...nn import Variational, output_dim
from .cutting import companions_of

READING = (function.prune_conv_in_channels, function.prune_linear_in_channels)
Reduction = Literal["posterior", "sum", "mean", "max", "prod", "first", "gate"]


@dataclass(frozen=True)
class Member:
    """A posterior on the channels of a group."""

    moments: Tensor  # shape: (2, channels): sums of theta^2 and of sigma^2
    places: list[int]  # shape: (channels,): where each is in the group
    is_gate: bool


class SparseVDImportance(tp.importance.GroupMagnitudeImportance):  # type: ignore[misc]
    """The signal's share of the power, theta^2 / (theta^2 + sigma^2) = 1 / (1 + alpha), of each channel of a group.

    For networks that `sparsify_` has given posteriors; `bake_` makes them ordinary again after pruning.

    `group_reduction="posterior"` sums signal and noise over every weight that writes or reads a channel, of all layers
    of the group: log alpha is then log(sum sigma^2 / sum theta^2).  A group with a gate has the gate's own alpha.  The
    other reductions are Torch-Pruning's, over the shares of the single layers.  `normalizer` is Torch-Pruning's too;
    without one, the default, the shares of all groups compare, and 0.0474 is log alpha 3.  Layers that are none of
    `target_types` do not count.

    A group without posteriors is left alone.  Raises `SettingError` for an unknown reduction.
    """

    def __init__(
        self,
        group_reduction: Reduction = "posterior",
        normalizer: Any = None,
        target_types: Sequence[type[nn.Module]] = (nn.Module,),
    ) -> None:
        if group_reduction not in get_args(Reduction):
            known = ", ".join(get_args(Reduction))
            raise SettingError(f"SparseVDImportance: group_reduction {group_reduction!r}; known are {known}")
        super().__init__(2, group_reduction, normalizer, False, list(target_types))

    def __call__(self, group: Any) -> Tensor | None:
        """Shape (channels of the group,), or None where it has no posterior."""
        found = self.scores(group)
        return None if found is None else found.float()

    @torch.no_grad()
    def scores(self, group: Any) -> Tensor | None:
        """The same, without a normalizer in float64: close to 1, float32 makes one number of many channels' shares."""
        members = list(self._members(group))
        gates = [member for member in members if member.is_gate]
        chosen = gates or members
        if not chosen:
            return None
        if self.group_reduction == "posterior":
            total = torch.zeros(2, len(group[0].idxs), dtype=torch.float64, device=chosen[0].moments.device)
            for one in chosen:
                total.index_add_(1, torch.tensor(one.places, device=total.device), one.moments.to(total.device))
            score = _share(total)
        else:
            score = self._reduce([_share(one.moments) for one in chosen], [one.places for one in chosen])
        if self.normalizer is None:
            return score.double()
        normalised: Tensor = self._normalize(score.float(), self.normalizer)  # Torch-Pruning's know float32 alone
        return normalised

    def _members(self, group: Any) -> Iterator[Member]:
        """All that has a posterior on channels of this group; a gate on several layers once."""
        seen = set()
        for index, (dep, idxs) in enumerate(group):
            layer, places, reads = dep.layer, group[index].root_idxs, dep.pruning_fn in READING
            companions = companions_of(layer)
            if companions is None or not isinstance(layer, tuple(self.target_types)) or None in places:
                continue
            gate = companions.gate
            if gate is not None and not reads and gate not in seen:
                seen.add(gate)
                first = [(index, place) for index, place in zip(idxs, places, strict=True) if index < len(gate.mu)]
                moments = torch.stack([gate.mu.square(), gate.log_sigma2.exp()]).double()
                yield Member(moments[:, [index for index, _ in first]], [place for _, place in first], True)
            if isinstance(layer, Variational):
                dim = 1 - output_dim(layer) if reads else output_dim(layer)
                yield Member(_moments(layer, dim)[:, idxs], places, False)


def _share(moments: Tensor) -> Tensor:
    """Of the signal in the power; `moments` has the shape (2, channels)."""
    return moments[0] / moments.sum(0)


def _moments(layer: Variational, dim: int) -> Tensor:
    """Sums of theta^2 and of sigma^2 over each channel along an axis of the weight, shape (2, channels), in float64."""
    others = [other + 1 for other in range(layer.weight.dim()) if other != dim]
    variances = layer.log_sigma2.exp().expand_as(layer.weight)
    sums = torch.stack([layer.weight.square(), variances]).double().sum(others)
    groups = getattr(layer, "groups", 1)  # of a grouped convolution, each group of inputs has the same axis
    return sums.repeat(1, groups) if dim == 1 and groups > 1 and not layer.transposed else sums
