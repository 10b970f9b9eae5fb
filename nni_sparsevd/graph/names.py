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


def find_names(model: nn.Module) -> Names:
    """Name what a network holds."""
    modules = list(model.named_modules(remove_duplicate=False))
    # In reverse, so that a module with several names goes by its first one.
    return Names(modules, {id(module): name for name, module in reversed(modules)}, _name_states(modules))


def _name_states(modules: Sequence[tuple[str, nn.Module]]) -> dict[int, str]:
    """The first name of each parameter, and of each buffer, by its id."""
    names: dict[int, str] = {}
    for table in ("_parameters", "_buffers"):
        for module_name, module in modules:
            prefix = f"{module_name}." if module_name else ""
            for key, tensor in getattr(module, table).items():
                names.setdefault(id(tensor), prefix + key)
    return names
