"""A network as a flat, functional list of operators: `torch.export`, with parameters known by their names."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from ..errors import TraceError

Inputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Trace:
    """The operators of one forward pass in evaluation mode, at the shapes of the example inputs."""

    graph: Graph
    states: dict[str, str]
    """Placeholder -> qualified name of the parameter or buffer that it stands for."""

    def state(self, node: object) -> str | None:
        """Name of the parameter or buffer that `node` is, if it is one."""
        return self.states.get(node.name) if isinstance(node, Node) else None


def as_tuple(example_inputs: Inputs) -> tuple[Tensor, ...]:
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and give every module its own mode back afterwards."""
    before = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in before:
            module.training = training


def trace(model: nn.Module, example_inputs: Inputs) -> Trace:
    """Record what `model` computes on `example_inputs`; the model is left as it was.

    In-place operators are rewritten as functional ones, so a value never changes after its node.

    Raises `TraceError` when the network fails on the inputs or `torch.export` cannot follow it.
    """
    try:
        with evaluation_mode(model), torch.no_grad():
            model(*as_tuple(example_inputs))
            program = torch.export.export(model, as_tuple(example_inputs)).run_decompositions({})
    except Exception as error:  # whatever a user's forward raises
        shapes = ", ".join(str(tuple(value.shape)) for value in as_tuple(example_inputs))
        raise TraceError(
            f"{type(model).__name__} could not be traced on inputs of shape {shapes}: {str(error).splitlines()[0]}"
        ) from error
    for node in list(program.graph.nodes):
        if node.op == "call_function" and "val" not in node.meta:  # assertions that `.to(dtype)` leaves: no value
            program.graph.erase_node(node)
    signature = program.graph_signature
    states = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return Trace(program.graph, dict(states))
