"""Fine-tuning that also follows the outputs of the dense start (Hinton, Vinyals and Dean 2015), for any rival."""

from dataclasses import replace

from ....recipe import Stage
from ..arena import Arena, distillation_loss
from .entry import Decide, Prepare, Pruned

WEIGHT = 0.5
"""The teacher's part of the loss."""


def with_distillation(prepare: Prepare) -> Prepare:
    """The same rival with the same decisions, whose fine-tuning has the dense start as teacher."""

    def prepare_with_teacher(arena: Arena, stage: Stage) -> Decide:
        decide = prepare(arena, stage)
        loss = distillation_loss(arena.start, WEIGHT)

        def decide_at(level: float | None) -> Pruned:
            return replace(decide(level), loss=loss)

        return decide_at

    return prepare_with_teacher
