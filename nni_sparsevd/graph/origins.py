"""Where the numbers in the arguments of an operator come from: which attribute of which module."""

from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

Origin = tuple[str, str, int | None]
"""A module's name, an attribute of it, and the place in that where it is a list or a tuple."""


class Named(int):
    """A number that knows the attribute that it was read from.  What is computed with it is an ordinary number."""

    origin: Origin


def name_numbers_(model: nn.Module) -> None:
    """Make every whole number that a module holds, alone or in a list or tuple, one that knows its origin."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if type(value) is int:
                vars(module)[key] = _named(value, (name, key, None))
            elif type(value) in (list, tuple) and any(type(one) is int for one in value):
                vars(module)[key] = type(value)(
                    _named(one, (name, key, at)) if type(one) is int else one for at, one in enumerate(value)
                )


def _named(value: int, origin: Origin) -> Named:
    made = Named(value)
    made.origin = origin
    return made


class Origins(TorchFunctionMode):
    """Remembers the numbers with which Python called PyTorch last: the operators that run get them as plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self._given: list[int] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        numbers = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, int)]
        self._given = numbers if any(isinstance(one, Named) for one in numbers) else []
        try:
            return function(*args, **(kwargs or {}))
        finally:
            self._given = []

    def of(self, arguments: Any) -> dict[int, Origin]:
        """Place in the first list of numbers among an operator's `arguments`, or its first number -> the origin."""
        found = sorted((one for one in arguments if _numbers(one)), key=lambda one: not isinstance(one, list | tuple))
        sizes = [] if not found else list(found[0]) if isinstance(found[0], list | tuple) else [found[0]]
        for start in range(len(self._given) - len(sizes) + 1 if sizes else 0):
            given = self._given[start : start + len(sizes)]
            if given == sizes:
                return {at: one.origin for at, one in enumerate(given) if isinstance(one, Named)}
        return {}


def _numbers(value: Any) -> bool:
    several = isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(one, int) for one in value)
    return several or (isinstance(value, int) and not isinstance(value, bool))
