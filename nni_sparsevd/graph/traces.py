"""What a traced network is: a flat, functional list of operators."""

from dataclasses import dataclass

from torch import nn

from .example_inputs import CallArguments
from .nodes import Graph, Node


@dataclass(frozen=True)
class Trace:
    """The operators of one forward pass in evaluation mode, at the shapes of the example inputs.

    A `placeholder` is an input.  A `get_attr` is a parameter, a buffer, or a tensor that the code holds otherwise.
    Sizes stand in the arguments as the code gave them, -1 included.  The `meta` of a node has these entries:

    - `val`: a tensor without data of the value's shape and type, or several.
    - `module`: the name of the innermost module that ran the operator.
    - `step`: how many nodes that call of the module had made before.
    - `returned_by`: the names of the modules that return the value, the innermost first; missing if there are none.
    - `given_to`: the names of the modules that take the value as their only argument; missing if there are none.
    - `is_parameter`, of a `get_attr`: whether it is a parameter.
    - `constant`, of a `get_attr` that is neither parameter nor buffer: the tensor itself.
    - `origins`, of an operator: the place of a size among its sizes -> the attribute that the code read it from.
    - `groups_origin`, of an operator: the attribute that a convolution's number of groups was read from, or None.
    - `groups_follow_weight`, of an operator: whether cutting the weight also sets that attribute.
    - `writes`, of an operator: whether it writes to memory of its arguments.
    """

    graph: Graph
    layers: frozenset[str]
    """Names of the modules whose classes are PyTorch's own, not derived from them."""
    on_meta: bool
    """Whether the network ran without data, on PyTorch's meta device; else it had to see the inputs."""
    inputs: CallArguments
    written: frozenset[str] = frozenset()
    """Names of the parameters and buffers that the network writes to: each call finds there what the last one left."""
    runner: nn.Module | None = None
    """The copy that ran without data, to be run again at other sizes; None where the network had to see the inputs."""

    def state(self, node: object) -> str | None:
        """Name of the parameter or buffer that `node` is, None if it is something else."""
        if isinstance(node, Node) and node.op == "get_attr" and "constant" not in node.meta:
            return str(node.target)
        return None


def find_unused(trace: Trace) -> frozenset[Node]:
    """The operators whose results reach neither an output nor memory that outlives the run."""
    used: set[Node] = set()
    for node in reversed(trace.graph.nodes):
        if node in used or node.op == "output" or node.meta.get("writes"):
            used.add(node)
            used.update(node.all_input_nodes)
    return frozenset(node for node in trace.graph.nodes if node.op == "call_function" and node not in used)
