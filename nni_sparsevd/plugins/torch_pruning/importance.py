"""`SparseVDImportance`: how much of what a coupled group computes is signal, and how much its own noise."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.pruner import function

from ...errors import SettingError, SparseVDWarning
from ...nn import ChannelGate, Variational, is_variational, named_posteriors, output_dim
from .cutting import enable, find_gates_behind

CUTS_INPUTS = (function.prune_conv_in_channels, function.prune_linear_in_channels)
"""Torch-Pruning's functions for a layer that reads the channels of a group."""
CUTS_DEPTHWISE = (function.prune_depthwise_conv_in_channels, function.prune_depthwise_conv_out_channels)
"""Its functions for a depthwise convolution, which reads and writes each channel by one row of its weight."""
Reduction = Literal["posterior", "sum", "mean", "max", "prod", "first", "gate"]


@dataclass(frozen=True)
class Member:
    """A layer or a gate of a group, with its posterior on the channels of the group."""

    moments: Tensor  # shape: (2, channels): sums of theta^2 and of sigma^2
    places: list[int]  # shape: (channels,): the place of each channel in the group
    is_gate: bool


class SparseVDImportance(tp.importance.GroupMagnitudeImportance):  # type: ignore[misc]
    """The signal's share of the power, theta^2 / (theta^2 + sigma^2) = 1 / (1 + alpha), of each channel of a group.

    It takes the place of Torch-Pruning's importances in any of its pruners, for networks to which `sparsify_` has given
    posteriors. Variances and gates are cut along with their weights (see `enable`). After pruning, `bake_` makes the
    layers ordinary. A group without posteriors is left alone. In a network that has none at all, channels are ranked by
    magnitude, with a warning. So they are where each variance is what it was at the start.

    Shares are comparable between groups, because alpha is a ratio: 0.5 is as much noise as signal (log alpha 0), and
    0.0474 is log alpha 3, the default threshold. Alpha as the measure of relevance is from Molchanov et al. 2017.

    Args:
        group_reduction: How the posteriors of a group's layers become one share a channel. "posterior" sums signal and
            noise over every weight that writes or reads the channel, in all layers of the group: log alpha is then
            log(sum sigma^2 / sum theta^2). The other names are Torch-Pruning's; they reduce the shares of the single
            layers. Where a group has a gate, the gate's own alpha counts, and the layers do not.
        normalizer: Torch-Pruning's normalizer of the scores of a group, by name or as a function; None: none.
        target_types: Layers that are none of these types do not count.

    Raises:
        SettingError: The reduction is unknown.
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
        # What stands in for posteriors where there are none, with Torch-Pruning's defaults where ours are not its own.
        self._magnitude = tp.importance.GroupMagnitudeImportance(
            group_reduction="mean" if group_reduction in ("posterior", "gate") else group_reduction,
            normalizer=normalizer or "mean",
            target_types=list(target_types),
        )
        self.has_warned = False
        """Whether it has been said that the network has no posterior, or one that has learned nothing."""
        enable()

    @property
    def gives_shares(self) -> bool:
        """Whether scores are shares of the signal, which compare with a threshold."""
        return self.normalizer is None and self.group_reduction not in ("sum", "prod")

    def __call__(self, group: Any) -> Tensor | None:
        """The scores of a group's channels in float32, as Torch-Pruning's pruners want them.

        Args:
            group: A group of Torch-Pruning's dependency graph.

        Returns:
            Shape (channels of the group,), or None where the group has no posterior, though others have.
        """
        if group._DG is not None:
            model: nn.Module = group._DG.model
            self._warn_of_magnitude(model)
            if not is_variational(model):
                magnitudes: Tensor | None = self._magnitude(group)
                return magnitudes
        scores = self.scores(group)
        return None if scores is None else scores.float()

    @torch.no_grad()
    def scores(self, group: Any) -> Tensor | None:
        """The scores of a group's channels in float64: the shares of channels close to 1 are equal in float32.

        Args:
            group: A group of Torch-Pruning's dependency graph.

        Returns:
            Shape (channels of the group,), in float32 where there is a normalizer; None where the group has no
            posterior.
        """
        enable()
        members = list(self._members(group))
        gates = [member for member in members if member.is_gate]
        members = gates or members  # a gate on the outputs scales all weights of a channel: its alpha is the channel's
        if not members:
            return None
        if self.group_reduction == "posterior":
            total = torch.zeros(2, len(group[0].idxs), dtype=torch.float64, device=members[0].moments.device)
            # Signal and noise of all weights are added before they are divided, so that large weights count more.
            for member in members:
                total.index_add_(1, torch.tensor(member.places, device=total.device), member.moments.to(total.device))
            scores = _signal_share(total)
        else:
            shares = [_signal_share(member.moments) for member in members]
            scores = self._reduce(shares, [member.places for member in members])
        if self.normalizer is None:
            return scores.double()
        normalized: Tensor = self._normalize(scores.float(), self.normalizer)  # Torch-Pruning's know float32 alone
        return normalized

    def _warn_of_magnitude(self, model: nn.Module) -> None:
        """Warn once where there is no posterior, or each variance is what it was at the start."""
        if self.has_warned:
            return
        posteriors = [module for _, module in named_posteriors(model)]
        if any(bool((module.log_sigma2 != module.settings.init_log_sigma2).any()) for module in posteriors):
            return
        self.has_warned = True
        lacking = "the posterior has not been trained" if posteriors else "the network has no posterior"
        warnings.warn(
            f"SparseVDImportance: {lacking}, so its channels are ranked by magnitude. Call sparsify_ and train with "
            "the KL before the pruner is made, and bake_ after the cut",
            SparseVDWarning,
            stacklevel=3,
        )

    def _members(self, group: Any) -> Iterator[Member]:
        """Everything that has a posterior on channels of this group; a gate on several layers comes once."""
        gates_seen = set()
        for item in group:
            layer: nn.Module = item.dep.layer
            indices, places = item.idxs, item.root_idxs
            # A place is None where Torch-Pruning does not know which channel of the group an index belongs to.
            if not isinstance(layer, tuple(self.target_types)) or None in places:
                continue
            reads = item.dep.pruning_fn in CUTS_INPUTS
            for site, gate in [] if reads else find_gates_behind(layer):
                if gate not in gates_seen:
                    gates_seen.add(gate)
                    yield _gate_member(gate, site, indices, places)
            if isinstance(layer, Variational):
                if item.dep.pruning_fn in CUTS_DEPTHWISE:
                    dim = 0  # in a transposed convolution, too
                else:
                    dim = 1 - output_dim(layer) if reads else output_dim(layer)
                yield Member(_moments(layer, dim)[:, indices], places, is_gate=False)


def _gate_member(gate: ChannelGate, site: nn.Module, indices: list[int], places: list[int]) -> Member:
    """The gate of a layer whose outputs `indices` stand at `places` in the group.

    A channel of the gate that scales several outputs at one place, as those of queries and values, comes once.
    """
    channels = gate.read_places(site)
    channel_of = indices if channels is None else channels[indices].tolist()
    pairs = dict.fromkeys(zip(channel_of, places, strict=True))
    own_pairs = [(channel, place) for channel, place in pairs if channel >= 0]
    moments = torch.stack([gate.mean().square(), gate.variance()]).double()
    own_channels = [channel for channel, _ in own_pairs]
    return Member(moments[:, own_channels], [place for _, place in own_pairs], is_gate=True)


def _signal_share(moments: Tensor) -> Tensor:
    """The share of the signal in the power, shape (channels,); `moments` has the shape (2, channels)."""
    return moments[0] / moments.sum(0)


def _moments(layer: Variational, dim: int) -> Tensor:
    """Sums of theta^2 and of sigma^2 over each channel along an axis of the weight, shape (2, channels), in float64."""
    summed = [other + 1 for other in range(layer.weight.dim()) if other != dim]  # + 1: behind the axis of the two
    variances = layer.log_sigma2.exp().expand_as(layer.weight)
    sums = torch.stack([layer.weight.square(), variances]).double().sum(summed)
    # In a grouped convolution the axis of inputs holds those of one group, and all groups are cut at the same places.
    groups = getattr(layer, "groups", 1)
    if dim == 1 and groups > 1 and not layer.transposed:
        return sums.repeat(1, groups)
    return sums
