"""What the posteriors say of the channels that stay: how near each layer is to losing one, and at what cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ..nn import ChannelGate, named_posteriors, output_dim

SENSITIVITY_FILE = "sensitivity.json"
"""What `measure_sensitivities` found at the end of the sparse stage, in the run folder."""


@dataclass(frozen=True)
class Sensitivity:
    """The channels that a posterior keeps.

    Attributes:
        writers: Names of the layers that write them.
        channels: How many are kept.
        log_alpha: The lowest, the median and the highest log alpha of them.
        loss_rise: By how much the mean training loss would rise, in nats, if the least of them went; None where the
            variances have not come to rest.
        channel_macs: Multiply-accumulates of one image that a channel more or less costs, in all layers that write or
            read it; None where they were not counted.
    """

    writers: tuple[str, ...]
    channels: int
    log_alpha: tuple[float, float, float]
    loss_rise: float | None
    channel_macs: float | None

    def to_dict(self) -> dict[str, object]:
        """All fields, as JSON has them."""
        return asdict(self)


@torch.no_grad()
def measure_sensitivities(
    model: nn.Module, n_train: int, *, at_rest: bool, gate_macs: Mapping[ChannelGate, float] | None = None
) -> list[Sensitivity]:
    """Read from the posteriors what each layer's least needed channel is worth.

    Where the loss's pull and the KL's are in balance, a small variance is the inverse of N times the curvature of the
    mean loss (Molchanov et al. 2017, eq. 2, to second order in the noise).  Removing a weight theta, a step of -theta,
    then raises the mean loss by theta^2 / (2 N sigma^2) = 1 / (2 N alpha), also to second order.

    Args:
        model: A variational network, after training.
        n_train: N, the number of training images.
        at_rest: Whether the variances are where both are in balance: after natural steps they are; gradient steps
            rarely take them so far, and what they would say of the loss is no estimate of it.
        gate_macs: Gate -> what is spent on all of its channels, as `count_gate_costs` counts it.

    Returns:
        One account for each posterior that keeps a channel, in the order of `named_posteriors`.
    """
    accounts = []
    for name, module in named_posteriors(model):
        log_alpha = module.log_alpha()
        kept = module.mask()
        worth = torch.where(kept, (-log_alpha).exp(), 0.0)
        macs = None
        if isinstance(module, ChannelGate):
            writers, channel_worth, channel_kept = module.writers, worth, kept
            macs = None if gate_macs is None else gate_macs[module] / len(kept)
        else:
            # A channel whose weights have posteriors of their own is worth what these are worth together.
            inputs = [dim for dim in range(worth.dim()) if dim != output_dim(module)]
            writers, channel_worth, channel_kept = (name,), worth.sum(inputs), worth.sum(inputs) > 0
        if channel_kept.any():
            rise = channel_worth[channel_kept].min().item() / (2 * n_train) if at_rest else None
            accounts.append(Sensitivity(writers, int(channel_kept.sum()), _range_of(log_alpha[kept]), rise, macs))
    return accounts


def _range_of(values: Tensor) -> tuple[float, float, float]:
    lowest, highest = values.aminmax()
    return lowest.item(), values.median().item(), highest.item()
