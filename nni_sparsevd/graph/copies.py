"""Deep copies of networks in whatever state training has left them."""

import copy
import gc
from collections.abc import Iterator
from functools import cache
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError, describe_error

NOT_COPIED = (type, FunctionType, BuiltinFunctionType, ModuleType, nn.Parameter)
"""What `copy.deepcopy` does not look into: the copy shares it with the original, or copies its numbers alone."""

FIXED = {int, float, complex, bool, str, bytes, type(None), type(Ellipsis), torch.dtype, *NOT_COPIED[:-1]}
"""Types of which a deep copy holds the same object."""
HELD_BY_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that PyTorch itself gives to every module: tables of parameters, buffers, modules and hooks."""


def copy_module(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy of a network that may hold results of a computation: kept features, weights that hooks compute.

    Args:
        model: The network; it is left as it is.
        memo: What is copied already, by the id of the original, as `copy.deepcopy` takes it.

    Returns:
        The copy.  A tensor with a history is there without it: `copy.deepcopy` itself refuses such a tensor.

    Raises:
        ModelError: The network holds something that cannot be copied; the message names the module and attribute.
    """
    memo = {} if memo is None else memo
    try:
        return _copy_tree(model, dict(memo))
    except Exception:  # whatever a tensor with a history, or the class of a user's attribute, raises: try without
        pass
    for value in _find_tensors(model):
        if id(value) not in memo and _has_history(value):
            memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever the classes of a user's attributes raise
        place = _find_uncopyable(model, memo)
        raise ModelError(
            f"{type(model).__name__} cannot be copied, because of {place}: {describe_error(error)}; remove that "
            "attribute or hook before the call, and put it back afterwards"
        ) from error


def _copy_tree(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """What `copy.deepcopy` makes of a module, several times faster: most of what a module holds is empty or fixed."""
    if id(module) in memo:
        copied: nn.Module = memo[id(module)]
        return copied
    kind: Any = type(module)
    if not _is_copied_by_attributes(kind):
        return copy.deepcopy(module, memo)
    # 1. The copy is in `memo` before anything that it holds is copied, which may refer to it.
    # 2. What every module holds, and most leave empty, is made anew without a look into it.
    # 3. Children take this short way, too; of all else `_copy_value` knows what need not be copied.
    memo[id(module)] = copied = kind.__new__(kind)  # 1
    state: dict[str, Any] = {}
    for key, value in vars(module).items():
        if key in HELD_BY_EVERY_MODULE and type(value) not in FIXED and not value:  # 2
            state[key] = type(value)()
        elif key == "_modules":  # 3
            children = ((name, child and _copy_tree(child, memo)) for name, child in value.items())
            state[key] = type(value)(children)
        elif key in ("_parameters", "_buffers"):
            state[key] = type(value)((name, _copy_value(tensor, memo)) for name, tensor in value.items())
        else:
            state[key] = _copy_value(value, memo)
    copied.__setstate__(state)
    return copied


def _copy_value(value: Any, memo: dict[int, Any]) -> Any:
    """What `copy.deepcopy` makes of an attribute; most are numbers, or tuples of numbers such as a kernel's size."""
    if type(value) in FIXED or (type(value) is tuple and all(type(item) in FIXED for item in value)):
        return value
    known = memo.get(id(value))
    return copy.deepcopy(value, memo) if known is None else known


@cache
def _is_copied_by_attributes(kind: Any) -> bool:
    """Whether a class leaves to `copy.deepcopy` how its modules are copied; it may say how they take their state."""
    own_ways = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__slots__")
    return all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in own_ways)


def _has_history(value: Tensor) -> bool:
    """Whether autograd recorded how a tensor, or its gradient, was computed."""
    return not value.is_leaf or (value.grad is not None and not value.grad.is_leaf)


def _find_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor but the parameters that a deep copy of a network would reach."""
    # The garbage collector knows what an object of any class holds: lists, instances, bound methods, partial functions.
    pending: list[Any] = [model]
    seen = {id(model)}
    while pending:
        for value in gc.get_referents(pending.pop()):
            if id(value) in seen or isinstance(value, NOT_COPIED):
                continue
            seen.add(id(value))
            if isinstance(value, Tensor):
                yield value
            else:
                pending.append(value)


def _find_uncopyable(model: nn.Module, memo: dict[int, Any]) -> str:
    """The name of the first attribute that cannot be copied, in the innermost module that holds it."""
    for name, module in reversed(list(model.named_modules())):
        for key, value in vars(module).items():
            if key == "_modules":
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:  # the error that the caller describes
                return f"{name}.{key}".removeprefix(".")
    return "its own class"
