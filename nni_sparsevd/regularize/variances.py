"""The optimizer of what a host's training loop does not know: variances and gates."""

import torch
from torch import Tensor, nn

from ..errors import FileFormatError
from ..nn import ChannelGate, named_posteriors
from .settings import SparseVDSettings

RateGroups = list[tuple[list[nn.Parameter], float]]
"""(parameters, their learning rate as a multiple of the optimizer's)."""


class VarianceOptimizer:
    """An Adam of their own for log sigma^2 and gates.

    The weights stay with the user's optimizer. SGD, weight decay or a schedule that is made for weights would not move
    the variances, or would move them where they should not go.

    Args:
        groups: The parameters to learn, each list with a factor on the learning rate; an empty list is left out.
        learning_rate: The learning rate at the start; it falls linearly to 0.
    """

    def __init__(self, groups: RateGroups, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        # Adam keeps keys of a group that it does not know: `scale` is ours, and `step` reads it.
        adam_groups = [{"params": parameters, "scale": scale} for parameters, scale in groups if parameters]
        self._optimizer = torch.optim.Adam(adam_groups, lr=learning_rate, fused=True)

    @staticmethod
    def for_model(model: nn.Module, settings: SparseVDSettings) -> "VarianceOptimizer":
        """The optimizer of the variances and gates that `model` has at this moment.

        Args:
            model: A network with posteriors.
            settings: The learning rates.
        """
        variances, gates = _find_parameters(model)
        return VarianceOptimizer([(variances, 1.0), (gates, settings.gate_rate)], settings.learning_rate)

    def holds_those_of(self, model: nn.Module) -> bool:
        """Whether it moves all variances and gates that `model` has at this moment.

        A cut puts smaller parameters in the place of those before, and so does `load_state_dict(assign=True)`.

        Args:
            model: A network with posteriors.
        """
        variances, gates = _find_parameters(model)
        return set(self._parameters()).issuperset([*variances, *gates])

    def step(self, progress: float | None) -> None:
        """Take one step, then set the gradients to None.

        The step is left out where a gradient is not finite: a loss scaler leaves such gradients when it overflows.

        Args:
            progress: The part of the training that is done, from 0 to 1; None where the end is not known: the learning
                rate stays what it is at the start.
        """
        # The rate falls to 0, so that log alpha has come to rest near the threshold when masks are made of it.
        left = 1.0 if progress is None else 1 - progress
        groups = self._optimizer.param_groups
        for group in groups:
            group["lr"] = self._learning_rate * group["scale"] * left
        gradients = [parameter.grad for parameter in self._parameters() if parameter.grad is not None]
        if gradients and bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all()):
            self._optimizer.step()
        self._optimizer.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Adam's memory of each parameter: "place.key" -> tensor, places counted over all groups."""
        state = self._optimizer.state_dict()["state"]
        return {f"{place}.{key}": value for place, values in state.items() for key, value in values.items()}

    def load_state_(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` has returned.

        Args:
            state: "place.key" -> tensor.

        Raises:
            FileFormatError: A place, a key or a shape is not that of these parameters, or a part is missing.
        """
        shapes: dict[str, dict[str, torch.Size]] = {}
        for number, parameter in enumerate(self._parameters()):
            shapes[str(number)] = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
        memory: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            place, _, key = name.partition(".")
            if value.shape != shapes.get(place, {}).get(key):
                raise FileFormatError(
                    f"the state of other variances: {name} of shape {tuple(value.shape)} belongs to no parameter here; "
                    "load a state that was saved from this network with these settings"
                )
            memory.setdefault(int(place), {})[key] = value
        for number, values in memory.items():
            missing = [f"{number}.{key}" for key in shapes[str(number)] if key not in values]
            if missing:
                raise FileFormatError(f"the state of the variances has no {', '.join(missing)}; load a whole one")
        # The groups are those of this optimizer: rates are set at each step, and nothing else in them changes.
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": memory, "param_groups": groups})

    def _parameters(self) -> list[nn.Parameter]:
        """All parameters, in the order of the places in `state`."""
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]


def _find_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(the variances of the weights, all parameters of the gates)."""
    variances: list[nn.Parameter] = []
    gates: list[nn.Parameter] = []
    for _, module in named_posteriors(model):
        if isinstance(module, ChannelGate):
            gates.extend(module.parameters())
        else:
            variances.append(module.log_sigma2)
    return variances, gates
