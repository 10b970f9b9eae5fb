"""The optimizer of what a host's training loop does not know: variances and gates."""

import torch
from torch import nn

Rated = list[tuple[list[nn.Parameter], float]]
"""(parameters, multiple of the learning rate)."""


class Variances:
    """An Adam of their own for log sigma^2 and gates.

    The weights stay with the user's optimizer.  SGD, weight decay or a schedule made for weights would not move the
    variances, or would move them where they should not go.
    """

    def __init__(self, rated: Rated, learning_rate: float) -> None:
        self._rate = learning_rate
        groups = [{"params": parameters, "scale": scale} for parameters, scale in rated if parameters]
        self._optimizer = torch.optim.Adam(groups, lr=learning_rate)

    def step(self, left: float) -> None:
        """One step at `left` times the rate, then gradients of zero.

        None on a gradient that overflowed, which a loss scaler may leave behind.
        """
        groups = self._optimizer.param_groups
        for group in groups:
            group["lr"] = self._rate * group["scale"] * left
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        if gradients and bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all()):
            self._optimizer.step()
        self._optimizer.zero_grad()
