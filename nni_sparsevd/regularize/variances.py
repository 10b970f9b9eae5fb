"""The optimizer of what a host's training loop does not know: variances and gates."""

import torch
from torch import Tensor, nn

from ..errors import FileFormatError
from ..nn import ChannelGate, named_posteriors
from .settings import SparseVDSettings

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

    @staticmethod
    def of(model: nn.Module, settings: SparseVDSettings) -> "Variances":
        """The variances and gates that `model` has now."""
        found = [module for _, module in named_posteriors(model)]
        gates = [parameter for module in found if isinstance(module, ChannelGate) for parameter in module.parameters()]
        variances = [module.log_sigma2 for module in found if not isinstance(module, ChannelGate)]
        return Variances([(variances, 1.0), (gates, settings.gate_rate)], settings.learning_rate)

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

    def state(self) -> dict[str, Tensor]:
        """What Adam remembers of each parameter, by place and key."""
        state = self._optimizer.state_dict()["state"]
        return {f"{place}.{key}": value for place, values in state.items() for key, value in values.items()}

    def load_state_(self, state: dict[str, Tensor]) -> None:
        """Put `state` back; raises `FileFormatError` where it is that of other parameters."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        shapes = {str(place): parameter.shape for place, parameter in enumerate(parameters)}
        found: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            place, _, key = name.partition(".")
            if place not in shapes or value.shape not in (shapes[place], ()):
                raise FileFormatError(f"a state of other variances: {name} of shape {tuple(value.shape)}")
            found.setdefault(int(place), {})[key] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": found, "param_groups": groups})
