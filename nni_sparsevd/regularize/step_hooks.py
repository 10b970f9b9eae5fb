"""Hooks before the steps of an optimizer, for a training loop that is not to be changed."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState
from torch.utils.hooks import RemovableHandle

from ..errors import SettingError


def holds_any(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> bool:
    """Whether an optimizer moves at least one of these parameters."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return any(id(parameter) in held for parameter in parameters)


def read_loss_scale(optimizer: torch.optim.Optimizer, scaler: GradScaler | None = None) -> float:
    """The factor of a loss scaler (float16) that the gradients of an optimizer still carry, else 1.

    Args:
        optimizer: The optimizer itself, not a host's wrapper of it.
        scaler: The scaler, where the host knows it. None, in a hook of the optimizer's step: by then a scaler has
            divided the gradients, unless the optimizer does that by itself, as fused ones do. Those get the factor.
    """
    if scaler is None:
        return float(getattr(optimizer, "grad_scale", None) or 1.0)
    if not scaler.is_enabled():
        return 1.0
    # Whether `unscale_` has divided them since the last step, for clipping perhaps, torch tells in no public way.
    is_unscaled = scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.UNSCALED
    return 1.0 if is_unscaled else scaler.get_scale()


def call_before_steps(optimizer: torch.optim.Optimizer, action: Callable[[], None]) -> RemovableHandle:
    """Call an action before each step of an optimizer, after backward has computed the gradients.

    Args:
        optimizer: The optimizer. At a step with a closure, as Lightning takes them, a SettingError is raised: backward
            runs inside of such a step.
        action: What is called.

    Returns:
        A handle that removes the hook.
    """

    def run_action(_: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args begins with the optimizer
        if closure is not None:
            raise SettingError(
                f"attach_: this step of {type(optimizer).__name__} gets a closure and runs backward itself, so nothing "
                "can be done between the two. Make the calls that attach_ would make yourself: in Lightning those "
                "before a step in `on_before_optimizer_step`, those after it in `on_train_batch_end`"
            )
        action()

    return optimizer.register_step_pre_hook(run_action)
