"""What training returns to shrinking, measuring and reporting."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..data import DataSets
from ..masks import Masks
from .levels import TunedLevel


@dataclass(frozen=True)
class Compressed:
    """The networks of a run after training, and what is known of them.

    Attributes:
        dense: The network before Sparse VD, ordinary.
        levels: The networks after fine-tuning, from large to small: several where the budget has several levels.
        chosen: The one of them that is the network of the run.
        dense_held_out: Accuracy of the dense network on held-out images, or that of its twin where there is one.
        data: The data of the run.
        example_inputs: Two normalized training images, shape (2, channels, height, width).
        passed_over: Weights and channel groups that had no posterior -> the reason.
        missed: Which levels of the budget were missed by more than 5 %, and why, or that no network is within the
            tolerance; empty where nothing was missed.
        twin: The dense network, trained on for as long as the run; None where the recipe asks for none.
    """

    dense: nn.Module
    levels: tuple[TunedLevel, ...]
    chosen: TunedLevel
    dense_held_out: float
    data: DataSets
    example_inputs: Tensor
    passed_over: dict[str, str]
    missed: str = ""
    twin: nn.Module | None = None

    @property
    def masked(self) -> nn.Module:
        """The network of the run after fine-tuning, ordinary, with zeros where the masks remove."""
        return self.chosen.masked

    @property
    def masks(self) -> Masks:
        """The decision about the network of the run."""
        return self.chosen.masks
