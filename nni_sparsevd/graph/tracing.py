"""A network as a flat, functional list of operators, recorded while it runs without data."""

import copy
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from ..errors import TraceError, describe_error
from .origins import Origins, name_numbers_
from .rules import RULES

Inputs = Tensor | tuple[Tensor, ...]
DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


@dataclass(frozen=True)
class Trace:
    """The operators of one forward pass in evaluation mode, at the shapes of the example inputs.

    A `placeholder` is an input, a `get_attr` a parameter, a buffer, or a tensor that the code holds otherwise, which is
    then in `meta["constant"]`.  `meta["val"]` has shape and type of every value; `meta["module"]` is the name of the
    innermost module that ran the operator, `meta["step"]` how many nodes that had made before.  Sizes stand in the
    arguments as the code gave them, -1 included; `meta["origins"]` has the attributes that they were read from.
    """

    graph: Graph
    layers: frozenset[str]
    """Names of the modules whose classes are PyTorch's own, not derived from them."""
    device: str | None
    """Where the network ran: on "meta", or None where it had to see the inputs."""
    inputs: tuple[Tensor, ...]

    def state(self, node: object) -> str | None:
        """Name of the parameter or buffer that `node` is, if it is one."""
        if isinstance(node, Node) and node.op == "get_attr" and "constant" not in node.meta:
            return str(node.target)
        return None


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


def clear_caches_(model: nn.Module) -> None:
    """Make modules drop what they keep from one evaluation to the next, such as tables of attention biases.

    Training is when they do so of themselves; each gets its own mode back.
    """
    mode = model.training
    with evaluation_mode(model):
        model.train()
        model.train(mode)  # whatever modules did in the one direction, they undo in the other


def copy_model(model: nn.Module, made: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy; `made` holds what is copied already.  What modules keep between evaluations is not copied.

    Such tables are results of a computation, which PyTorch does not copy where it recorded gradients.
    """
    clear_caches_(model)
    return copy.deepcopy(model, made)


def trace(model: nn.Module, example_inputs: Inputs) -> Trace:
    """Record what `model` computes on `example_inputs`; the model is left as it was.

    Operators without a rule are recorded as those that they consist of, where they do.  In-place operators are
    recorded as functional ones, so a value never changes after its node.  The network runs on PyTorch's `meta`
    device, which computes shapes only; where the code does not stand that, it runs on the example inputs.

    Raises `TraceError` when the network fails on the inputs, or when its way depends on their values.
    """
    inputs = as_tuple(example_inputs)
    try:
        attempt = record(make_traceable_copy(model, "meta"), inputs, "meta")
        if attempt.error is not None:
            attempt = record(make_traceable_copy(model, None), inputs, None)
        if attempt.error is not None:
            raise attempt.error
        return attempt.trace
    except Exception as error:  # whatever a user's forward raises
        shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
        raise TraceError(
            f"{type(model).__name__} could not be traced on inputs of shape {shapes}: {describe_error(error)}"
        ) from error


@dataclass(frozen=True)
class Attempt:
    """What was recorded before the network ended or failed."""

    trace: Trace
    error: Exception | None
    place: str
    """The module that was running when it failed."""
    in_operator: bool
    """Whether an operator failed, the one after the last node; else the code between two of them."""


def make_traceable_copy(model: nn.Module, device: str | None) -> nn.Module:
    """A copy that shares its parameters with `model`, or on "meta" only has their shapes; forward may write to it."""
    buffers = list(model.buffers())
    copied: dict[int, Any] = {id(one): one.clone() if device is None else one.to(device) for one in buffers}
    for parameter in model.parameters():
        shared = parameter if device is None else nn.Parameter(parameter.to(device), parameter.requires_grad)
        copied[id(parameter)] = shared
    made = copy_model(model, copied).eval()
    name_numbers_(made)
    return made


def record(model: nn.Module, inputs: tuple[Tensor, ...], device: str | None) -> Attempt:
    """Run `model`, a `make_traceable_copy`, once; see `trace`."""
    inputs = tuple(value if device is None else value.to(device) for value in inputs)
    recorder = _Recorder(model, inputs)
    names = {id(module): name for name, module in reversed(list(model.named_modules()))}
    enter = register_module_forward_pre_hook(lambda module, _: recorder.enter(names.get(id(module), "")))
    leave = register_module_forward_hook(lambda *_: recorder.leave())
    error = None
    try:
        # Inference mode, because then PyTorch shows operators whole that it would take apart for autograd.
        with torch.inference_mode(), recorder.origins, recorder:
            outputs = model(*inputs)
        results = [recorder.node(value) for value in tree_leaves(outputs) if isinstance(value, Tensor)]
        recorder.graph.output(tuple(results))
    except Exception as raised:  # whatever a user's forward raises
        error = raised
    finally:
        enter.remove()
        leave.remove()
    layers = (name for name, module in model.named_modules() if type(module).__module__.startswith("torch.nn.modules."))
    return Attempt(Trace(recorder.graph, frozenset(layers), device, inputs), error, recorder.place, recorder.running)


class _Recorder(TorchDispatchMode):
    """Makes a node of every operator that runs."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self.running = False
        self.origins = Origins()
        self._places: list[list[Any]] = [["", 0]]  # the modules that are running, and how many nodes each has made
        self._nodes: dict[int, Node] = {}
        self._held: list[Tensor] = []  # an id names a tensor only while it lives
        self._views: dict[int, list[Tensor]] = {}  # by storage
        self._stale: dict[int, Node] = {}  # tensors of whose memory an operator wrote a part, if they are used again
        self._live: set[Node] = set()
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self._names = {id(tensor): name for name, tensor in reversed(named)}
        for index, value in enumerate(inputs):
            node = self.graph.placeholder(f"input_{index}")
            self._live.add(node)
            self._bind(value, node)

    def enter(self, module: str) -> None:
        """Follow the network into a module."""
        self._places.append([module, 0])

    @property
    def place(self) -> str:
        """The innermost module that is running."""
        return str(self._places[-1][0])

    def leave(self) -> None:
        """Follow the network out of it."""
        self._places.pop()

    def node(self, value: Tensor) -> Node:
        """The node that stands for a tensor, which the network holds if no operator made it."""
        if id(value) not in self._nodes:
            name = self._names.get(id(value))
            node = self.graph.create_node("get_attr", name or "constant")
            if name is None:
                node.meta["constant"] = value
            self._bind(value, node)
        if id(value) in self._stale:
            writing = self._stale.pop(id(value))
            node = self.graph.call_function(partial_write, (self._nodes[id(value)], writing))
            self._live.add(node)
            self._bind(value, node)
        return self._nodes[id(value)]

    def __torch_dispatch__(self, target: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if target not in RULES and not target._schema.is_mutable:
            with self:
                parts = target.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        given, options = tree_map_only(Tensor, self.node, (args, kwargs))
        live = any(leaf in self._live for leaf in tree_leaves((given, options)) if isinstance(leaf, Node))
        if live and _by_values(target, args):
            raise TraceError(f"its way depends on the values of the input ({target})")
        self.running = True
        outputs = target(*args, **kwargs)
        self.running = False
        if outputs is None:  # an assertion
            return None
        node = self.graph.create_node("call_function", _functional(target), given, options)
        node.meta["origins"] = self.origins.of(args[1:])
        if live:
            self._live.add(node)
        if target._schema.is_mutable:
            self._written(args[0], node)
        self._outputs(outputs, node)
        return outputs

    def _outputs(self, outputs: Any, node: Node) -> None:
        if isinstance(outputs, Tensor):
            self._bind(outputs, node)
            return
        self._describe(node, outputs)
        for index, value in enumerate(outputs if isinstance(outputs, list | tuple) else ()):
            if isinstance(value, Tensor):
                item = self.graph.call_function(operator.getitem, (node, index))
                if node in self._live:
                    self._live.add(item)
                self._bind(value, item)

    def _bind(self, value: Tensor, node: Node) -> None:
        self._describe(node, value)
        if id(value) not in self._nodes:
            self._held.append(value)
            self._views.setdefault(value.untyped_storage()._cdata, []).append(value)
        self._nodes[id(value)] = node

    def _describe(self, node: Node, value: Any) -> None:
        place = self._places[-1]
        node.meta |= {"val": tree_map(_meta, value), "module": place[0], "step": place[1]}
        place[1] += 1

    def _written(self, written: Tensor, node: Node) -> None:
        """What else shows the memory that an operator wrote to is now something that no rule describes."""
        self._stale.pop(id(written), None)
        for other in self._views.get(written.untyped_storage()._cdata, []):
            if other is not written:
                self._stale[id(other)] = node


def partial_write(before: Tensor, written: Tensor) -> Tensor:
    """Stands for a tensor after a part of it was written to; never called."""
    raise NotImplementedError


def _by_values(target: Any, args: Any) -> bool:
    """Whether an operator shows Python a value of a tensor, or makes a shape of one."""
    if target == torch.ops.aten.index.Tensor:  # by numbers it makes the shape of the numbers, by flags it counts them
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return bool(DATA_DEPENDENT & set(target.tags))


def _meta(value: Any) -> Any:
    return (
        torch.empty_like(value, device="meta") if isinstance(value, Tensor) and value.device.type != "meta" else value
    )


def _functional(target: Any) -> Any:
    """`add.Tensor` for `add_.Tensor`: what an in-place operator computes."""
    name = target._schema.name.partition("::")[2]
    if not (target._schema.is_mutable and name.endswith("_")):
        return target
    packet = getattr(torch.ops.aten, name[:-1], None)
    return getattr(packet, target._overloadname, target) if packet is not None else target
