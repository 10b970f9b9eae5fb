"""A budget that is met while a network trains: a few channels leave at a time, and the network heals."""

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import nn

from ..graph import Inputs
from ..measure import CostKind, cost_function
from ..nn import ChannelGate, make_plain_copy
from ..shrinking import shrink_
from .costs import CountedCost
from .cut_schedule import Stretch
from .removal import choose_cutoffs, use_cutoffs_

MeasureLatency = Callable[[str, nn.Module], float]
"""Measures the latency of the ordinary network at a named place, as a part of the dense one's."""
ATTEMPTS = 8
"""How often a cut is tried where channels that were chosen did not leave, or the level is not reached."""
ENOUGH = 1.01
"""Measured latencies are noisy: what is this near to the level has reached it."""
OnLevel = Callable[[float, nn.Module], None]
"""Called with a level of the budget and the network that has reached it, before it goes on to the next."""


@final
class GradualRemoval:
    """Removes channels at fixed steps of a training, so that each level of a budget is met early enough to heal.

    It has no state: when it cuts is a function of the step, and what it removes is one of the network.

    Args:
        kind: What the network costs.
        stretches: When channels leave, and how much may be left, from `plan_stretches`.
        dense: The network before anything was removed.
        example_inputs: What the network is called with.
        round_to: What is left of a group of channels is a multiple of this.
        on_level: What is done with the network of each level at the end of its steps; None: nothing.
        latency: Measures a budget of latency.
    """

    def __init__(
        self,
        kind: CostKind,
        stretches: Sequence[Stretch],
        dense: nn.Module,
        example_inputs: Inputs,
        round_to: int,
        *,
        on_level: OnLevel | None = None,
        latency: MeasureLatency | None = None,
    ) -> None:
        self._stretches, self._example_inputs, self._round_to = stretches, example_inputs, round_to
        self._on_level, self._latency = on_level, latency
        # Where latency is what counts, channels leave in the order of their worth over their MACs.
        self._kind: CountedCost = "parameters" if kind == "parameters" else "macs"
        self._cost = cost_function(self._kind, example_inputs)
        self._dense_cost = self._cost(dense)

    def is_due(self, step: int) -> bool:
        """Whether channels leave after `step` steps."""
        return self._find_stretch(step).is_due(step)

    def find_progress(self, step: int) -> float:
        """The part of its stretch, from 0 to 1, that is done after `step` steps, when the next one begins."""
        stretch = self._find_stretch(step + 1)  # that of the next step: a level ends with its last one
        return (step - stretch.first) / (stretch.end - stretch.first)

    def cut_(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Remove, in place, the channels that are worth least for their cost, down to what may be left at this step.

        Args:
            model: The network with gates.
            optimizer: That of its parameters; it loses the same channels.
            step: Steps done.
        """
        # 1. The cost of blocks is an estimate: what two gates of one layer cost together is counted twice. The last cut
        #    is repeated until the level is reached, or no channel is left that may go.
        # 2. Latency falls more slowly than MACs, for a part of it is overhead. As many MACs as the latency is to lose
        #    are therefore too few rather than too many, and the next attempt, or cut, removes some more.
        # 3. Where a gate closes channels and they stay, for something else makes them, too, others go in their place.
        # 4. Channels that are dead without a gate, as some of a pre-trained network are, do not leave alone either.
        stretch = self._find_stretch(step)
        allowed = stretch.part_left_at(step)
        held: set[ChannelGate] = set()
        for attempt in range(ATTEMPTS):
            saving = self._find_saving(make_plain_copy(model), allowed, f"step {step}, attempt {attempt}")
            cutoffs = choose_cutoffs(model, self._example_inputs, self._kind, saving, self._round_to, held)
            if not cutoffs:
                return
            channels = {gate: len(gate.mu) for gate in cutoffs}
            before = use_cutoffs_(model, cutoffs)
            try:
                shrink_(model, self._example_inputs, optimizer, round_to=self._round_to)
            finally:
                use_cutoffs_(model, before)
            held_now = {gate for gate, count in channels.items() if len(gate.mu) == count}
            if not held_now and step != stretch.last_cut:
                return
            held |= held_now

    def _find_saving(self, plain: nn.Module, allowed: float, place: str) -> float:
        """The MACs, or weights, that have to go so that no more than the part `allowed` of the dense cost is left.

        Args:
            plain: The ordinary network as it is now.
            allowed: A part of the dense network's cost.
            place: The name under which a latency is measured.
        """
        cost = self._cost(plain)
        if self._latency is None:
            return cost - allowed * self._dense_cost
        left = self._latency(place, plain)
        return cost * (1 - allowed / left) if left > ENOUGH * allowed else 0.0

    def leave_level(self, model: nn.Module, step: int) -> None:
        """Pass the network to `on_level` where a level ends after `step` steps.

        Args:
            model: The network with gates.
            step: Steps done.
        """
        stretch = self._find_stretch(step)
        if step == stretch.end and self._on_level is not None:
            self._on_level(stretch.level, model)

    def _find_stretch(self, step: int) -> Stretch:
        """The stretch to which what is done after `step` steps belongs."""
        return next(stretch for stretch in self._stretches if step <= stretch.end)
