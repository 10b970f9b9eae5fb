"""Distillation: a network learns to give the outputs of another one, its teacher."""

import copy
from collections.abc import Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..preprocessing import NUMBERS, Preprocessing
from ..recipe import TeacherSettings

Numbers = tuple[float, ...]
"""One for each channel."""


@final
class Teacher:
    """A network that says what another one should answer (Hinton, Vinyals and Dean 2015).

    The loss of a batch becomes (1 - w) * loss on the labels + w * T^2 * KL(teacher || student), with both networks'
    logits divided by the temperature T. The factor T^2 keeps the gradient's size when T changes (section 2 there).

    Args:
        network: The teacher, which stays as it is: a frozen copy of it answers, in evaluation mode.
        settings: The weight w and the temperature T.
        device: Where the student trains.
    """

    def __init__(self, network: nn.Module, settings: TeacherSettings, device: torch.device) -> None:
        self._network = copy.deepcopy(network).to(device).eval().requires_grad_(False)
        self._weight, self._temperature = settings.weight, settings.temperature

    def with_weight(self, weight: float) -> "Teacher":
        """The same teacher with another weight w."""
        other = copy.copy(self)
        other._weight = weight
        return other

    def join(self, loss: Tensor, logits: Tensor, inputs: Tensor) -> Tensor:
        """Join the loss on the labels with the distance from the teacher's answers.

        Args:
            loss: The mean loss on the labels, a scalar.
            logits: The student's outputs, shape (batch, classes).
            inputs: What the student was given, shape (batch, channels, height, width).

        Returns:
            The joint loss, a scalar.
        """
        with torch.no_grad():
            answers = self._network(inputs).float() / self._temperature
        student = F.log_softmax(logits.float() / self._temperature, dim=1)
        distance = F.kl_div(student, F.log_softmax(answers, dim=1), reduction="batchmean", log_target=True)
        return (1 - self._weight) * loss + self._weight * self._temperature**2 * distance


@final
class Renormalization(nn.Module):
    """Normalizes images again, by another mean and deviation: y = ((x * std + mean) - other_mean) / other_std.

    Args:
        mean: That of the images as they come, of each channel.
        std: Their deviation.
        other_mean: That of the images as they leave.
        other_std: Their deviation.
    """

    def __init__(self, mean: Numbers, std: Numbers, other_mean: Numbers, other_std: Numbers) -> None:
        super().__init__()
        before, deviation, after, other_deviation = (
            torch.tensor(numbers).view(-1, 1, 1) for numbers in (mean, std, other_mean, other_std)
        )
        self.register_buffer("scale", deviation / other_deviation)
        self.register_buffer("shift", (before - after) / other_deviation)

    def forward(self, images: Tensor) -> Tensor:
        """Normalize a batch, shape (count, channels, height, width)."""
        return images * self.get_buffer("scale") + self.get_buffer("shift")


def adapt_normalization(network: nn.Module, given: Preprocessing, trained: Mapping[str, Any]) -> nn.Module:
    """Make a network accept images that are normalized by other means and deviations than those of its own training.

    Args:
        network: The network.
        given: The normalization of the images that it will be called with.
        trained: That of its training, under timm's names; empty for a network that starts from nothing.

    Returns:
        The network, behind a `Renormalization` where the two differ.
    """
    channels = given.input_size[0]
    other_mean, other_std = (tuple(trained.get(key, ())) for key in NUMBERS)
    # A network that was trained on colored images may have been made to take gray ones: it has no numbers for those.
    if len(other_mean) != channels or len(other_std) != channels:
        return network
    if (other_mean, other_std) == (given.mean, given.std):
        return network
    return nn.Sequential(Renormalization(given.mean, given.std, other_mean, other_std), network)
