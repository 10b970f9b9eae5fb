"""A controller that presses the KL so that a budget is met at the end of training, and where its pressure goes."""

import math

from torch import nn

from ..nn import ChannelGate, named_posteriors


class Controller:
    """Presses the KL harder while the budget's edge lags behind its course, and less while it is ahead.

    The edge is the log alpha of the last channel that must be removed to meet the budget. Its course is a straight line
    from where the edge is at first to the threshold.

    Args:
        threshold: The log alpha that the edge should have at the end.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._start: float | None = None
        self.pressure = 1.0
        """Factor on the KL, from 1e-3 to 1e3."""

    def react(self, edge: float, progress: float) -> None:
        """Adjust the pressure; call it once an epoch.

        Args:
            edge: The log alpha of the last channel that must be removed, by the posterior of this moment; infinity
                where none has to be removed, and minus infinity where even all of them are too few.
            progress: The part of the training that is done, from 0 to 1.
        """
        # 1. Why the edge, and not what the network would cost if it were cut now: that cost does not move until the
        #    first channels reach the threshold. The pressure would grow meanwhile, and then all channels would die at
        #    once.
        # 2. Why a step of exp(lag / 4): a lag of a few units of log alpha is made up within some epochs.
        # 3. Why at most a factor of about 2 in one call: a single noisy look at the edge cannot upset the training.
        if math.isinf(edge):
            lag = -edge
        else:
            if self._start is None:
                self._start = edge
            lag = self._start + progress * (self._threshold - self._start) - edge
        change = min(0.7, max(-0.7, lag / 4))
        self.pressure = min(1e3, max(1e-3, self.pressure * math.exp(change)))


def regularize_under_pressure_(model: nn.Module, weight: float, pressure: float) -> None:
    """Add the gradient of weight * KL to what backward has left, with `pressure` on what decides about channels.

    What decides are the gates; in a network without gates it is the weights.

    Args:
        model: The network; nothing happens where it has no posterior.
        weight: What `kl_weight_now` has returned.
        pressure: The controller's factor.
    """
    posteriors = [module for _, module in named_posteriors(model)]
    # A weight's posterior has no say about channels where there are gates. Pressed, it would remove weights of channels
    # that stay.
    has_gates = any(isinstance(module, ChannelGate) for module in posteriors)
    for module in posteriors:
        decides = isinstance(module, ChannelGate) or not has_gates
        module.add_kl_gradient_(weight * pressure if decides else weight)
