"""Which modules of a network are selected, by name, pattern or type."""

from fnmatch import fnmatchcase
from typing import TypeVar

from torch import Tensor, nn

from ..errors import ModelError, SettingError
from ..masks import find_holders
from ..nn import VARIATIONAL, is_convertible
from ..settings import PosteriorSettings

T = TypeVar("T")


def select_layers(model: nn.Module, settings: PosteriorSettings) -> list[str]:
    """Select the layers that can be converted, by name.

    Args:
        model: The network.
        settings: Settings of the posterior.

    Returns:
        Names of the layers, in the order of the network.

    Raises:
        SettingError: A pattern of the settings matches no module.
        ModelError: No layer that can be converted is selected, though weights are to have posteriors.
    """
    check_patterns(model, (*settings.include, *settings.exclude, *settings.kl_weights, *settings.estimators))
    layers = []
    for name, module in model.named_modules():
        if is_convertible(module) and is_selected(name, module, settings):
            layers.append(name)
    if not layers and settings.granularity != "gate":
        kinds = ", ".join(sorted(kind.__name__ for kind in VARIATIONAL))
        raise ModelError(f"{type(model).__name__} has no layer to convert among those selected; known are {kinds}")
    return layers


def require_whole_ties(model: nn.Module, layers: list[str]) -> None:
    """Raise where only some of the modules that share a weight get a posterior.

    The others would go on with the mean of a weight that counts as removed, and bake_ would change what they compute.
    """
    holders = find_holders(model)
    for name in layers:
        outside = [holder for holder in holders[weight_of(model, name)] if holder.rpartition(".")[0] not in layers]
        if outside:
            raise SettingError(
                f"{name}.weight and {outside[0]} are one parameter, but only {name} would get a posterior: exclude "
                f"{name}, or select both where {outside[0].rpartition('.')[0] or 'the network itself'} can have one"
            )


def group_by_weight(model: nn.Module, layers: list[str]) -> list[list[str]]:
    """Group the names of layers: those together that share their weight."""
    groups: dict[Tensor, list[str]] = {}
    for name in layers:
        groups.setdefault(weight_of(model, name), []).append(name)
    return list(groups.values())


def weight_of(model: nn.Module, layer: str) -> Tensor:
    """The weight of a layer by its name."""
    return model.get_submodule(layer).get_parameter("weight")


def matches(pattern: str, name: str, module: nn.Module) -> bool:
    """Whether a pattern fits the name of a module, or is the name of its type or of one that it inherits from."""
    if fnmatchcase(name, pattern):
        return True
    types = type(module).__mro__[:-2]  # without nn.Module and object
    return any(kind.__name__ == pattern for kind in types)


def check_patterns(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Raise where a pattern matches no module."""
    modules = dict(model.named_modules())
    for pattern in patterns:
        if not any(matches(pattern, name, module) for name, module in modules.items()):
            layers = ", ".join(name for name, module in modules.items() if is_convertible(module))
            raise SettingError(
                f"no module of {type(model).__name__} matches {pattern!r}; its layers are: {layers[:600]}"
            )


def is_selected(name: str, module: nn.Module, settings: PosteriorSettings) -> bool:
    """Whether the settings include a module and do not exclude it."""
    if any(matches(pattern, name, module) for pattern in settings.exclude):
        return False
    return not settings.include or any(matches(pattern, name, module) for pattern in settings.include)


def last_match(entries: dict[str, T], modules: dict[str, nn.Module], default: T) -> T:
    """Find the last entry whose name, pattern or type is that of one of the modules, which go by their names."""
    for pattern, entry in reversed(entries.items()):
        if any(matches(pattern, name, module) for name, module in modules.items()):
            return entry
    return default


def settle_estimator(name: str, module: nn.Module, settings: PosteriorSettings) -> PosteriorSettings:
    """Settle the estimator of a module.

    Args:
        name: The name of the module.
        module: The module.
        settings: The settings, whose `estimators` are asked.

    Returns:
        The settings with the last entry that matches the module as their `estimator`, or as they are.
    """
    estimator = last_match(settings.estimators, {name: module}, settings.estimator)
    return settings.model_copy(update={"estimator": estimator})


def find_kl_weight(modules: dict[str, nn.Module], settings: PosteriorSettings) -> float:
    """Find the factor on the KL of one posterior.

    Args:
        modules: The modules that the posterior belongs to, by name: several that share a weight, or write the channels
            of a gate.
        settings: The settings, whose `kl_weights` are asked.

    Returns:
        The last entry that matches one of the modules, else 1.
    """
    return last_match(settings.kl_weights, modules, 1.0)
