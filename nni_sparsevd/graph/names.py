"""The modules, parameters and buffers of a network, by name."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Names:
    """The modules, parameters and buffers of a network, by name."""

    modules: list[tuple[str, nn.Module]]
    """Under every name."""
    name_of: dict[int, str]
    """The first name of each module, by its id."""
    state_of: dict[int, str]
    """The first name of each parameter, and of each buffer, by its id."""
    convolutions: frozenset[str]
    """The names of PyTorch's convolutions, and of classes derived from them."""
    layers: frozenset[str]
    """The first names of the modules whose classes are PyTorch's own, not derived from them."""


def list_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of a network under every name, as `named_modules(remove_duplicate=False)` lists them."""
    # That one is a generator in a generator for each level, and several times as slow; a plan lists them often.
    found = [("", model)]
    _append_children(found, "", model)
    return found


def _append_children(found: list[tuple[str, nn.Module]], prefix: str, module: nn.Module) -> None:
    for key, child in module._modules.items():
        if child is not None:
            found.append((prefix + key, child))
            _append_children(found, f"{prefix}{key}.", child)


def owner_of(state: str) -> str:
    """The module of a parameter or buffer: for a part of a parametrized weight, the one that has the weight."""
    path = f".{state}"
    owner, is_parametrized, _ = path.partition(".parametrizations.")
    return (owner if is_parametrized else path.rpartition(".")[0]).removeprefix(".")


def find_names(model: nn.Module) -> Names:
    """Name what a network holds."""
    modules = list_modules(model)
    # In reverse, so that a module with several names goes by its first one.
    name_of = {id(module): name for name, module in reversed(modules)}
    return Names(
        modules,
        name_of,
        _name_states(modules),
        frozenset(name for name, module in modules if isinstance(module, nn.modules.conv._ConvNd)),
        frozenset(name_of[id(module)] for _, module in modules if _is_of_torch(type(module))),
    )


def _is_of_torch(kind: type[nn.Module]) -> bool:
    return kind.__module__.startswith("torch.nn.modules.")


def _name_states(modules: Sequence[tuple[str, nn.Module]]) -> dict[int, str]:
    """The first name of each parameter, and of each buffer, by its id."""
    names: dict[int, str] = {}
    for table in ("_parameters", "_buffers"):
        for module_name, module in modules:
            prefix = f"{module_name}." if module_name else ""
            for key, tensor in getattr(module, table).items():
                names.setdefault(id(tensor), prefix + key)
    return names
