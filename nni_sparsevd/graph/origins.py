"""Where the numbers in the arguments of an operator come from: which attribute of which module."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Origin = tuple[str, str, int | None]
"""A module's name, an attribute of it, and the place in that attribute where it is a list or a tuple."""


CONVOLUTION_FUNCTIONS = {
    torch.conv1d, torch.conv2d, torch.conv3d,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
}  # fmt: skip


SHOW_VALUES = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}
"""Functions that show Python the values of a tensor without any operator."""


class NamedInt(int):
    """A whole number that knows the attribute that it was read from.  Arithmetic with it gives ordinary numbers."""

    origin: Origin


def name_numbers_(model: nn.Module) -> None:
    """Make every whole number that a module holds, alone or in a list or tuple, one that knows its origin."""
    for module_name, module in model.named_modules():
        attributes = vars(module)
        for name, value in attributes.items():
            kind = type(value)
            if kind is int:
                attributes[name] = _named(value, (module_name, name, None))
            elif (kind is tuple or kind is list) and any(_is_plain_int(item) for item in value):
                items = []
                for place, item in enumerate(value):
                    items.append(_named(item, (module_name, name, place)) if _is_plain_int(item) else item)
                attributes[name] = kind(items)


def _is_plain_int(value: object) -> bool:
    """Whether a value is a whole number, and neither a flag nor a member of an enum."""
    return type(value) is int


def _named(value: int, origin: Origin) -> NamedInt:
    named = NamedInt(value)
    named.origin = origin
    return named


class Origins(TorchFunctionMode):
    """Remembers the numbers with which Python called PyTorch last.

    The operators that then run get plain numbers: PyTorch converts them on the way.  So the origins are found by
    position: the sizes of an operator are looked for, as a run, among the numbers of the call that it runs in.

    Args:
        show_values: Called with a tensor and the name of the function before a function shows the tensor's values.
    """

    def __init__(self, show_values: Callable[[Tensor, str], None]) -> None:
        super().__init__()
        self._show_values = show_values
        self._call: tuple[Any, Any] = (), {}
        """The arguments of the call that is running, by place and by name."""
        self.groups: Origin | None = None
        """The origin of the number of groups that the convolution which is running was called with, if it has one."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in SHOW_VALUES:
            self._show_values(args[0], function.__name__)
        self._call = args, kwargs or {}
        self.groups = _groups_origin(args, kwargs or {}) if function in CONVOLUTION_FUNCTIONS else None
        try:
            return function(*args, **(kwargs or {}))
        finally:
            self._call, self.groups = ((), {}), None

    def of(self, arguments: Any) -> dict[int, Origin]:
        """The origins of an operator's sizes: of the first list of numbers in its arguments, or of its first number.

        Returns:
            Place in that list, 0 for a single number -> origin.  Sizes without an origin have no entry.
        """
        sizes = _first_sizes(arguments)
        numbers = list(_find_numbers(self._call)) if sizes else []
        if not any(isinstance(number, NamedInt) for number in numbers):
            return {}
        for start in range(len(numbers) - len(sizes) + 1):
            run = numbers[start : start + len(sizes)]
            if run == sizes:
                return {place: number.origin for place, number in enumerate(run) if isinstance(number, NamedInt)}
        return {}


def _find_numbers(arguments: Any) -> Iterator[int]:
    """The whole numbers in the arguments of a call, in order."""
    # PyTorch's `tree_leaves` does the same, ten times slower, and this is done for every call of a network.
    for value in arguments.values() if isinstance(arguments, dict) else arguments:
        if isinstance(value, int):
            yield value
        elif isinstance(value, tuple | list | dict):  # a size of a tensor is a tuple, too
            yield from _find_numbers(value)


def _groups_origin(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Origin | None:
    """The origin of the argument `groups` of a convolution, the seventh one of each."""
    groups = args[6] if len(args) > 6 else kwargs.get("groups")
    return groups.origin if isinstance(groups, NamedInt) else None


def _first_sizes(arguments: Any) -> list[int]:
    """The first list of numbers in the arguments; where there is none, the first number."""
    first_number: list[int] = []
    for argument in arguments:
        if isinstance(argument, list | tuple):
            if argument and all(isinstance(item, int) for item in argument):
                return list(argument)
        elif isinstance(argument, int) and not isinstance(argument, bool) and not first_number:
            first_number = [argument]
    return first_number
