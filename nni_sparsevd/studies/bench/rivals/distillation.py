"""Fine-tuning that also asks the dense start (Hinton, Vinyals and Dean 2015), for any rival."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....recipe import Stage
from ..arena import Arena, Batch, Loss
from .entry import Decide, Prepare, Pruned

SHARE = 0.5
"""Of the loss that is the dense start's."""
TEMPERATURE = 2.0
"""Both outputs are divided by it before they are compared."""


def distilled(prepare: Prepare) -> Prepare:
    """The same decisions; what is left is tuned with the labels and the dense start's outputs."""

    def prepared(arena: Arena, stage: Stage) -> Decide:
        decide, loss = prepare(arena, stage), taught_by(arena.start.eval())

        def at(level: float | None) -> Pruned:
            return replace(decide(level), loss=loss)

        return at

    return prepared


def taught_by(teacher: nn.Module) -> Loss:
    """Half cross entropy, half the divergence from the softened outputs of `teacher`; means over a batch."""

    def loss(batch: Batch, model: nn.Module) -> Tensor:
        with torch.no_grad():
            wanted = F.softmax(teacher(batch[0]) / TEMPERATURE, 1)
        outputs = model(batch[0])
        apart = F.kl_div(F.log_softmax(outputs / TEMPERATURE, 1), wanted, reduction="batchmean")
        # the gradient of what is divided by T twice is T² smaller
        return (1 - SHARE) * F.cross_entropy(outputs, batch[1]) + SHARE * TEMPERATURE**2 * apart

    return loss
