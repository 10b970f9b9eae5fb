"""What a rival is: a function from the arena to a decision at any level."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ....masks import Masks
from ....recipe import Stage
from ..arena import Arena, Loss


@dataclass(frozen=True)
class Pruned:
    """What a rival hands back."""

    model: nn.Module
    """An ordinary network: for single weights, one to which `masks` apply; for channels, a smaller one."""
    masks: Masks | None
    """What fine-tuning keeps at zero; None for a network that is smaller instead."""
    steps: int
    """Optimizer steps that the rival took; the rest of the league's steps is fine-tuning."""
    loss: Loss | None = None
    """What fine-tuning minimizes; None for the loss of the league."""


Decide = Callable[[float | None], Pruned]
"""A level of the league, or None for the rival's own choice -> the pruned network."""
Prepare = Callable[[Arena, Stage], Decide]
"""Does the work that all levels share; the stage has the learning rate."""


def without_preparation(decide: Callable[[Arena, Stage, float], Pruned]) -> Prepare:
    """A rival that shares no work between levels and cannot choose a level itself."""

    def prepare(arena: Arena, stage: Stage) -> Decide:
        def decide_at(level: float | None) -> Pruned:
            assert level is not None
            return decide(arena, stage, level)

        return decide_at

    return prepare


@dataclass(frozen=True)
class Rival:
    """One entry of the league."""

    title: str
    """The rival as the tables call it."""
    host: Literal["ours", "torch", "NNI", "Torch-Pruning", "ModelOpt"]
    """The framework that it comes from."""
    prepare: Prepare
    """Does the work that all levels share, and returns the decision at any level."""
    automatic: bool = False
    """Whether it can choose the level itself."""
