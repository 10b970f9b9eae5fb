"""The optimizer of a stage: timm's, with decay on weights alone and a learning rate of their own for gates."""

import copy
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers  # type: ignore[attr-defined]
from torch import nn

from ..errors import SettingError
from ..nn import ChannelGate
from ..recipe import Stage

FUSED = ("adam", "adamw")
"""Optimizers of torch that can take a whole step in one kernel."""
SET_BY_STAGE = ("params", "weight_decay", "scale")
"""Entries of a group that the network and the stage decide; the rest is settings and counts of the optimizer."""


def build_optimizer(model: nn.Module, stage: Stage, gate_rate: float = 1.0) -> torch.optim.Optimizer:
    """Make the optimizer of `stage`, with up to three groups: weights, gates, and all other parameters.

    Only weights decay. Each group remembers its multiple of the learning rate under "scale".

    Args:
        model: The network; frozen parameters are left out.
        stage: Names the optimizer and has its learning rate and decay.
        gate_rate: Learning rate of gates, as a multiple of that of the weights.

    Returns:
        An optimizer of torch or timm.

    Raises:
        SettingError: timm does not know the optimizer, or the optimizer refuses its settings.
    """
    # Decay would pull variances and gates, too, about which the KL has to decide, and scale and shift of norms.
    weights, others, gated = _sort_parameters(model)
    groups = [
        {"params": weights, "weight_decay": stage.weight_decay, "scale": 1.0},
        {"params": others, "weight_decay": 0.0, "scale": 1.0},
        {"params": gated, "weight_decay": 0.0, "scale": gate_rate},
    ]
    options: dict[str, Any] = {"fused": True} if stage.optimizer in FUSED else {}
    try:
        return create_optimizer_v2(
            [group for group in groups if group["params"]], opt=stage.optimizer, lr=stage.learning_rate, **options
        )
    # timm and torch say in three ways that they do not know a name or refuse a setting.
    except (ValueError, AssertionError, KeyError) as error:
        known = ", ".join(str(name) for name in list_optimizers())
        raise SettingError(f"optimizer {stage.optimizer!r}: {error}; timm knows {known}") from None


def _sort_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """(weights, others, parameters of gates), as far as they learn."""
    gate_parameters: set[int] = set()
    for module in model.modules():
        if isinstance(module, ChannelGate):
            gate_parameters.update(id(parameter) for parameter in module.parameters())
    weights, others, gated = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in gate_parameters:
            gated.append(parameter)
        elif parameter.dim() > 1 and not name.endswith("log_sigma2"):
            weights.append(parameter)
        else:
            others.append(parameter)
    return weights, others, gated


def rebuild_optimizer(
    old: torch.optim.Optimizer, model: nn.Module, stage: Stage, gate_rate: float = 1.0
) -> torch.optim.Optimizer:
    """Make the optimizer of a network that was shrunk, with the state that `old` has of its parameters.

    Shrinking may add parameters (a bias that takes up constants), which `old` has in no group, or in the last place.
    In the new optimizer all parameters have the order in which a resumed run, which builds it anew, has them.

    Args:
        old: The optimizer before; it already holds the smaller parameters (`shrink_` sees to that).
        model: The network after shrinking.
        stage: What `old` was built with.
        gate_rate: What `old` was built with.

    Returns:
        A new optimizer.
    """
    new = build_optimizer(model, stage, gate_rate)
    settings = {key: value for key, value in old.param_groups[0].items() if key not in SET_BY_STAGE}
    for group in new.param_groups:
        # Some optimizers count their steps in their groups, in a tensor: each group needs one of its own.
        group.update(copy.deepcopy(settings))
        for parameter in group["params"]:
            if parameter in old.state:
                new.state[parameter] = old.state[parameter]
    return new


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group to its multiple of `rate`.

    Args:
        optimizer: From `build_optimizer`, or any other: a group without "scale" gets `rate` itself.
        rate: The learning rate of the weights.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)
