"""Fine-tuning that also follows the outputs of the dense start (Hinton, Vinyals and Dean 2015), for any rival."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....recipe import Stage
from ..arena import Arena, Batch, Loss
from .entry import Decide, Prepare, Pruned

SHARE = 0.5
"""Share of the teacher's divergence in the loss."""
TEMPERATURE = 2.0
"""The outputs of both networks are divided by it before they are compared."""


def with_distillation(prepare: Prepare) -> Prepare:
    """The same rival with the same decisions, whose fine-tuning has the dense start as teacher."""

    def prepare_with_teacher(arena: Arena, stage: Stage) -> Decide:
        decide = prepare(arena, stage)
        loss = distillation_loss(arena.start.eval())

        def decide_at(level: float | None) -> Pruned:
            return replace(decide(level), loss=loss)

        return decide_at

    return prepare_with_teacher


def distillation_loss(teacher: nn.Module) -> Loss:
    """Half the cross entropy, half the divergence from the softened outputs of `teacher`; means over a batch."""

    def loss(batch: Batch, model: nn.Module) -> Tensor:
        images, labels = batch
        with torch.no_grad():
            targets = F.softmax(teacher(images) / TEMPERATURE, 1)
        outputs = model(images)
        divergence = F.kl_div(F.log_softmax(outputs / TEMPERATURE, 1), targets, reduction="batchmean")
        # Both outputs are divided by T, so the divergence's gradient is T² smaller: the factor T² makes up for it.
        return (1 - SHARE) * F.cross_entropy(outputs, labels) + SHARE * TEMPERATURE**2 * divergence

    return loss
