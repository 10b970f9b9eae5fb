"""Distillation: a network learns to give the outputs of another one, its teacher."""

import copy
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recipe import TeacherSettings


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
