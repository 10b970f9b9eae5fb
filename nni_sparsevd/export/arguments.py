"""What goes into a file and comes out of it: tensors by name, and the names that they have."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import ModelError, SettingError
from ..graph import PLAIN, CallArguments, name_leaves, to_plain
from ..shrinking import batch_sizes

Outputs = dict[str, Tensor]
"""Tensors that a network or file gives, by their names."""
SINGLE = "output"
"""The name of an output that is a tensor by itself, and the beginning of those that have numbers."""


@dataclass(frozen=True)
class Tracing:
    """How a network is traced for a file."""

    arguments: CallArguments
    """What it is called with."""
    dynamic_batch: bool
    """Whether the file takes batches of any size."""
    input_names: tuple[str, ...]
    """A name for each tensor of the arguments."""
    output_names: tuple[str, ...]
    """A name for each tensor that the network returns."""


class FlatNetwork(nn.Module):
    """A network whose inputs and outputs are tensors, one after the other, as most runtimes want it.

    Args:
        network: The network.
        arguments: What it is called with; the tensors in them are replaced at each call.
    """

    def __init__(self, network: nn.Module, arguments: CallArguments) -> None:
        super().__init__()
        self.network = network
        self._arguments = arguments

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Give the tensors among the outputs."""
        output = self._arguments.with_tensors(tensors).call(self.network)
        return tuple(leaf for _, leaf in name_leaves(output) if isinstance(leaf, Tensor))


def is_flat(arguments: CallArguments, output: Any) -> bool:
    """Whether a network takes tensors by position alone, and returns a tensor or a tuple of tensors."""
    takes_tensors = not arguments.kwargs and all(isinstance(value, Tensor) for value in arguments.args)
    returned = output if type(output) is tuple else (output,)
    return takes_tensors and all(isinstance(value, Tensor) for value in returned)


def has_known_classes(arguments: CallArguments) -> bool:
    """Whether PyTorch can open all that the arguments are nested in; it does not know a user's dataclasses."""
    leaves = tree_leaves((arguments.args, dict(arguments.kwargs)))
    return all(isinstance(leaf, (Tensor, *PLAIN)) for leaf in leaves)


def name_inputs(model: nn.Module, arguments: CallArguments) -> tuple[str, ...]:
    """Name each tensor of the arguments as the code of the network calls it: "x", "batch.mask", "images.0"."""
    try:
        bound = inspect.signature(model.forward).bind(*arguments.args, **arguments.kwargs)
    except (TypeError, ValueError):  # a forward whose signature Python does not know
        return tuple(f"input_{place}" for place in range(len(arguments.tensors)))
    # What *args and **kwargs gather goes by its own numbers and names.
    variable = {
        parameter.name: parameter.kind
        for parameter in bound.signature.parameters.values()
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    names: list[str] = []
    for name, value in bound.arguments.items():
        for place, leaf in name_leaves(value):
            if not isinstance(leaf, Tensor):
                continue
            if variable.get(name) == inspect.Parameter.VAR_KEYWORD:
                names.append(place)
            elif place:
                names.append(f"{name}.{place}")
            else:
                names.append(name)
    return tuple(names)


def name_outputs(output: Any) -> Outputs:
    """Name each tensor among outputs: "output" for a single one, "output_0", "logits", "features.0"."""
    named = {}
    for place, leaf in name_leaves(output):
        if isinstance(leaf, Tensor):
            named[name_output(place)] = leaf
    return named


def name_output(place: str) -> str:
    """Name the output that stands at a place of a nested value; see `name_outputs`."""
    if not place:
        return SINGLE
    return f"{SINGLE}_{place}" if place[0].isdigit() else place


def number_outputs(outputs: Any) -> Outputs:
    """Name the outputs of a runtime that knows only their order."""
    tensors = [value for value in outputs if isinstance(value, Tensor)]
    if len(tensors) == 1:
        return {SINGLE: tensors[0]}
    return {f"{SINGLE}_{place}": tensor for place, tensor in enumerate(tensors)}


def match_outputs(expected: Outputs, computed: Outputs, title: str) -> Outputs:
    """Give what a file computes under the network's names; a runtime that knows no names keeps the order.

    Args:
        expected: Outputs of the network.
        computed: Outputs of the file.
        title: The format of the file, for messages.

    Returns:
        The outputs of the file, in the order of the network's.

    Raises:
        ModelError: An output is missing, or has another shape.
    """
    named = computed if set(computed) == set(expected) else dict(zip(expected, computed.values(), strict=False))
    for name, value in expected.items():
        shape = tuple(named[name].shape) if name in named and len(computed) == len(expected) else None
        if shape != tuple(value.shape):
            found = "is missing in the file" if shape is None else f"has the shape {shape} in the file"
            raise ModelError(f"{title}: the output {name} of shape {tuple(value.shape)} {found}")
    return {name: named[name] for name in expected}


def return_plain_outputs_(model: nn.Module) -> None:
    """Make a network return dicts, lists and tuples, so that a file of it can be read without its classes."""

    def simplify(module: nn.Module, inputs: Any, output: Any) -> Any:
        return to_plain(output)

    model.register_forward_hook(simplify)


def describe_dynamic_shapes(model: nn.Module, tracing: Tracing) -> dict[str, Any] | None:
    """Say which sizes may vary, as PyTorch's exporters want it: the batch of every input that has it, or none.

    Args:
        model: The network.
        tracing: How it is traced.

    Returns:
        {name of an argument: {dimension: size} in the nesting of the argument}, None where the batch is fixed.
    """
    if not tracing.dynamic_batch:
        return None
    batch = torch.export.Dim("batch")
    with_batch = {id(tracing.arguments.tensors[place]) for place, _ in batch_sizes(tracing.arguments, 1)}
    sizes = tracing.arguments.map_leaves(lambda leaf: {0: batch} if id(leaf) in with_batch else None)
    return dict(inspect.signature(model.forward).bind(*sizes.args, **sizes.kwargs).arguments)


def order_inputs(names: list[str], arguments: CallArguments) -> dict[str, Tensor]:
    """Give the tensors of a call to the inputs of a file.

    Args:
        names: The inputs of the file.
        arguments: A call: by position in the order of the file, or by keyword.

    Returns:
        The tensor of each input.

    Raises:
        SettingError: An input of the file is missing, or the call has another one.
    """
    by_position = CallArguments(arguments.args, {}).tensors
    by_keyword = dict(CallArguments((), arguments.kwargs).named_tensors)
    feed = dict(zip(names, by_position, strict=False)) | by_keyword
    if set(feed) != set(names) or len(by_position) + len(by_keyword) != len(names):
        raise SettingError(
            f"the file takes {', '.join(names)}; found {len(by_position)} by position, {list(by_keyword)}"
        )
    return {name: feed[name] for name in names}
