"""A budget met in any training loop: gates, their variances, the KL and the removal of channels in one object."""

import copy
import math
import warnings
from numbers import Integral
from typing import Any, final

import torch
from torch import Tensor, distributed, nn
from torch.utils.hooks import RemovableHandle

from ..convert import bake_, sparsify_
from ..errors import SettingError, SparseVDWarning, TrainingError
from ..graph import Inputs, name_leaves
from ..measure import cost_function
from ..nn import find_gates, make_plain_copy, regularize_
from ..settings import PosteriorSettings
from .budget import Budget, misses
from .cut_schedule import count_steps_needed, plan_stretches
from .gradual_removal import GradualRemoval
from .natural import start_natural_steps_, take_natural_steps_
from .objective import kl_weight_now
from .reach import measure_reach
from .removal import use_cutoffs_
from .step_hooks import call_before_steps, holds_any

GATES = PosteriorSettings(granularity="gate")
"""Only gates: a budget removes whole channels."""


@final
class GradualPruner:
    """Meets a budget while a network trains in a loop of your own, as `compress` does: channels leave a few at a time.

    Each coupled channel group gets a gate.  The variances of the gates follow the curvature of the loss; at fixed steps
    the channels that are worth least for what they cost are removed from the network, in place, and from the optimizer;
    in the last third of the steps the network heals.

    Make it before the optimizer, and before anything that wraps or compiles the network.  Then call `attach_` once, or
    at each step `learn` after backward, `regularize` before the optimizer's step, and `remove_` after it.  In the end,
    `finish` makes the layers ordinary.

    Parameters are replaced by smaller ones on the way, in the optimizer, too.  An average of the weights has to be made
    again after a cut.  Losses must not be scaled, as for float16; bfloat16 needs no scale.

    Args:
        model: The network, changed in place.
        example_inputs: What the network is called with.
        budget: What the network may cost at the end.
        n_train: Number N of training samples in loss + KL / N.
        steps: How many steps the training takes.
        round_to: What is left of a group of channels is a multiple of this: runtimes compute 25 channels no faster than
            32.
        reached_at: The part of the steps after which the budget is reached; in the rest the network heals.
        cuts: How often channels leave, where there are steps enough.
        kl_coefficient: Weight of the KL in units of 1/N.

    Raises:
        ModelError: No channel can have a gate, or `model` has posteriors already.
        SettingError: A number is out of range, there are too few steps for two cuts, the network has too few channels
            that may go, or several processes train it.

    Example:
        ```python
        import torch
        from torch import nn

        from nni_sparsevd.regularize import Budget, GradualPruner

        images, labels = torch.randn(64, 1, 8, 8), torch.randint(4, (64,))
        layers = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 4))
        budget = Budget(kind="macs", fraction=0.5)
        pruner = GradualPruner(model, images[:2], budget, n_train=len(images), steps=60)
        optimizer = torch.optim.AdamW(model.parameters())
        pruner.attach_(optimizer)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        pruner.finish()
        assert pruner.part_left() < 0.51 and type(model[0]) is nn.Conv2d
        ```
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        budget: Budget,
        *,
        n_train: int,
        steps: int,
        round_to: int = 8,
        reached_at: float = 0.65,
        cuts: int = 24,
        kl_coefficient: float = 1.0,
    ) -> None:
        if not isinstance(budget, Budget):
            raise SettingError(f"GradualPruner: budget has to be a Budget(...), found {budget!r}")
        _refuse_wrong_numbers(kl_coefficient, n_train=n_train, steps=steps, round_to=round_to, cuts=cuts)
        _refuse_too_few_steps(budget, steps, reached_at, cuts)
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise SettingError(
                "GradualPruner: several processes train this network, and each would remove other channels; "
                "`nni-sparsevd compress` under torchrun has them agree"
            )
        _check_reach(model, example_inputs, budget, round_to)
        dense = make_plain_copy(model)
        self.model = sparsify_(model, GATES, example_inputs=example_inputs)
        """The network in training; in evaluation mode it computes what `finish` would make of it."""
        use_cutoffs_(self.model, {})  # the budget decides, not log alpha: what has not left stays
        self._budget, self._n_train, self._kl_coefficient = budget, n_train, kl_coefficient
        self._cost = cost_function(budget.kind, example_inputs)
        self._dense_cost = self._cost(dense)
        stretches = plan_stretches((budget.fraction,), steps, reached_at=reached_at, cuts=cuts)
        latency = self._measure_part if budget.kind == "latency" else None
        self._removal = GradualRemoval(budget.kind, stretches, dense, example_inputs, round_to, latency=latency)
        self._steps, self._steps_done, self._batches_done = steps, 0, 0
        self._gates = start_natural_steps_(model)
        self._hooks: list[RemovableHandle] = []

    def learn(self, batch_size: int) -> None:
        """Let the variances of the gates follow the curvature; call it after each backward pass of a mean loss.

        Args:
            batch_size: Samples in the batch.

        Raises:
            SettingError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise SettingError(f"GradualPruner.learn: batch_size = {batch_size} has to be at least 1")
        take_natural_steps_(self._gates, batch_size, self._n_train, self._kl_coefficient, self._batches_done)
        self._batches_done += 1

    def regularize(self) -> None:
        """Add the gradient of weight * KL / N to what backward has left; call it before the optimizer's step."""
        regularize_(self.model, kl_weight_now(self._kl_coefficient, self._n_train))

    def remove_(self, optimizer: torch.optim.Optimizer) -> bool:
        """Remove the channels that leave at this step, if there are any; call it after the optimizer's step.

        Args:
            optimizer: The optimizer of the network's parameters; it loses the same channels.

        Returns:
            Whether the network has other parameters now.

        Raises:
            ShrinkError: The smaller network does not compute the same; nothing has changed.
            TrainingError: The gates have learned nothing yet, and say nothing about their channels.
        """
        self._steps_done += 1
        if self._steps_done > self._steps or not self._removal.is_due(self._steps_done):
            return False
        _refuse_ignorant_gates(self.model)
        self._removal.cut_(self.model, optimizer, self._steps_done)
        self._gates = start_natural_steps_(self.model)
        return True

    def attach_(self, optimizer: torch.optim.Optimizer) -> None:
        """Do all of this at each step of `optimizer`, for a training loop that is not to be changed.

        A second call takes the place of the first.

        Args:
            optimizer: The optimizer of the network's parameters; a warning says where it has no gate.

        Raises:
            SettingError: At a step before which the network was called several times, as gradient accumulation does:
                such a loop calls `learn`, `regularize` and `remove_` itself; or at a step with a closure.
        """
        if self._gates and not holds_any(optimizer, [gate.mu for gate in self._gates]):
            warnings.warn(
                f"GradualPruner.attach_: this {type(optimizer).__name__} does not move the gates, so their means stay "
                "as they are: make the optimizer of model.parameters() after the pruner",
                SparseVDWarning,
                stacklevel=2,
            )
        self._detach_()
        counter = _SampleCounter()

        def learn_and_regularize() -> None:
            samples = counter.take()
            if samples:
                self.learn(samples)
            self.regularize()

        def remove(*_: object) -> None:
            self.remove_(optimizer)

        self._hooks = [
            self.model.register_forward_pre_hook(counter, with_kwargs=True),
            call_before_steps(optimizer, learn_and_regularize),
            optimizer.register_step_post_hook(remove),
        ]

    def _detach_(self) -> None:
        """Undo `attach_`."""
        while self._hooks:
            self._hooks.pop().remove()

    def part_left(self) -> float:
        """What the network costs now, as a part of what it cost at the start."""
        return self._cost(make_plain_copy(self.model)) / self._dense_cost

    def _measure_part(self, _place: str, plain: nn.Module) -> float:
        return self._cost(plain) / self._dense_cost

    def finish(self) -> nn.Module:
        """Make the layers ordinary, with the gates folded in: the network computes what it did in evaluation mode.

        It warns where the budget was missed by more than 5 %.

        Returns:
            The network.
        """
        self._detach_()
        bake_(self.model)
        left = self.part_left()
        if misses(left, self._budget.fraction):
            warnings.warn(
                f"GradualPruner: the budget of {self._budget.fraction:g} of the {self._budget.kind} was not met: "
                f"{left:.3f} is left. Channels without a gate, and the last of each group, always stay; so does what "
                "fills a multiple of round_to; and all of its steps have to be taken",
                SparseVDWarning,
                stacklevel=2,
            )
        return self.model


def _refuse_wrong_numbers(kl_coefficient: float, **counts: object) -> None:
    for name, count in counts.items():
        if not isinstance(count, Integral) or int(count) < 1:
            raise SettingError(f"GradualPruner: {name} = {count!r} has to be a whole number of at least 1")
    # The variances rest where the KL and the data hold the balance: without the KL they would fall to 0.
    if not 0 < kl_coefficient < math.inf:
        raise SettingError(f"GradualPruner: kl_coefficient = {kl_coefficient!r} has to be above 0, and finite")


def _refuse_ignorant_gates(model: nn.Module) -> None:
    """Refuse to remove channels by gates none of which has learned: all their channels are worth the same."""
    gates = find_gates(model)
    if gates and all(bool((gate.log_sigma2 == GATES.init_log_sigma2).all()) for gate in gates):
        raise TrainingError(
            "GradualPruner: channels are to leave, and the gates have learned nothing about them. Train in training "
            "mode (model.train()), and call `attach_` once, or `learn` after each backward pass"
        )


def _refuse_too_few_steps(budget: Budget, steps: int, reached_at: float, cuts: int) -> None:
    if not 0 < reached_at <= 1:
        raise SettingError(f"GradualPruner: reached_at = {reached_at:g} is no part of the steps; take 0.65, or 1")
    needed = count_steps_needed((budget.fraction,), reached_at=reached_at, cuts=cuts)
    if steps < needed:
        raise SettingError(
            f"GradualPruner: in {steps} steps the gates cannot learn what is needed for {budget.fraction:g} of the "
            f"{budget.kind}; take at least {needed}"
        )


def _check_reach(model: nn.Module, example_inputs: Inputs, budget: Budget, round_to: int) -> None:
    """Refuse a budget that is out of reach, and warn of gates that remove nothing; a latency is not measured."""
    if budget.kind == "latency":
        return
    gated = sparsify_(copy.deepcopy(model), GATES, example_inputs=example_inputs)
    reach = measure_reach(gated, example_inputs, budget.kind, round_to)
    if misses(reach.least_left, budget.fraction):
        raise SettingError(
            f"GradualPruner: {budget.fraction:g} of the {budget.kind} cannot be reached: once every channel that may "
            f"go has gone, {reach.least_left:.3f} is left. `print(svd.make_plan(model, example_inputs))` says why the "
            f"others stay{'; ' if reach.held else ''}{reach.describe_held()}"
        )
    if reach.held:
        warnings.warn(f"GradualPruner: {reach.describe_held()}", SparseVDWarning, stacklevel=3)


@final
class _SampleCounter:
    """A hook that counts the samples of each pass in training; a copy of the network takes a copy of it along."""

    def __init__(self) -> None:
        self._passes: list[int] = []

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        inputs = [value for _, value in name_leaves((args, kwargs)) if isinstance(value, Tensor)]
        self._passes.append(len(inputs[0]))

    def take(self) -> int:
        """Samples of the only pass since the counter was last asked; 0 where there was none."""
        passes, self._passes = self._passes, []
        if len(passes) > 1:
            raise SettingError(
                f"GradualPruner.attach_: the network was called {len(passes)} times before one step, and what each "
                "batch says of its channels can no longer be told apart. Call `learn` after each backward pass, "
                "`regularize` before the optimizer's step and `remove_` after it, instead of `attach_`"
            )
        return sum(passes)
