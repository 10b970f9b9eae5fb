"""A budget that is met while the sparse stage trains: a few channels leave at a time, and the network heals."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from ..errors import SettingError, TrainingError
from ..measure import cost_function
from ..nn import make_plain_copy
from ..recipe import BudgetSettings, Recipe
from ..regularize import choose_cutoffs, cost_left_at, use_cutoffs_
from ..shrinking import shrink_

FEWEST_STEPS = 10
"""Steps between two cuts: from fewer batches the gates do not know which channels are needed."""


@dataclass(frozen=True)
class Arrival:
    """How close a budget was met; costs are in the unit of the budget's kind."""

    kind: str
    fraction: float
    """The part of the dense cost that was allowed."""
    dense: float
    reached: float

    @property
    def part(self) -> float:
        """The part of the dense cost that is left."""
        return self.reached / self.dense


@final
class GradualRemoval:
    """Removes channels at fixed steps of the sparse stage, so that the budget is met early enough to heal.

    It has no state: when it cuts is a function of the step, and what it removes is one of the network.

    Args:
        settings: The budget.
        dense: The network before anything was removed.
        example_inputs: Inputs that the network accepts, shape (batch, channels, height, width).
        steps: Steps of the sparse stage.
    """

    def __init__(self, settings: BudgetSettings, dense: nn.Module, example_inputs: Tensor, steps: int) -> None:
        assert settings.kind is not None
        self._settings, self._kind, self._example_inputs = settings, settings.kind, example_inputs
        self._cost = cost_function(settings.kind, example_inputs)
        self._dense_cost = self._cost(dense)
        self._last = int(settings.reached_at * steps)
        self._every = max(self._last // settings.cuts, FEWEST_STEPS)

    def is_due(self, step: int) -> bool:
        """Whether channels leave after `step` steps."""
        # The last cut is made at the very end of the way, whatever the distance to the cut before.
        return step == self._last or (0 < step < self._last and step % self._every == 0)

    def cut_(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Remove, in place, the channels that are worth least for their cost, down to what may be left at this step.

        Args:
            model: The network with gates.
            optimizer: That of its parameters; it loses the same channels.
            step: Steps done.
        """
        # The cost of blocks is an estimate: what two gates of one layer cost together is counted twice. The last cut
        # is repeated until the budget is met, or nothing is left that may go.
        allowed = cost_left_at(self._settings.fraction, step / self._last) * self._dense_cost
        for _ in range(8 if step == self._last else 1):
            left = self._measure(model)
            cutoffs = choose_cutoffs(model, self._example_inputs, self._kind, left - allowed, self._settings.round_to)
            if not cutoffs:
                return
            before = use_cutoffs_(model, cutoffs)
            try:
                shrink_(model, self._example_inputs, optimizer)
            finally:
                use_cutoffs_(model, before)

    def arrive(self, model: nn.Module) -> Arrival:
        """Measure how close the budget was met.

        Args:
            model: The network at the end of the sparse stage.

        Returns:
            The account.

        Raises:
            TrainingError: The budget was missed by more than 5 %.
        """
        settings = self._settings
        arrival = Arrival(self._kind, settings.fraction, self._dense_cost, self._measure(model))
        if arrival.part > 1.05 * settings.fraction:
            raise TrainingError(
                f"budget.{self._kind} = {settings.fraction:g} was not met: {arrival.part:.3f} of the dense network is "
                "left, and no more channels can go. Channels without a gate, and the last of each group, always stay; "
                f"budget.round_to = {settings.round_to} keeps as many of each group. The run folder holds the network"
            )
        return arrival

    def _measure(self, model: nn.Module) -> float:
        return self._cost(make_plain_copy(model))


def check_budget(recipe: Recipe, steps_per_epoch: int) -> None:
    """Check, before anything is trained, that the sparse stage is long enough for the budget.

    Args:
        recipe: The recipe.
        steps_per_epoch: Steps in an epoch.

    Raises:
        SettingError: There are too few steps for two cuts.
    """
    if recipe.budget.kind is None:
        return
    steps = int(recipe.budget.reached_at * recipe.sparse.epochs * steps_per_epoch)
    if steps < 2 * FEWEST_STEPS:
        needed = 2 * FEWEST_STEPS / recipe.budget.reached_at / steps_per_epoch
        raise SettingError(
            f"sparse.epochs = {recipe.sparse.epochs}: budget.{recipe.budget.kind} is to be met after {steps} steps, in "
            f"which the gates cannot learn what is needed; take at least {int(needed) + 1} epochs, or smaller batches"
        )
