"""A network of other sizes than its original: what to write down of it, and how the original takes that on."""

from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import FileFormatError

PLAIN = bool | int | float | str | None
Attributes = dict[str, dict[str, Any]]
"""Module name -> its plain attributes: numbers, words, and tuples and lists of them."""


def read_attributes(model: nn.Module) -> Attributes:
    """The plain public attributes of every module: `out_channels`, `num_heads`, ..."""
    return {name: dict(_plain(module)) for name, module in model.named_modules()}


def read_changed_attributes(model: nn.Module, original: nn.Module) -> Attributes:
    """Those of them that `original`, a network of the same modules, has too, but otherwise."""
    originals, found = read_attributes(original), {}
    for name, now in read_attributes(model).items():
        before = originals[name]
        changed = {k: v for k, v in now.items() if k in before and (before[k] != v or type(before[k]) is not type(v))}
        if changed:
            found[name] = changed
    return found


def resize_(model: nn.Module, tensors: Mapping[str, Tensor], sizes: Any, path: Path) -> nn.Module:
    """Give `model` these tensors, at the sizes that they have, and these attributes, in place; returns it.

    Raises `FileFormatError`, naming `path`, for anything that is not of this network.  Attributes are set only where
    the network has them already, and only to values of the same kind: a file cannot add behaviour.
    """
    _put_tensors_(model, tensors, path)
    _set_attributes_(model, sizes, path)
    return model


def _plain(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for key, value in vars(module).items():
        values = value if isinstance(value, tuple | list) else (value,)
        plain = all(isinstance(item, PLAIN) and not isinstance(item, Enum) for item in values)  # some are words, too
        if plain and not key.startswith("_") and key != "training":
            yield key, value


def _put_tensors_(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Replace parameters and buffers by those of the file, at their sizes; a bias may be new."""
    expected = set(model.state_dict())
    missing = sorted(name for name in expected - set(tensors) if not name.endswith("bias"))
    if missing:
        raise FileFormatError(f"{path}: lacks {', '.join(missing[:5])}; is it of another network?")
    shared: dict[Tensor, nn.Parameter] = {}
    """What is there now -> what takes its place, wherever it is used: tied parameters and shared modules stay so."""
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition(".")
        try:
            module = model.get_submodule(owner)
        except AttributeError:
            raise FileFormatError(f"{path}: holds {name}, but {type(model).__name__} has no {owner}") from None
        if key not in module._parameters and key not in module._buffers:
            raise FileFormatError(f"{path}: holds {name}, but {owner or 'the network'} has no {key}")
        old = getattr(module, key)
        if old is not None and old.dim() != tensor.dim():
            raise FileFormatError(f"{path}: {name} has {tensor.dim()} dimensions, the network's has {old.dim()}")
        if key in module._buffers:
            module._buffers[key] = tensor
        elif old in shared:
            module._parameters[key] = shared[old]
        else:
            learns = tensor.is_floating_point() and (old is None or old.requires_grad)
            new = module._parameters[key] = nn.Parameter(tensor, requires_grad=learns)
            shared |= {new: new} if old is None else {old: new, new: new}
    for name in expected - set(tensors):
        owner, _, key = name.rpartition(".")
        model.get_submodule(owner)._parameters[key] = None


def _set_attributes_(model: nn.Module, attributes: Any, path: Path) -> None:
    modules = dict(model.named_modules())
    if not isinstance(attributes, dict):
        raise FileFormatError(f"{path}: its attributes are no table")
    for name, values in attributes.items():
        if name not in modules or not isinstance(values, dict):
            raise FileFormatError(f"{path}: sets attributes of {name!r}, which {type(model).__name__} does not have")
        known = dict(_plain(modules[name]))
        for key, value in values.items():
            if key not in known:
                raise FileFormatError(f"{path}: sets {name}.{key}, which is no plain attribute there")
            value = tuple(value) if isinstance(value, list) and isinstance(known[key], tuple) else value
            if known[key] is not None and not isinstance(value, type(known[key])) and value is not None:
                raise FileFormatError(f"{path}: sets {name}.{key} to {value!r}, there it is {known[key]!r}")
            setattr(modules[name], key, value)
