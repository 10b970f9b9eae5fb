"""A network as a flat, functional list of operators, recorded while it runs without data."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from operator import getitem
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ..errors import TraceError, describe_error
from .copies import copy_module
from .culprits import find_failing_module
from .example_inputs import CallArguments, Inputs, as_arguments
from .multihead import free_attentions_
from .operators import find_channel_rule
from .origins import Origins, name_numbers_
from .pytrees import PLAIN, name_leaves
from .shapes import make_result

SUMS_OF_PRODUCTS = {
    torch.ops.aten.addmm.default: torch.ops.aten.matmul.default,
    torch.ops.aten.baddbmm.default: torch.ops.aten.bmm.default,
}
"""Operators that add a product to a tensor; they are recorded as the product and the sum."""
DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


@dataclass(frozen=True)
class Trace:
    """The operators of one forward pass in evaluation mode, at the shapes of the example inputs.

    - A `placeholder` is an input.  A `get_attr` is a parameter, a buffer, or a tensor that the code holds otherwise,
      which is then in `meta["constant"]`.
    - `meta["val"]` has shape and type of every value.
    - `meta["module"]` is the name of the innermost module that ran the operator, `meta["step"]` how many nodes that
      call of the module had made before, `meta["returned_by"]`, if any module returns the value, the names of these
      modules, the innermost first, and `meta["given_to"]` the names of those that take it as their only argument.
    - Sizes stand in the arguments as the code gave them, -1 included; `meta["origins"]` has the attributes that they
      were read from.
    """

    graph: Graph
    layers: frozenset[str]
    """Names of the modules whose classes are PyTorch's own, not derived from them."""
    device: str | None
    """Where the network ran: on "meta", or None where it had to see the inputs."""
    inputs: CallArguments

    def state(self, node: object) -> str | None:
        """Name of the parameter or buffer that `node` is, None if it is something else."""
        if isinstance(node, Node) and node.op == "get_attr" and "constant" not in node.meta:
            return str(node.target)
        return None


def find_unused(trace: Trace) -> frozenset[Node]:
    """The operators of which nothing reaches an output, or is written to memory that outlives the run."""
    used: set[Node] = set()
    for node in reversed(trace.graph.nodes):
        if node in used or node.op == "output" or node.meta.get("writes"):
            used.add(node)
            used.update(node.all_input_nodes)
    return frozenset(node for node in trace.graph.nodes if node.op == "call_function" and node not in used)


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

    Modules do so of themselves when they are set to training.  Each gets its own mode back.
    """
    if not hears_of_modes(model):
        return
    mode = model.training
    with evaluation_mode(model):
        model.train()
        model.train(mode)  # whatever modules did in the one direction, they undo in the other


def hears_of_modes(model: nn.Module) -> bool:
    """Whether any module does more than to remember that it is set to training."""
    return any(_hears_of_modes(module) for module in model.modules())


def _hears_of_modes(module: nn.Module) -> bool:
    attributes = vars(module)
    kind: Any = type(module)
    return not _has_plain_modes(kind) or "train" in attributes or "training" not in attributes


@cache
def _has_plain_modes(kind: Any) -> bool:
    return kind.train is nn.Module.train and kind.__setattr__ is nn.Module.__setattr__


def copy_model(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy without what modules keep between evaluations.

    Args:
        model: The network; its caches are cleared.
        memo: What is copied already, by the id of the original, as `copy.deepcopy` takes it.

    Returns:
        The copy.

    Raises:
        ModelError: The network holds something that cannot be copied; the message names the module and attribute.
    """
    clear_caches_(model)
    return copy_module(model, memo)


def trace(model: nn.Module, example_inputs: Inputs) -> Trace:
    """Record what `model` computes on `example_inputs`; the model is left as it was.

    Operators without a rule are recorded as those that they consist of, where they do.  In-place operators are
    recorded as functional ones, so a value never changes after its node.  The network runs on PyTorch's `meta`
    device, which computes shapes only; where the code does not stand that, it runs on the example inputs.

    Args:
        model: The network.
        example_inputs: What it is called with; see `as_arguments`.

    Returns:
        The operators.

    Raises:
        TraceError: The network fails on the inputs, or its way depends on their values; the message names the module.
        ModelError: The network holds something that cannot be copied.
    """
    device = next((parameter.device for parameter in model.parameters()), None)
    inputs = as_arguments(example_inputs).map_tensors(lambda value: value.to(device))
    attempt = record(make_traceable_copy(model, "meta"), inputs, "meta")
    if attempt.error is None and any(_is_whole(value) for value in inputs.tensors):
        # Without data no table notices that it is asked for a row that it does not have.
        _require_run(make_traceable_copy(model, None), inputs)
    if attempt.error is not None:
        attempt = record(make_traceable_copy(model, None), inputs, None)
    if attempt.error is not None:
        place = f" in {attempt.place}" if attempt.place else ""
        raise TraceError(
            f"{type(model).__name__} could not be traced on {inputs.shapes}{place}: {describe_error(attempt.error)}"
            f"{_suggest_another_form(inputs, attempt.error)}"
        ) from attempt.error
    return attempt.trace


def _is_whole(value: Tensor) -> bool:
    return value.dtype not in (torch.bool, torch.uint8) and not value.is_floating_point() and not value.is_complex()


def _require_run(model: nn.Module, inputs: CallArguments) -> None:
    """Raise `TraceError` where a copy of a network does not run on the values of the example."""
    try:
        with torch.no_grad():
            inputs.map_tensors(torch.clone).call(model)
    except Exception as error:  # whatever a user's forward raises
        module = find_failing_module(model, inputs)
        place = f" in {module}" if module else ""
        raise TraceError(
            f"{type(model).__name__} fails on the example, {inputs.shapes}{place}: {describe_error(error)}"
        ) from error


def _suggest_another_form(inputs: CallArguments, error: Exception) -> str:
    """What a user may have meant by example inputs that the signature of the network does not fit."""
    if not isinstance(error, TypeError):
        return ""
    if inputs.kwargs and not inputs.args:
        return "; a dict is passed by keyword, and as one argument if it is in a tuple: ({...},)"
    if len(inputs.args) == 1 and isinstance(inputs.args[0], list):
        return "; a list is one argument, and a tuple holds several"
    return ""


@dataclass(frozen=True)
class Attempt:
    """What was recorded before the network ended or failed."""

    trace: Trace
    error: Exception | None
    place: str
    """The module that was running when the network failed."""
    in_operator: bool
    """Whether an operator failed, the one after the last node; else the code between two operators did."""


def make_traceable_copy(model: nn.Module, device: str | None) -> nn.Module:
    """A copy of a network that `record` may run: its forward pass may write to buffers, and its numbers have origins.

    Args:
        model: The network.
        device: "meta" for a copy that has only the shapes of parameters and buffers, None for one that shares the
            parameters with `model` and has buffers of its own.

    Returns:
        The copy, in evaluation mode.
    """
    memo: dict[int, Any] = {}
    for buffer in list(model.buffers()):
        memo[id(buffer)] = buffer.clone() if device is None else buffer.to(device)
    for parameter in model.parameters():
        shapes_only = device is not None
        memo[id(parameter)] = nn.Parameter(parameter.to(device), parameter.requires_grad) if shapes_only else parameter
    traceable = copy_model(model, memo).eval()
    free_attentions_(traceable)
    name_numbers_(traceable)
    return traceable


class ValueDependenceError(TraceError):
    """A network looks at the values of its inputs to decide what to do."""


@dataclass(frozen=True)
class Names:
    """The modules, parameters and buffers of a network, by name."""

    modules: list[tuple[str, nn.Module]]
    """Under every name."""
    name_of: dict[int, str]
    """The first name of each module, by its id."""
    state_of: dict[int, str]
    """The first name of each parameter, and of each buffer, by its id."""


def find_names(model: nn.Module) -> Names:
    """Name what a network holds."""
    modules = list(model.named_modules(remove_duplicate=False))
    # In reverse, so that a module with several names goes by its first one.
    return Names(modules, {id(module): name for name, module in reversed(modules)}, _name_states(modules))


def record(model: nn.Module, inputs: CallArguments, device: str | None, names: Names | None = None) -> Attempt:
    """Run `model`, a `make_traceable_copy` for `device`; see `trace`.

    A network that looks at the values of its inputs is run once more as `torch.export` would run it.

    Args:
        model: The copy.
        inputs: What it is called with.
        device: "meta" or None.
        names: What `find_names` says of the copy, where that is known.

    Returns:
        What was recorded.
    """
    names = names or find_names(model)
    # 1. Many networks look at values only to save work: those of Hugging Face leave out a mask that hides nothing.
    # 2. They ask PyTorch whether they are being exported, and then go the way that is right for all values.
    # 3. What was recorded on that way is compared later with the network as it runs ordinarily.
    attempt = _record_once(model, inputs, device, names)
    if not isinstance(attempt.error, ValueDependenceError):
        return attempt
    with _pretend_to_export():
        exported = _record_once(model, inputs, device, names)
    return attempt if exported.error is not None else exported


@contextmanager
def _pretend_to_export() -> Iterator[None]:
    """Set what `torch.compiler.is_compiling` and `is_exporting` say, as `torch.export` does while it traces."""
    compiler: Any = torch.compiler
    before = compiler._is_compiling_flag, compiler._is_exporting_flag
    try:
        compiler._is_compiling_flag = compiler._is_exporting_flag = True
        yield
    finally:
        compiler._is_compiling_flag, compiler._is_exporting_flag = before


def _record_once(model: nn.Module, inputs: CallArguments, device: str | None, names: Names) -> Attempt:
    # Copies, because a network may write to its inputs, and because one tensor may be several of them.
    try:
        inputs = inputs.map_tensors(lambda value: value.detach().clone() if device is None else value.to(device))
    except Exception as refusal:  # of a class that wants its tensors to have data, such as a packed sequence
        return Attempt(Trace(Graph(), frozenset(), device, inputs), refusal, "", in_operator=False)
    recorder = _Recorder(names, inputs.tensors)
    name_of = names.name_of
    enter = register_module_forward_pre_hook(lambda module, args: recorder.enter(name_of.get(id(module), ""), args))
    leave = register_module_forward_hook(lambda module, inputs, output: recorder.leave(output))
    error = None
    try:
        # Inference mode, because then PyTorch shows operators whole that it would take apart for autograd.
        with torch.inference_mode(), recorder.origins, recorder:
            outputs = inputs.call(model)
        recorder.graph.output(tuple(recorder.node(value) for value in _find_tensors(outputs)))
    except Exception as raised:  # whatever a user's forward raises
        error = raised
    finally:
        enter.remove()
        leave.remove()
    layers = frozenset(name_of[id(module)] for _, module in names.modules if _is_of_torch(type(module)))
    recorded = Trace(recorder.graph, layers, device, inputs)
    return Attempt(recorded, error, recorder.place, recorder.in_operator)


def _is_of_torch(kind: type[nn.Module]) -> bool:
    return kind.__module__.startswith("torch.nn.modules.")


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
# 3. In-place operators make a new node for the tensor that they write to, under the same id: whoever uses the tensor
#    later gets the new node.  Other tensors that share its memory change, too, but in a way that no node describes.
#    They are marked as stale, and a stale tensor that is used again becomes a `partial_write`, which no rule covers:
#    whatever it carries is pinned.
# 4. Values that depend on the input are marked as live.  An operator that shows Python a value of a live tensor, or
#    makes a shape of one, is an error: the code could go another way for another input, and one recorded way would
#    say nothing about it.
class _Recorder(TorchDispatchMode):
    """Makes a node of every operator that runs."""

    def __init__(self, names: Names, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self.in_operator = False
        self.origins = Origins()
        self._calls = [_Call("")]  # from the network to the innermost module
        self._nodes: dict[int, Node] = {}
        self._seen: list[Tensor] = []
        self._by_storage: dict[int, list[Tensor]] = {}
        self._stale: dict[int, Node] = {}  # id of a tensor -> the operator that wrote to a part of its memory
        self._live: set[Node] = set()
        self._convolutions = {name for name, module in names.modules if isinstance(module, nn.modules.conv._ConvNd)}
        self._names = names.state_of
        for index, value in enumerate(inputs):
            node = self.graph.placeholder(f"input_{index}")
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
            node = self.graph.create_node("get_attr", name or "constant")
            if name is None:
                node.meta["constant"] = value
            self._bind(value, node)
        if id(value) in self._stale:
            writing = self._stale.pop(id(value))
            node = self.graph.call_function(partial_write, (self._nodes[id(value)], writing))
            if self._live & {self._nodes[id(value)], writing}:
                self._live.add(node)
            self._bind(value, node)
        return self._nodes[id(value)]

    def __torch_dispatch__(self, target: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if target in SUMS_OF_PRODUCTS:
            with self:
                return _add_product(target, *args, **kwargs)
        if find_channel_rule(target) is None and not target._schema.is_mutable:
            with self:  # an operator that consists of others comes back here as these
                parts = target.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        arguments = self._replace_tensors(args)
        options = {name: self._replace_tensors(value) for name, value in kwargs.items()}
        live = any(source in self._live for source in _find_nodes((arguments, *options.values())))
        if live and _shows_values(target, args):
            raise ValueDependenceError(f"its way depends on the values of the input ({target})")
        self.in_operator = True  # stays so where the operator fails
        outputs = make_result(target, args, kwargs)
        if outputs is None:
            outputs = target(*args, **kwargs)
        self.in_operator = False
        if outputs is None:  # an assertion
            return None
        node = self.graph.create_node("call_function", as_functional(target), arguments, options)
        # The sizes of an operator come after the tensor that it takes; one that makes a tensor begins with them.
        node.meta["origins"] = self.origins.of(args[1:] if args and isinstance(args[0], Tensor) else args)
        node.meta["groups_origin"] = self.origins.groups
        node.meta["writes"] = target._schema.is_mutable
        # One of torch's convolutions, or a class derived from it, is told its number of groups when its weight is cut.
        node.meta["groups_follow_weight"] = self.origins.groups == (self.place, "groups", None) and (
            self.place in self._convolutions
        )
        if live:
            self._live.add(node)
        if target._schema.is_mutable:
            self._mark_stale(args[0], node)
        self._bind_outputs(outputs, node)
        return outputs

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
                item = self.graph.call_function(getitem, (node, index))
                if node in self._live:
                    self._live.add(item)
                self._bind(value, item)

    def _bind(self, value: Tensor, node: Node) -> None:
        """From here on `node` stands for `value`."""
        self._describe(node, value)
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
        """Whatever else shows the memory that an operator wrote to no longer has a node that describes it."""
        self._stale.pop(id(written), None)
        for other in self._by_storage.get(written.untyped_storage()._cdata, []):
            if other is not written:
                self._stale[id(other)] = node


def _name_states(modules: Sequence[tuple[str, nn.Module]]) -> dict[int, str]:
    """The first name of each parameter, and of each buffer, by its id."""
    names: dict[int, str] = {}
    for table in ("_parameters", "_buffers"):
        for module_name, module in modules:
            prefix = f"{module_name}." if module_name else ""
            for key, tensor in getattr(module, table).items():
                names.setdefault(id(tensor), prefix + key)
    return names


def _find_tensors(outputs: Any) -> list[Tensor]:
    """The tensors of an output, whatever holds them."""
    tensors = []
    for name, leaf in name_leaves(outputs):
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
        elif not isinstance(leaf, PLAIN):
            place = f"the output {name}" if name else "the output"
            raise TraceError(f"{place} is of the class {type(leaf).__name__}, and what it holds is unknown")
    return tensors


def _add_product(target: Any, x: Tensor, *factors: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    """Beta x + alpha times the product, with as few operators as that takes."""
    product: Tensor = SUMS_OF_PRODUCTS[target](*factors)
    if alpha != 1:
        product = product * alpha
    return (x if beta == 1 else x * beta) + product


def partial_write(before: Tensor, writing: Tensor) -> Tensor:
    """Stands for a tensor after a part of its memory was written to; never called."""
    raise NotImplementedError


def _shows_values(target: Any, args: Any) -> bool:
    """Whether an operator shows Python a value of a tensor, or makes a shape of one."""
    if target == torch.ops.aten.index.Tensor:
        # Numbers give the result their own shape; flags are counted.
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return bool(DATA_DEPENDENT & set(target.tags))


def _without_data(value: Any) -> Any:
    """Shape and type of a tensor, without its memory."""
    if isinstance(value, Tensor) and not value.is_meta:
        return torch.empty_like(value, device="meta")
    return value


def _find_nodes(arguments: Any) -> Iterator[Node]:
    """The nodes in the arguments of an operator."""
    for value in arguments:
        if isinstance(value, Node):
            yield value
        elif isinstance(value, list | tuple):
            yield from _find_nodes(value)


@cache
def as_functional(target: Any) -> Any:
    """`add.Tensor` for `add_.Tensor`: what an in-place operator computes."""
    name = target._schema.name.partition("::")[2]
    if not (target._schema.is_mutable and name.endswith("_")):
        return target
    packet = getattr(torch.ops.aten, name[:-1], None)
    return getattr(packet, target._overloadname, target) if packet is not None else target
