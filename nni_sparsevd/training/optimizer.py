"""The optimizer of a stage: timm's, with decay on weights alone and a learning rate of their own for gates."""

import copy
from collections.abc import Collection
from typing import Any

import torch
from timm.optim import (  # type: ignore[attr-defined]
    create_optimizer_v2,
    list_optimizers,
    param_groups_layer_decay,
)
from torch import nn

from ..errors import SettingError
from ..nn import ChannelGate
from ..recipe import SparseStage, Stage

FUSED = ("adam", "adamw")
"""Optimizers of torch that can take a whole step in one kernel."""
SET_BY_STAGE = ("params", "weight_decay", "scale")
"""Entries of a group that the network and the stage decide; the rest is settings and counts of the optimizer."""


def build_optimizer(model: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """Make the optimizer of `stage`, with up to three groups: weights, gates, and all other parameters.

    Only weights decay, except those that the network itself names, as timm's do (`no_weight_decay`). Each group
    remembers its multiple of the learning rate under "scale". With `layer_decay` each layer has groups of its own.

    Args:
        model: The network; frozen parameters are left out.
        stage: Names the optimizer, and has its learning rate and decay. Gates learn at the `gate_rate` of a sparse one.

    Returns:
        An optimizer of torch or timm.

    Raises:
        SettingError: timm does not know the optimizer, the optimizer refuses its settings, or timm does not know the
            layers of the network, whose rates are to differ.
    """
    # Variances and gates do not decay, for the KL decides about them; nor do scale and shift of norms, as in timm.
    weights, others, gated = _sort_parameters(model)
    gate_rate = stage.gate_rate if isinstance(stage, SparseStage) else 1.0
    layer_scales = _find_layer_scales(model, stage.layer_decay)
    groups = []
    for parameters, decay, scale in ((weights, stage.weight_decay, 1.0), (others, 0.0, 1.0), (gated, 0.0, gate_rate)):
        for layer_scale, of_layers in _split_by_scale(parameters, layer_scales):
            groups.append({"params": of_layers, "weight_decay": decay, "scale": scale * layer_scale})
    options: dict[str, Any] = {"fused": True} if stage.optimizer in FUSED else {}
    try:
        return create_optimizer_v2(groups, opt=stage.optimizer, lr=stage.learning_rate, **options)
    # timm and torch say in three ways that they do not know a name or refuse a setting.
    except (ValueError, AssertionError, KeyError) as error:
        known = ", ".join(str(name) for name in list_optimizers())
        raise SettingError(f"optimizer {stage.optimizer!r}: {error}; timm knows {known}") from None


def _find_layer_scales(model: nn.Module, layer_decay: float | None) -> dict[nn.Parameter, float]:
    """Parameter -> multiple of the learning rate, by timm's layers of the network; empty without a decay."""
    if layer_decay is None:
        return {}
    scales = {}
    for group in param_groups_layer_decay(model, layer_decay=layer_decay):
        scales.update(dict.fromkeys(group["params"], group["lr_scale"]))
    if len(set(scales.values())) == 1:
        raise SettingError(
            f"layer_decay = {layer_decay:g}: timm does not know the layers of {type(model).__name__}, so all of them "
            "would have one rate; leave it out, or take a network of timm, which has a group_matcher"
        )
    return scales


def _split_by_scale(
    parameters: list[nn.Parameter], scales: dict[nn.Parameter, float]
) -> list[tuple[float, list[nn.Parameter]]]:
    """Multiples of the learning rate, from small to large, each with its parameters in order."""
    by_scale: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_scale.setdefault(scales.get(parameter, 1.0), []).append(parameter)
    return sorted(by_scale.items(), key=lambda item: item[0])


def _sort_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """(weights, others, parameters of gates), as far as they learn."""
    gate_parameters: set[int] = set()
    for module in model.modules():
        if isinstance(module, ChannelGate):
            gate_parameters.update(id(parameter) for parameter in module.parameters())
    without_decay: Collection[str] = getattr(model, "no_weight_decay", tuple)()
    weights, others, gated = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in gate_parameters:
            gated.append(parameter)
        elif parameter.dim() > 1 and not name.endswith("log_sigma2") and name not in without_decay:
            weights.append(parameter)
        else:
            others.append(parameter)
    return weights, others, gated


def rebuild_optimizer(old: torch.optim.Optimizer, model: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """Make the optimizer of a network that was shrunk, with the state that `old` has of its parameters.

    Shrinking may add parameters (a bias that takes up constants), which `old` has in no group, or at the end of one.
    In the new optimizer the parameters have the same order as in a resumed run, which builds its optimizer afresh.

    Args:
        old: The optimizer before; it already holds the smaller parameters (`shrink_` sees to that).
        model: The network after shrinking.
        stage: What `old` was built with.

    Returns:
        A new optimizer.
    """
    new = build_optimizer(model, stage)
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
