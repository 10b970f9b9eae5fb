"""What a rival is: from the arena to a decision at any level."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ....masks import Masks
from ....recipe import Stage
from ..arena import Arena, Loss, cross_entropy


@dataclass(frozen=True)
class Pruned:
    """What a rival hands back."""

    model: nn.Module
    """An ordinary network: for weights, with the masks' zeros or about to get them; for channels, a smaller one."""
    masks: Masks | None
    """What fine-tuning keeps at zero; None for a network that is smaller instead."""
    steps: int
    """Optimisation steps that it took; the rest is fine-tuning."""
    loss: Loss = cross_entropy
    """What fine-tuning minimises."""


Decide = Callable[[float | None], Pruned]
"""A level of the league, or None for the rival's own choice -> what is left."""


Prepare = Callable[[Arena, Stage], Decide]
"""What does not depend on the level, done once; the stage has the learning rate."""


def by_level(decide: Callable[[Arena, Stage, float], Pruned]) -> Prepare:
    """An entry that shares nothing between levels and cannot choose one itself."""

    def prepare(arena: Arena, stage: Stage) -> Decide:
        def at(level: float | None) -> Pruned:
            assert level is not None
            return decide(arena, stage, level)

        return at

    return prepare


@dataclass(frozen=True)
class Rival:
    """One entry of the league."""

    title: str
    """As the tables call it."""
    host: Literal["ours", "torch", "NNI", "Torch-Pruning"]
    """Whose it is."""
    prepare: Prepare
    """From the arena to a decision at any level."""
    automatic: bool = False
    """Whether it can choose the level itself."""
