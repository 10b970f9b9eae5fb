"""Example inputs in one form, whatever a user passes: the arguments of one call of a network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import SettingError
from .pytrees import map_leaves, name_leaves

Inputs = Any
"""What a network is called with: see `as_arguments`."""


@dataclass(frozen=True)
class CallArguments:
    """The arguments of one call of a network: tensors and plain values, nested in any way."""

    args: tuple[Any, ...]
    """By position."""
    kwargs: Mapping[str, Any]
    """By keyword."""

    @property
    def named_tensors(self) -> tuple[tuple[str, Tensor], ...]:
        """(place, tensor) for every tensor, in the order of the arguments: ("0", …), ("pixel_values", …)."""
        leaves = [*name_leaves(self.args), *name_leaves(dict(self.kwargs))]
        return tuple((name, leaf) for name, leaf in leaves if isinstance(leaf, Tensor))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor, in the order of the arguments."""
        return tuple(tensor for _, tensor in self.named_tensors)

    @property
    def shapes(self) -> str:
        """The shapes of all tensors, for a message."""
        shapes = [str(tuple(tensor.shape)) for tensor in self.tensors]
        return f"inputs of shape {', '.join(shapes)}" if shapes else "inputs without a tensor"

    def map_leaves(self, function: Callable[[Any], Any]) -> "CallArguments":
        """The same arguments in new containers, with `function` of each tensor and plain value."""
        args, kwargs = map_leaves(function, (self.args, dict(self.kwargs)))
        return CallArguments(args, kwargs)

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "CallArguments":
        """The same arguments in new containers, with `function` of each tensor."""
        return self.map_leaves(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf)

    def with_tensors(self, tensors: Sequence[Tensor]) -> "CallArguments":
        """The same arguments with other tensors, given in the order of `tensors`."""
        rest = iter(tensors)
        return self.map_tensors(lambda _: next(rest))

    def call(self, model: nn.Module) -> Any:
        """Call a network.  It gets containers of its own: some networks write to those that they are given."""
        fresh = self.map_leaves(lambda leaf: leaf)
        return model(*fresh.args, **fresh.kwargs)


def as_arguments(example_inputs: Inputs) -> CallArguments:
    """Read example inputs.

    Args:
        example_inputs: What a network is called with:

            - a tuple: the arguments by position, `model(*example_inputs)`;
            - a dict, or another mapping such as what a tokenizer of Hugging Face returns: the arguments by keyword,
              `model(**example_inputs)`;
            - a pair of a tuple and a dict whose keys are names, `(args, kwargs)`: `model(*args, **kwargs)`.  So a
              network whose two positional arguments are a tuple and a dict is called with
              `((first, second), {})`;
            - anything else, such as a tensor or a list of tensors: the only argument.

            An argument may be a tensor, None, a number, a string, or a list, dict, dataclass or other object of them.

    Returns:
        The arguments.

    Raises:
        SettingError: A key of a mapping is no name.
    """
    if isinstance(example_inputs, CallArguments):
        return example_inputs
    if isinstance(example_inputs, Mapping):
        return CallArguments((), _read_keywords(example_inputs))
    if type(example_inputs) is not tuple:
        return CallArguments((example_inputs,), {})
    if len(example_inputs) == 2 and type(example_inputs[0]) is tuple and _are_keywords(example_inputs[1]):
        return CallArguments(example_inputs[0], dict(example_inputs[1]))
    return CallArguments(example_inputs, {})


def _are_keywords(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _read_keywords(mapping: Mapping[Any, Any]) -> dict[str, Any]:
    for key in mapping:
        if not isinstance(key, str):
            raise SettingError(
                f"example_inputs: the keys of a dict are the names of arguments, found {key!r}; a dict that is itself "
                "an argument goes into a tuple: ({...},)"
            )
    return dict(mapping)


def take_first_sample(example_inputs: Inputs) -> CallArguments:
    """Read example inputs, and take the first sample of a batch.

    Args:
        example_inputs: What a network is called with.

    Returns:
        The first sample where the example is one tensor; else the whole example, since it is not known which of its
        tensors have a batch.
    """
    return as_arguments(example_inputs[:1] if isinstance(example_inputs, Tensor) else example_inputs)


def use_other_numbers(arguments: CallArguments, *kinds: type) -> CallArguments | None:
    """The same arguments with other numbers among them, such as a factor or a time.

    Args:
        arguments: Arguments of a call.  Tensors, truth values, strings and None stay.
        kinds: The classes of numbers that change: int, float or both.

    Returns:
        The arguments with every whole number larger by one, and every other number larger by a third and one more; None
        where they have no such number.
    """
    leaves = [leaf for _, leaf in name_leaves((arguments.args, dict(arguments.kwargs)))]
    if not any(type(leaf) in kinds for leaf in leaves):
        return None
    return arguments.map_leaves(lambda leaf: _other_number(leaf) if type(leaf) in kinds else leaf)


def _other_number(number: float) -> float:
    return number + 1 if isinstance(number, int) else number * 4 / 3 + 1
