"""The modules, parameters and buffers of a network, by name."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Names:
    """The modules, parameters and buffers of a network, by name."""

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


def named_states(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers under every name."""
    # What `named_parameters` and `named_buffers` list, in one walk over the modules instead of two.
    modules = [(f"{name}." if name else "", module) for name, module in list_modules(model)]
    states: list[tuple[str, Tensor]] = []
    for table in ("_parameters", "_buffers"):
        for prefix, module in modules:
            states += [(prefix + key, value) for key, value in getattr(module, table).items() if value is not None]
    return states


def owner_of(state: str) -> str:
    """The module of a parameter or buffer: for a part of a parametrized weight, the one that has the weight."""
    path = f".{state}"
    owner, is_parametrized, _ = path.partition(".parametrizations.")
    return (owner if is_parametrized else path.rpartition(".")[0]).removeprefix(".")


def is_inside(module: str, outer: str) -> bool:
    """Whether a module is another one or inside it, by their names; all are inside the network itself, ""."""
    return not outer or f"{module}.".startswith(f"{outer}.")


def find_names(model: nn.Module) -> Names:
    """Name what a network holds."""
    modules = list_modules(model)
    # In reverse, so that what has several names goes by its first one.
    name_of = {id(module): name for name, module in reversed(modules)}
    return Names(
        name_of,
        {id(tensor): name for name, tensor in reversed(named_states(model))},
        frozenset(name for name, module in modules if isinstance(module, nn.modules.conv._ConvNd)),
        frozenset(name_of[id(module)] for _, module in modules if _is_of_torch(type(module))),
    )


def _is_of_torch(kind: type[nn.Module]) -> bool:
    return kind.__module__.startswith("torch.nn.modules.")
