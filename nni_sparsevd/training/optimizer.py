"""The optimizer of a stage: timm's, with decay on weights alone and a rate of their own for gates."""

import copy
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers  # type: ignore[attr-defined]
from torch import nn

from ..errors import SettingError
from ..nn import ChannelGate
from ..recipe import Stage

FUSED = ("adam", "adamw")


def build_optimizer(model: nn.Module, stage: Stage, gate_rate: float = 1.0) -> torch.optim.Optimizer:
    """Group weights (with decay), all else (without) and gates (without, at `gate_rate` times the rate).

    Each group remembers its multiple of the learning rate under "scale".  Raises `SettingError` for an optimizer that
    timm does not know.
    """
    gates = {id(p) for module in model.modules() if isinstance(module, ChannelGate) for p in module.parameters()}
    weights, others, gated = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in gates:
            gated.append(parameter)
        elif parameter.dim() > 1 and not name.endswith("log_sigma2"):
            weights.append(parameter)
        else:
            others.append(parameter)
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
    except (ValueError, AssertionError, KeyError) as error:
        known = ", ".join(str(name) for name in list_optimizers())
        raise SettingError(f"optimizer {stage.optimizer!r}: {error}; timm knows {known}") from None


def rebuild_optimizer(
    old: torch.optim.Optimizer, model: nn.Module, stage: Stage, gate_rate: float = 1.0
) -> torch.optim.Optimizer:
    """What `build_optimizer` makes of a network that was shrunk, with the memory of its optimizer.

    Parameters that shrinking brought (a bias that took up constants) are then where a resumed run has them, too.
    """
    new = build_optimizer(model, stage, gate_rate)
    counted = {
        key: value for key, value in old.param_groups[0].items() if key not in ("params", "weight_decay", "scale")
    }
    for group in new.param_groups:
        group.update(copy.deepcopy(counted))  # some count their steps in their groups, in a tensor of each
        for parameter in group["params"]:
            if parameter in old.state:
                new.state[parameter] = old.state[parameter]
    return new


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group to its multiple of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)  # the groups of a foreign optimizer have none
