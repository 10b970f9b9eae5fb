"""A network of other sizes than its original: what to write down of it, and how the original takes that on."""

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FileFormatError

PLAIN = bool | int | float | str | None
Attributes = dict[str, dict[str, Any]]
"""Module name -> its plain attributes: numbers, words, and tuples and lists of them."""


def read_attributes(model: nn.Module) -> Attributes:
    """Read the plain public attributes of every module: `out_channels`, `num_heads`, ...

    Args:
        model: Any network.

    Returns:
        Module name -> attribute -> value, for numbers, words, None, and tuples and lists of these.
    """
    return {name: _read_plain(module) for name, module in model.named_modules()}


def read_changed_attributes(model: nn.Module, original: nn.Module) -> Attributes:
    """Read the plain attributes in which a network differs from its original.

    Args:
        model: The network, shrunk for instance.
        original: A network of the same modules.

    Returns:
        Module name -> attribute -> value in `model`, for attributes that `original` has with another value or type.
    """
    originals = read_attributes(original)
    changes = {}
    for name, attributes in read_attributes(model).items():
        changed = {}
        for key, value in attributes.items():
            if key in originals[name] and not _is_same(originals[name][key], value):
                changed[key] = value
        if changed:
            changes[name] = changed
    return changes


def split_attributes(model: nn.Module, attributes: Attributes) -> tuple[Attributes, Attributes]:
    """Split attributes into those that a fresh network has for certain, and those that it may lack.

    Args:
        model: The network.
        attributes: What `read_attributes` has read of it.

    Returns:
        The sizes and settings of PyTorch's own layers; and all others: a module of the user's may set them in its
        forward pass, or a trainer may keep notes in them.
    """
    certain: Attributes = {}
    possible: Attributes = {}
    for name, module in model.named_modules():
        settings = getattr(type(module), "__constants__", ()) if _is_of_torch(module) else ()
        certain[name] = {}
        for key, value in attributes.get(name, {}).items():
            if key in settings:
                certain[name][key] = value
            else:
                possible.setdefault(name, {})[key] = value
    return certain, possible


def set_possible_attributes_(model: nn.Module, attributes: Any, path: Path) -> None:
    """Set attributes of a file in place, but for those that the network does not have.

    Args:
        model: The network.
        attributes: Module name -> attribute -> value, as a file has them: nothing of it is trusted.
        path: The file, for messages.

    Raises:
        FileFormatError: A value is of another kind than the network's.
    """
    modules = dict(model.named_modules())
    present: Attributes = {}
    for name, values in attributes.items() if isinstance(attributes, dict) else ():
        if name in modules and isinstance(values, dict):
            known = _read_plain(modules[name])
            present[name] = {key: value for key, value in values.items() if key in known}
    _set_attributes_(model, present, path)


def resize_(model: nn.Module, tensors: Mapping[str, Tensor], attributes: Any, path: Path) -> nn.Module:
    """Give a network the tensors of a file, at the sizes that they have, and its attributes.

    Attributes are set only where the network has them already, and only to values of the same kind: a file cannot add
    behavior.  Parameters that are tied in the network stay tied, where the file has the same tensor for them.

    Args:
        model: The original, at its full size.  It is changed in place.
        tensors: Name -> tensor, of any size with the right number of dimensions.  A bias may be new or missing.
        attributes: Module name -> attribute -> value, as a file has them: nothing of it is trusted.
        path: The file, for messages.

    Returns:
        `model`.

    Raises:
        FileFormatError: A tensor or an attribute is not one of this network, or is missing.
    """
    _put_tensors_(model, tensors, path)
    _set_attributes_(model, attributes, path)
    return model


def _read_plain(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if _is_plain(key, value)}


def _is_plain(key: str, value: object) -> bool:
    if key.startswith("_") or key == "training":
        return False
    for item in value if isinstance(value, tuple | list) else (value,):
        if not isinstance(item, PLAIN) or isinstance(item, Enum):  # members of an enum may be words or numbers, too
            return False
    return True


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_same(left: object, right: object) -> bool:
    """Equal and of the same type: True is not 1, and a tuple not a list."""
    return left == right and type(left) is type(right)


def _put_tensors_(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Replace parameters and buffers by those of the file, at their sizes; a bias may be new or missing."""
    # 1. Tied parameters are one object under several names.  `successors` knows what has taken the place of each
    #    object, so that the second name gets the same one, unless the file has another tensor under it.
    # 2. A successor is its own successor: a module that stands in the network under two names already holds it when the
    #    second name comes.
    # 3. A bias may be missing: a layer works without one.  Any other tensor that is missing means another network.
    expected = set(model.state_dict())
    missing = sorted(name for name in expected - set(tensors) if not name.endswith("bias"))
    if missing:
        raise FileFormatError(f"{path}: lacks {', '.join(missing[:5])}; is it of another network?")
    successors: dict[Tensor, nn.Parameter] = {}
    for name, tensor in tensors.items():
        module, key = _find_place(model, name, tensor, path)
        if key in module._buffers:
            module._buffers[key] = tensor
            module._non_persistent_buffers_set.discard(key)  # the file has it because it was cut
            continue
        old = module._parameters[key]
        if old is not None and old in successors and torch.equal(successors[old], tensor):
            module._parameters[key] = successors[old]
            continue
        learns = tensor.is_floating_point() and (old is None or old.requires_grad)
        new = nn.Parameter(tensor, requires_grad=learns)
        module._parameters[key] = new
        successors[new] = new
        if old is not None:
            successors[old] = new
    for name in expected - set(tensors):
        owner, _, key = name.rpartition(".")
        model.get_submodule(owner)._parameters[key] = None


def _find_place(model: nn.Module, name: str, tensor: Tensor, path: Path) -> tuple[nn.Module, str]:
    """The module and the key of a tensor that the network has, in as many dimensions."""
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
    return module, key


def _set_attributes_(model: nn.Module, attributes: Any, path: Path) -> None:
    modules = dict(model.named_modules())
    if not isinstance(attributes, dict):
        raise FileFormatError(f"{path}: its attributes are no table")
    for name, values in attributes.items():
        if name not in modules or not isinstance(values, dict):
            raise FileFormatError(f"{path}: sets attributes of {name!r}, which {type(model).__name__} does not have")
        known = _read_plain(modules[name])
        for key, value in values.items():
            if key not in known:
                raise FileFormatError(f"{path}: sets {name}.{key}, which is no plain attribute there")
            value = _convert_value(modules[name], value, known[key], f"{path}: sets {name}.{key}")
            setattr(modules[name], key, value)


def _convert_value(module: nn.Module, value: Any, known: Any, what: str) -> Any:
    """The value of a file as the network wants it: JSON has lists for tuples.  None may replace anything, and be."""
    if isinstance(value, list) and isinstance(known, tuple):
        value = tuple(value)
    # A user's class may begin with a factor of 1 that becomes 0.5.  The numbers of PyTorch's layers are sizes.
    if not _is_of_torch(module) and _is_number(value) and _is_number(known):
        return value
    if known is not None and value is not None and not isinstance(value, type(known)):
        raise FileFormatError(f"{what} to {value!r}, there it is {known!r}")
    return value
