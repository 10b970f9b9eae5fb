"""What goes into a network and comes out of it: tensors and plain values in any nesting."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

PLAIN = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type, Enum,
    torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
"""Values that hold no tensor and can be compared with ==."""
CLOSED = (*PLAIN, Tensor, nn.Module, FunctionType, BuiltinFunctionType, MethodType, ModuleType, torch.Generator)
"""Values that are not looked into."""


@dataclasses.dataclass(frozen=True)
class _Branch:
    """A value that holds others."""

    children: dict[str, Any]
    """The values that it holds, by the name of their place."""
    rebuild: Callable[[list[Any]], Any]
    """Makes another value of its kind from other children."""


def name_leaves(tree: Any) -> list[tuple[str, Any]]:
    """List what a nested value holds.

    Args:
        tree: Tensors and other values in dicts, lists, tuples, dataclasses, what PyTorch knows as a pytree, and objects
            with attributes.

    Returns:
        (place, value) for each value that holds no others.  The place is like "logits" or "states.0.mean", and empty
        where `tree` itself is such a value.
    """
    return list(_walk_leaves(tree, "", ()))


def _walk_leaves(tree: Any, name: str, enclosing: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    if id(tree) in enclosing:  # an object may refer to what holds it, which is not looked into again
        return
    branch = _open(tree)
    if branch is None:
        yield name, tree
        return
    for key, child in branch.children.items():
        yield from _walk_leaves(child, f"{name}.{key}" if name else key, (*enclosing, id(tree)))


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Build the same nesting with other values.

    Args:
        function: A value that holds no others -> the new value; see `name_leaves`.
        tree: A nested value.  It is left as it is.

    Returns:
        New containers of the same kinds.
    """
    return _map_leaves(function, tree, ())


def _map_leaves(function: Callable[[Any], Any], tree: Any, enclosing: tuple[int, ...]) -> Any:
    if id(tree) in enclosing:
        return tree
    branch = _open(tree)
    if branch is None:
        return function(tree)
    enclosing = (*enclosing, id(tree))
    return branch.rebuild([_map_leaves(function, child, enclosing) for child in branch.children.values()])


def to_plain(tree: Any) -> Any:
    """Make the same nesting of dicts, lists and tuples alone, which can be read without the classes of a network.

    Args:
        tree: A nested value.

    Returns:
        Dicts in the place of mappings, dataclasses and other objects; lists and tuples; the same values in them.
    """
    branch = _open(tree)
    if branch is None:
        return tree
    children = {name: to_plain(child) for name, child in branch.children.items()}
    if isinstance(tree, list):
        return list(children.values())
    is_named = isinstance(tree, tuple) and "_fields" in dir(tree)
    return tuple(children.values()) if isinstance(tree, tuple) and not is_named else children


def _open(tree: Any) -> _Branch | None:
    """What a value holds; None where it holds nothing that can be looked into."""
    if isinstance(tree, CLOSED):
        return None
    # One level of what PyTorch knows: Python's containers, named tuples, and classes that were registered there.
    children, spec = tree_flatten(tree, is_leaf=lambda value: value is not tree)
    if not spec.is_leaf():
        names = _name_children(tree, len(children))
        return _Branch(dict(zip(names, children, strict=True)), lambda new: tree_unflatten(new, spec))
    if isinstance(tree, Mapping):
        return _Branch({str(key): value for key, value in tree.items()}, lambda new: _refill_mapping(tree, new))
    if isinstance(tree, list | tuple):
        return _Branch({str(index): value for index, value in enumerate(tree)}, type(tree))
    names = _name_attributes(tree)
    if not names:
        return None
    return _Branch({name: getattr(tree, name) for name in names}, lambda new: _set_attributes(tree, names, new))


def _name_children(tree: Any, number: int) -> list[str]:
    """Names of the places in a container that PyTorch knows."""
    names = [str(index) for index in range(number)]
    if isinstance(tree, Mapping):
        names = [str(key) for key in tree]
    elif isinstance(tree, tuple):
        names = list(getattr(tree, "_fields", names))  # those of a named tuple
    # A class may have been registered with fewer children than it has keys, and two keys may look alike as text.
    return names if len(set(names)) == number else [str(index) for index in range(number)]


def _name_attributes(tree: Any) -> list[str]:
    if dataclasses.is_dataclass(tree):
        return [field.name for field in dataclasses.fields(tree) if hasattr(tree, field.name)]
    return list(getattr(tree, "__dict__", {}))


def _refill_mapping(tree: Any, children: list[Any]) -> Any:
    """A mapping of the same class with other values, or a dict where that class does not take them."""
    filled = copy.copy(tree) if isinstance(tree, MutableMapping) else dict(tree)
    for key, value in zip(tree, children, strict=True):
        filled[key] = value
    return filled


def _set_attributes(tree: Any, names: list[str], children: list[Any]) -> Any:
    """An object of the same class with other attributes."""
    filled = copy.copy(tree)
    for name, value in zip(names, children, strict=True):
        object.__setattr__(filled, name, value)  # a frozen dataclass would refuse its own
    return filled
