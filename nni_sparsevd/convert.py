"""`sparsify_` and `bake_`: ordinary layers learn a posterior, and become ordinary again.  A pair that undoes itself."""

from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor, nn

from .errors import ModelError, SettingError
from .graph import (
    ChannelGraph,
    Inputs,
    Silencer,
    Silencing,
    channel_graph,
    find_silencing,
    require_convertible,
)
from .masks import Masks, apply_masks_, compute_masks, find_holders, validate_masks
from .nn import (
    VARIATIONAL,
    ChannelGate,
    is_convertible,
    is_variational,
    scales_outputs,
    scaling_keys,
    share_posterior_,
    to_plain_network_,
    to_variational_,
)
from .settings import PosteriorSettings, make_settings

T = TypeVar("T")


def sparsify_(
    model: nn.Module,
    settings: PosteriorSettings | None = None,
    *,
    example_inputs: Inputs | None = None,
    **keywords: object,
) -> nn.Module:
    """Give the layers of a network a posterior, in place.

    Linear, convolution, transposed convolution and embedding layers become variational. Their parameters stay the same
    objects, so an optimizer made before still holds them, but it does not hold the new ones. Layers that share a weight
    share its posterior: what it removes is removed for all of them, and its KL counts once. With gates, the network is
    traced, and each coupled channel group gets one gate, after the normalization behind each of its last writers.

    Law: `bake_` undoes it. With nothing removed, the network then computes what it computed before, with its own
    classes and state-dict keys.

    Args:
        model: Any network.
        settings: What is learned, and about which layers; None: the defaults.
        example_inputs: Inputs of the network: one tensor, or a tuple of them; needed for gates only.
        keywords: Fields of `PosteriorSettings`, instead of `settings`: `sparsify_(model, exclude=["head"])`.

    Returns:
        `model`.

    Raises:
        SettingError: Both `settings` and keywords, an unknown keyword or a wrong value, a pattern that matches no
            module, gates without `example_inputs`, a layer that cannot carry a posterior, or one that shares its weight
            with a module that gets none.
        ModelError: The network is variational already, quantized, exported or lazy, or has no layer or channel group to
            convert.
        TraceError: The network cannot be traced with `example_inputs`.

    Example:
        ```python
        import nni_sparsevd as svd
        import torch
        from torch import nn

        model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        svd.sparsify_(model, granularity="gate", example_inputs=torch.zeros(1, 8))
        optimizer = torch.optim.Adam(model.parameters())
        ```
    """
    if settings is not None and keywords:
        keys = ", ".join(keywords)
        raise SettingError(f"sparsify_: give either a PosteriorSettings or keywords, not both (found {keys})")
    chosen = make_settings(PosteriorSettings, keywords) if settings is None else settings
    if is_variational(model):
        raise ModelError(f"{type(model).__name__} is variational already; bake_ it first")
    require_convertible(model)
    layers = _select_layers(model, chosen)
    _require_whole_ties(model, layers)
    if chosen.granularity in ("gate", "both"):
        _attach_gates_(model, chosen, example_inputs)
    if chosen.granularity in ("weight", "both"):
        for names in _group_by_weight(model, layers):
            _add_posterior_(model, names, chosen)
    return model


def _select_layers(model: nn.Module, settings: PosteriorSettings) -> list[str]:
    """Names of the layers that can be converted and that the settings select; raises where there are none."""
    _check_patterns(model, (*settings.include, *settings.exclude, *settings.kl_weights, *settings.estimators))
    layers = []
    for name, module in model.named_modules():
        if is_convertible(module) and _is_selected(name, module, settings):
            layers.append(name)
    if not layers:
        kinds = ", ".join(sorted(kind.__name__ for kind in VARIATIONAL))
        raise ModelError(f"{type(model).__name__} has no layer to convert among those selected; known are {kinds}")
    return layers


def _require_whole_ties(model: nn.Module, layers: list[str]) -> None:
    """Raise where only some of the modules that share a weight get a posterior.

    The others would go on with the mean of a weight that counts as removed, and bake_ would change what they compute.
    """
    holders = find_holders(model)
    for name in layers:
        outside = [holder for holder in holders[_weight_of(model, name)] if holder.rpartition(".")[0] not in layers]
        if outside:
            raise SettingError(
                f"{name}.weight and {outside[0]} are one parameter, but only {name} would get a posterior: exclude "
                f"{name}, or select both where {outside[0].rpartition('.')[0] or 'the network itself'} can have one"
            )


def _group_by_weight(model: nn.Module, layers: list[str]) -> list[list[str]]:
    """The layers, those together that share their weight."""
    groups: dict[Tensor, list[str]] = {}
    for name in layers:
        groups.setdefault(_weight_of(model, name), []).append(name)
    return list(groups.values())


def _weight_of(model: nn.Module, layer: str) -> Tensor:
    return model.get_submodule(layer).get_parameter("weight")


def _add_posterior_(model: nn.Module, names: list[str], settings: PosteriorSettings) -> None:
    """Make layers variational that share one weight; mostly that is a single layer."""
    layers = []
    for name in names:
        layer = model.get_submodule(name)
        estimator = _last_match(settings.estimators, name, layer, settings.estimator)
        layer = to_variational_(layer, settings.model_copy(update={"estimator": estimator}))
        layer.kl_weight = find_kl_weight(name, layer, settings)
        layers.append(layer)
    if len(layers) > 1:
        share_posterior_(layers[0], layers[1:])


# Patterns.


def _matches(pattern: str, name: str, module: nn.Module) -> bool:
    """Whether a pattern fits the name of a module, or is the name of its type or of one that it inherits from."""
    if fnmatchcase(name, pattern):
        return True
    types = type(module).__mro__[:-2]  # without nn.Module and object
    return any(kind.__name__ == pattern for kind in types)


def _check_patterns(model: nn.Module, patterns: tuple[str, ...]) -> None:
    modules = dict(model.named_modules())
    for pattern in patterns:
        if not any(_matches(pattern, name, module) for name, module in modules.items()):
            layers = ", ".join(name for name, module in modules.items() if is_convertible(module))
            raise SettingError(
                f"no module of {type(model).__name__} matches {pattern!r}; its layers are: {layers[:600]}"
            )


def _is_selected(name: str, module: nn.Module, settings: PosteriorSettings) -> bool:
    if any(_matches(pattern, name, module) for pattern in settings.exclude):
        return False
    return not settings.include or any(_matches(pattern, name, module) for pattern in settings.include)


def _last_match(entries: dict[str, T], name: str, module: nn.Module, default: T) -> T:
    """The last entry whose name, pattern or type is this module's."""
    for pattern, entry in reversed(entries.items()):
        if _matches(pattern, name, module):
            return entry
    return default


def find_kl_weight(name: str, module: nn.Module, settings: PosteriorSettings) -> float:
    """Find the factor on the KL of a module.

    Args:
        name: The name of the module.
        module: The module.
        settings: The settings, whose `kl_weights` are asked.

    Returns:
        The last entry that matches the module, else 1.
    """
    return _last_match(settings.kl_weights, name, module, 1.0)


# Gates.


def _attach_gates_(model: nn.Module, settings: PosteriorSettings, example_inputs: Inputs | None) -> None:
    if example_inputs is None:
        raise SettingError(f"granularity={settings.granularity!r} traces the network: pass example_inputs")
    silencings = find_gateable_groups(model, channel_graph(model, example_inputs), settings)
    gateable = [silencing for silencing in silencings if not silencing.obstacle]
    if not gateable:
        reasons = "; ".join(f"{silencing.group.name}, because {silencing.obstacle}" for silencing in silencings[:5])
        passed_over = f": passed over are {reasons}" if reasons else ""
        raise ModelError(f"{type(model).__name__} has no channel group that a gate could remove{passed_over}")
    for silencing in gateable:
        attach_gate_(model, settings, silencing)


def find_gateable_groups(model: nn.Module, graph: ChannelGraph, settings: PosteriorSettings) -> list[Silencing]:
    """Find the channel groups that a gate can remove, and why it cannot remove the others.

    Args:
        model: The network.
        graph: Its channel graph.
        settings: They say which modules are selected.

    Returns:
        For each group that is not pinned, in the order of the graph, what silences it, or why nothing can.
    """
    holders = find_holders(model)
    scales: dict[str, bool] = {}
    silencings = []
    for group in graph.groups:
        if group.pinned:
            continue
        silencing = find_silencing(graph, group)
        for silencer in silencing.silencers:
            obstacle = _find_obstacle(model, silencer, settings, holders, scales)
            if obstacle:
                silencing = Silencing(group, obstacle=obstacle)
                break
        silencings.append(silencing)
    return silencings


def _find_obstacle(
    model: nn.Module,
    silencer: Silencer,
    settings: PosteriorSettings,
    holders: dict[Tensor, list[str]],
    scales: dict[str, bool],
) -> str:
    """Why a gate cannot stand behind a module, empty where it can.

    Args:
        model: The network.
        silencer: The module.
        settings: They say which modules are selected.
        holders: The names of every parameter.
        scales: What was found of other modules; filled on the way.
    """
    # 1. The gate is there as long as the layer is selected, like a posterior of its weights.
    # 2. A gate is baked into parameters.  Another module that shares them would be scaled, too.
    # 3. Scaling them must scale what the module returns: that does not hold where a weight is standardized.
    layer, scaled = model.get_submodule(silencer.layer), model.get_submodule(silencer.scaled)
    if not _is_selected(silencer.layer, layer, settings):
        return f"{silencer.layer} is not selected"
    for key in scaling_keys(scaled):
        parameter = scaled._parameters.get(key)
        if parameter is not None and len(holders[parameter]) > 1:
            return f"{silencer.scaled} shares its {key} with {_other_holder(holders[parameter], silencer.scaled)}"
    if scaled._parameters.get(scaling_keys(scaled)[0]) is None:
        return f"{silencer.scaled} ({type(scaled).__name__}) has no parameter that scales its outputs"
    if silencer.scaled not in scales:
        scales[silencer.scaled] = _takes_up_scale(scaled, silencer)
    if not scales[silencer.scaled]:
        return f"no parameter of {silencer.scaled} ({type(scaled).__name__}) scales its outputs"
    return ""


def _other_holder(names: list[str], module: str) -> str:
    return next((name for name in names if name.rpartition(".")[0] != module), names[0])


def _takes_up_scale(module: nn.Module, silencer: Silencer) -> bool:
    """Whether scaling the parameters of a layer or a norm scales what it returns."""
    if silencer.scaled != silencer.layer or type(module) in VARIATIONAL or is_convertible(module):
        return True  # a norm returns what it normalizes, scaled and shifted
    return scales_outputs(module, scaling_keys(module))


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
    gate.kl_weight = find_kl_weight(group.module, model.get_submodule(group.module), settings)
    gate.writers = tuple(dict.fromkeys(silencer.layer for silencer in silencers))
    sites = set()
    for silencer in silencers:
        if silencer.site in sites:
            continue  # a module that is called twice
        sites.add(silencer.site)
        is_plain = list(silencer.places) == list(range(len(group)))
        places = None if is_plain else torch.from_numpy(silencer.places)
        gate.attach_(model.get_submodule(silencer.site), silencer.channel_dim, places)
    return gate


def bake_(model: nn.Module, masks: Masks | None = None, *, allow_empty: bool = False) -> nn.Module:
    """Make every layer of a network ordinary again, in place, with zeros where the masks remove.

    Gates are multiplied into the normalization or layer that they follow. Networks without posteriors only get the
    masks.

    Law: in evaluation mode a variational network computes exactly what `bake_(model)` computes.

    Args:
        model: Any network.
        masks: What to keep and remove; they may name ordinary layers too, and what they do not name is kept whole.
            None: every layer and gate is cut at its own threshold, as in evaluation mode.
        allow_empty: Accept masks that remove a whole layer.

    Returns:
        `model`.

    Raises:
        MaskError: A mask names no module or parameter, has another shape than the parameter, holds other values than 0
            and 1, or removes a whole layer without `allow_empty`. The network is then what it was.

    Example:
        ```python
        import nni_sparsevd as svd
        from torch import nn

        model = svd.sparsify_(nn.Sequential(nn.Linear(8, 2)))
        svd.bake_(model, svd.compute_masks(model, ratio=0.5))
        assert type(model[0]) is nn.Linear and model[0].weight.count_nonzero() == 8
        ```
    """
    if masks is not None:
        validate_masks(model, masks, allow_empty=allow_empty)
        chosen = masks
    else:
        chosen = compute_masks(model) if is_variational(model) else {}
    to_plain_network_(model)
    apply_masks_(model, chosen)
    return model
