"""Makes a node of every operator that runs."""

from dataclasses import dataclass
from functools import cache
from operator import getitem
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ..errors import TraceError
from .names import Names
from .nodes import Graph, Node, find_nodes
from .operators import find_channel_rule
from .origins import Origins
from .shapes import make_result

SUMS_OF_PRODUCTS = {
    torch.ops.aten.addmm.default: torch.ops.aten.matmul.default,
    torch.ops.aten.baddbmm.default: torch.ops.aten.bmm.default,
}
"""Operators that add a product to a tensor; they are recorded as the product and the sum."""
CONVOLUTIONS = {
    3: (torch.ops.aten.conv1d.default, torch.ops.aten.conv_transpose1d.default),
    4: (torch.ops.aten.conv2d.default, torch.ops.aten.conv_transpose2d.input),
    5: (torch.ops.aten.conv3d.default, torch.ops.aten.conv_transpose3d.input),
}
"""Dimensions of a weight -> the convolution and the transposed one, as which the nameless one of `vmap` is recorded."""
DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class ValueDependenceError(TraceError):
    """A network looks at the values of its inputs to decide what to do."""


@dataclass
class _Call:
    """One call of a module that is running."""

    module: str
    nodes: int = 0
    """How many nodes the call has made."""


# 1. PyTorch hands each operator to `__torch_dispatch__` below the modules and below Python's operators, so nothing
#    that a network computes escapes, however it is written.
# 2. A tensor is recognized by its id.  An id names a tensor only while the tensor lives, so the recorder holds every
#    tensor that it has seen until the run ends.
# 3. An operator that writes to a tensor and returns it, as in-place ones do, makes a new node for it, under the same
#    id: whoever uses the tensor later gets the new node.  Other tensors that share its memory change, too, but in a
#    way that no node describes, and so does what an operator writes to and does not return.  They are marked as stale,
#    and a stale tensor that is used again becomes a `partial_write`, which no rule covers: whatever it carries is
#    pinned.
# 4. Values that depend on the input are marked as live.  An operator that shows Python a value of a live tensor, or
#    makes a shape of one, is an error: the code could take another path for another input, and one recorded path would
#    say nothing about it.
class Recorder(TorchDispatchMode):
    """Makes a node of every operator that runs."""

    def __init__(self, names: Names, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self.in_operator = False
        self.origins = Origins(self._refuse_live)
        self._calls = [_Call("")]  # from the network to the innermost module
        self._nodes: dict[int, Node] = {}
        self._seen: list[Tensor] = []
        self._by_storage: dict[int, list[Tensor]] = {}
        self._stale: dict[int, Node] = {}  # id of a tensor -> the operator that wrote to a part of its memory
        self.written: set[str] = set()
        self._live: set[Node] = set()
        self._convolutions = names.convolutions
        self._names = names.state_of
        for index, value in enumerate(inputs):
            node = self.graph.add("placeholder", f"input_{index}")
            self._live.add(node)
            self._bind(value, node)

    @property
    def place(self) -> str:
        """The innermost module that is running."""
        return self._calls[-1].module

    def enter(self, module: str, arguments: tuple[Any, ...]) -> None:
        """Follow the network into a module, with what it is given by position."""
        self._calls.append(_Call(module))
        if len(arguments) == 1 and isinstance(arguments[0], Tensor) and id(arguments[0]) in self._nodes:
            self._nodes[id(arguments[0])].meta.setdefault("given_to", []).append(module)

    def leave(self, output: Any) -> None:
        """Follow the network out of the innermost module, with what the module returns."""
        module = self._calls.pop().module
        if isinstance(output, Tensor) and id(output) in self._nodes:
            self._nodes[id(output)].meta.setdefault("returned_by", []).append(module)

    def node(self, value: Tensor) -> Node:
        """The node that stands for a tensor; one that no operator made is held by the network."""
        if id(value) not in self._nodes:
            name = self._names.get(id(value))
            node = self.graph.add("get_attr", name or "constant")
            node.meta["is_parameter"] = isinstance(value, nn.Parameter)
            if name is None:
                node.meta["constant"] = value
            self._bind(value, node)
        if id(value) in self._stale:
            writing = self._stale[id(value)]
            node = self.graph.add("call_function", partial_write, (self._nodes[id(value)], writing))
            if self._live & {self._nodes[id(value)], writing}:
                self._live.add(node)
            self._bind(value, node)
        return self._nodes[id(value)]

    def _refuse_live(self, value: Tensor, function: str) -> None:
        """Raise where a function that is no operator shows Python the values of a tensor that depends on the input."""
        if self._live & {self._nodes.get(id(value)), self._stale.get(id(value))}:
            raise ValueDependenceError(f"its control flow depends on the values of the input ({function})")

    def __torch_dispatch__(self, target: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        parts = self._run_parts(target, args, kwargs)
        if parts is not NotImplemented:
            return parts
        arguments = self._replace_tensors(args)
        options = {name: self._replace_tensors(value) for name, value in kwargs.items()}
        live = any(source in self._live for source in find_nodes((arguments, options)))
        if live and _shows_values(target, args):
            raise ValueDependenceError(f"its control flow depends on the values of the input ({target})")
        self.in_operator = True  # stays so where the operator fails
        outputs = make_result(target, args, kwargs)
        if outputs is None:
            outputs = target(*args, **kwargs)
        self.in_operator = False
        if outputs is None and not target._schema.is_mutable:  # an assertion
            return None
        node = self.graph.add("call_function", as_functional(target), arguments, options)
        node.meta |= self._describe_call(target, args)
        if live:
            self._live.add(node)
        for written in _find_written(target, args, kwargs):
            self._mark_stale(written, node)
        self._bind_outputs(outputs, node)
        return outputs

    def _run_parts(self, target: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operator as those that it consists of, which come back here; `NotImplemented` if it stays whole."""
        if target in SUMS_OF_PRODUCTS:
            with self:
                return _add_product(target, *args, **kwargs)
        if target == torch.ops.aten.convolution.default:
            with self:
                return _convolve(*args)
        if find_channel_rule(target) is None and not target._schema.is_mutable:
            with self:
                return target.decompose(*args, **kwargs)
        return NotImplemented

    def _describe_call(self, target: Any, args: Any) -> dict[str, Any]:
        """Where the sizes of an operator come from, and whether it writes."""
        # The sizes of an operator come after the tensor that it takes; one that makes a tensor begins with them.
        sizes = args[1:] if args and isinstance(args[0], Tensor) else args
        groups = self.origins.groups
        return {
            "origins": self.origins.of(sizes),
            "groups_origin": groups,
            # One of torch's convolutions, or a class derived from it, is told its groups when its weight is cut.
            "groups_follow_weight": groups == (self.place, "groups", None) and self.place in self._convolutions,
            "writes": target._schema.is_mutable,
        }

    def _replace_tensors(self, value: Any) -> Any:
        """An argument with the node of each tensor in its place."""
        if isinstance(value, Tensor):
            return self.node(value)
        if isinstance(value, list | tuple):
            return type(value)(self._replace_tensors(item) for item in value)
        return value

    def _bind_outputs(self, outputs: Any, node: Node) -> None:
        if isinstance(outputs, Tensor):
            self._bind(outputs, node)
            return
        self._describe(node, outputs)
        for index, value in enumerate(outputs if isinstance(outputs, list | tuple) else ()):
            if isinstance(value, Tensor):
                item = self.graph.add("call_function", getitem, (node, index))
                if node in self._live:
                    self._live.add(item)
                self._bind(value, item)

    def _bind(self, value: Tensor, node: Node) -> None:
        """From here on `node` stands for `value`."""
        self._describe(node, value)
        self._stale.pop(id(value), None)
        if id(value) not in self._nodes:
            self._seen.append(value)
            self._by_storage.setdefault(value.untyped_storage()._cdata, []).append(value)
        self._nodes[id(value)] = node

    def _describe(self, node: Node, value: Any) -> None:
        call = self._calls[-1]
        described = _without_data(value) if isinstance(value, Tensor) else tree_map(_without_data, value)
        node.meta |= {"val": described, "module": call.module, "step": call.nodes}
        call.nodes += 1

    def _mark_stale(self, written: Tensor, node: Node) -> None:
        """What shows the memory that an operator wrote to has no node that describes it, unless it is a result."""
        for shown in self._by_storage.get(written.untyped_storage()._cdata, []):
            if id(shown) in self._names:
                self.written.add(self._names[id(shown)])
            self._stale[id(shown)] = node


def _find_written(target: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operator writes to, as its schema says: the first argument of `add_`, `out` of `add.out`."""
    written: list[Tensor] = []
    for place, name in _find_written_arguments(target):
        value = args[place] if place < len(args) else kwargs.get(name)
        written += value if isinstance(value, list | tuple) else [value]
    return [value for value in written if isinstance(value, Tensor)]


@cache
def _find_written_arguments(target: Any) -> list[tuple[int, str]]:
    """The arguments that an operator writes to, by place and name."""
    arguments = enumerate(target._schema.arguments)
    return [(place, argument.name) for place, argument in arguments if argument.is_write]


def _add_product(target: Any, x: Tensor, *factors: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    """Beta x + alpha times the product, with as few operators as that takes."""
    product: Tensor = SUMS_OF_PRODUCTS[target](*factors)
    if alpha != 1:
        product = product * alpha
    return (x if beta == 1 else x * beta) + product


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Tensor:
    """The convolution by its name."""
    plain, transposing = CONVOLUTIONS[weight.dim()]
    if transposed:
        result: Tensor = transposing(x, weight, bias, stride, padding, output_padding, groups, dilation)
    else:
        result = plain(x, weight, bias, stride, padding, dilation, groups)
    return result


def partial_write(before: Tensor, writing: Tensor) -> Tensor:
    """Stands for a tensor after a part of its memory was written to; never called."""
    raise NotImplementedError


def _shows_values(target: Any, args: Any) -> bool:
    """Whether an operator shows Python a value of a tensor, or makes a shape of one."""
    if target == torch.ops.aten.index.Tensor:
        # Numbers give the result their own shape; flags are counted.
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return _depends_on_data(target)


@cache
def _depends_on_data(target: Any) -> bool:
    return bool(DATA_DEPENDENT & set(target.tags))


def _without_data(value: Any) -> Any:
    """Shape and type of a tensor, without its memory; they stay if its shape is changed in place, as by `squeeze_`."""
    if not isinstance(value, Tensor):
        return value
    return value.detach() if value.is_meta else torch.empty_like(value, device="meta")


@cache
def as_functional(target: Any) -> Any:
    """`add.Tensor` for `add_.Tensor`: what an in-place operator computes."""
    name = target._schema.name.partition("::")[2]
    if not (target._schema.is_mutable and name.endswith("_")):
        return target
    packet = getattr(torch.ops.aten, name[:-1], None)
    return getattr(packet, target._overloadname, target) if packet is not None else target
