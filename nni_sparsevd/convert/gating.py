"""Gates: where they can stand, and how one is attached."""

import torch
from torch import Tensor, nn

from ..errors import ModelError, SettingError
from ..graph import ChannelGraph, Inputs, Silencer, Silencing, channel_graph, find_silencing, find_users, is_inside
from ..masks import find_holders
from ..nn import VARIATIONAL, ChannelGate, find_parameter, is_convertible, scales_outputs, scaling_keys
from ..settings import PosteriorSettings
from .selection import find_kl_weight, is_selected


def attach_gates_(model: nn.Module, settings: PosteriorSettings, example_inputs: Inputs | None) -> dict[str, str]:
    """Give every channel group of a network a gate, in place, where it can have one.

    Args:
        model: The network.
        settings: Settings of the posterior.
        example_inputs: Inputs of the network.

    Returns:
        Name of each selected group that is left without a gate -> the reason.

    Raises:
        SettingError: There are no example inputs.
        ModelError: No channel group can have a gate.
        TraceError: The network cannot be traced.
    """
    silencings = find_silencings(model, settings, example_inputs)
    passed_over = name_passed_over_groups(silencings)
    gateable = [silencing for silencing in silencings if not silencing.obstacle]
    if not gateable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(passed_over.items())[:5])
        network = type(model).__name__
        raise ModelError(f"{network} has no channel group that a gate could remove{f': {reasons}' if reasons else ''}")
    for silencing in gateable:
        attach_gate_(model, settings, silencing)
    return passed_over


def find_silencings(model: nn.Module, settings: PosteriorSettings, example_inputs: Inputs | None) -> list[Silencing]:
    """Trace a network for what `find_gateable_groups` finds; raises `SettingError` without example inputs."""
    if example_inputs is None:
        raise SettingError(f"granularity={settings.granularity!r} traces the network: pass example_inputs")
    return find_gateable_groups(model, channel_graph(model, example_inputs), settings)


def name_passed_over_groups(silencings: list[Silencing]) -> dict[str, str]:
    """Name the groups without a gate, each with its number of channels and the reason."""
    passed_over = {}
    for silencing in silencings:
        if silencing.obstacle:
            passed_over[silencing.group.name] = f"{len(silencing.group)} channels have no gate: {silencing.obstacle}"
    return passed_over


def find_gateable_groups(model: nn.Module, graph: ChannelGraph, settings: PosteriorSettings) -> list[Silencing]:
    """Find the channel groups that a gate can remove, and why it cannot remove the others.

    Args:
        model: The network.
        graph: Its channel graph.
        settings: They say which modules are selected.

    Returns:
        For each group that is not pinned and whose writers are selected, in the order of the graph, what silences it,
        or why nothing can.
    """
    holders = find_holders(model)
    users = find_users(graph.trace)
    scales: dict[str, bool] = {}
    silencings = []
    for group in graph.groups:
        modules = [writer.module for writer in group.writers]
        if group.pinned or not all(is_selected(name, model.get_submodule(name), settings) for name in modules):
            continue
        silencing = find_silencing(graph, group)
        for silencer in silencing.silencers:
            obstacle = _find_obstacle(model, silencer, holders, scales) or _find_other_user(model, silencer, users)
            if obstacle:
                silencing = Silencing(group, obstacle=obstacle)
                break
        silencings.append(silencing)
    return silencings


def _find_obstacle(
    model: nn.Module,
    silencer: Silencer,
    holders: dict[Tensor, list[str]],
    scales: dict[str, bool],
) -> str:
    """Why a gate cannot stand behind a module, empty where it can.

    Args:
        model: The network.
        silencer: The module.
        holders: The names of every parameter.
        scales: What was found of other modules; filled on the way.
    """
    # 1. A gate is baked into parameters.  Another module that shares them would be scaled, too.
    # 2. Scaling them must scale what the module returns: that does not hold where a weight is standardized.
    scaled = model.get_submodule(silencer.scaled)
    for key in scaling_keys(scaled):
        parameter = find_parameter(scaled, key)
        if parameter is not None and len(holders[parameter]) > 1:
            return f"{silencer.scaled} shares its {key} with {_other_holder(holders[parameter], silencer.scaled)}"
    if find_parameter(scaled, scaling_keys(scaled)[0]) is None:
        return f"{silencer.scaled} ({type(scaled).__name__}) has no parameter that scales its outputs"
    if silencer.scaled not in scales:
        scales[silencer.scaled] = _takes_up_scale(scaled, silencer)
    if not scales[silencer.scaled]:
        return f"no parameter of {silencer.scaled} ({type(scaled).__name__}) scales its outputs"
    return ""


def _find_other_user(model: nn.Module, silencer: Silencer, users: dict[str, frozenset[str]]) -> str:
    """Which other code uses a parameter that a gate would be baked into, and would find it scaled; empty for none."""
    scaled = model.get_submodule(silencer.scaled)
    for key in scaling_keys(scaled):
        for module in users.get(f"{silencer.scaled}.{key}", ()):
            if not is_inside(module, silencer.scaled):
                return f"the code of {type(model.get_submodule(module)).__name__} uses {silencer.scaled}.{key}, too"
    return ""


def _other_holder(names: list[str], module: str) -> str:
    return next((name for name in names if name.rpartition(".")[0] != module), names[0])


def _takes_up_scale(module: nn.Module, silencer: Silencer) -> bool:
    """Whether scaling the parameters of a layer or a norm scales what it returns."""
    keys = scaling_keys(module)
    is_plain = keys[0] == "weight" and (type(module) in VARIATIONAL or is_convertible(module))
    if silencer.scaled != silencer.layer or is_plain:
        return True  # a norm returns what it normalizes, scaled and shifted
    return scales_outputs(module, keys)


def attach_gate_(model: nn.Module, settings: PosteriorSettings, silencing: Silencing) -> ChannelGate:
    """Attach one gate to every module that silences a channel group.

    Args:
        model: The network.
        settings: Settings of the posterior.
        silencing: The channel group, and the modules behind which the gate stands.

    Returns:
        The gate.

    Raises:
        ModelError: A module that the gate would be attached to is a Sequential.
    """
    group, silencers = silencing.group, silencing.silencers
    # Not `get_parameter`: in a module that a host has wrapped, the weight is a tensor, and no parameter.
    weight: Tensor = getattr(model.get_submodule(silencers[0].layer), "weight")  # noqa: B009
    gate = ChannelGate(len(group), settings, device=weight.device, dtype=weight.dtype)
    names = (group.module, *(writer.module for writer in group.writers))
    gate.kl_weight = find_kl_weight({name: model.get_submodule(name) for name in names}, settings)
    gate.writers = tuple(dict.fromkeys(silencer.layer for silencer in silencers))
    sites = set()
    for silencer in silencers:
        if silencer.site in sites:
            continue  # a module that is called twice
        sites.add(silencer.site)
        is_plain = list(silencer.places) == list(range(len(group)))
        places = None if is_plain else torch.from_numpy(silencer.places)
        gate.attach_(model.get_submodule(silencer.site), silencer.channel_dim, places)
    gate.train(model.get_submodule(silencers[0].site).training)  # a network in evaluation mode stays in it
    return gate
