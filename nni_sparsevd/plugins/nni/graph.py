"""A network as the `torch.fx` graph that NNI's `ModelSpeedup` works on: control flow follows one concrete run.

fx's own tracer cannot follow a branch on a value or a loop over a size.  Here every node is computed when it is
recorded, so a proxy can answer whatever Python asks of it, and the graph holds the operators of this one run.
"""

import inspect
import operator
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node, Proxy, Tracer
from torch.fx.node import map_arg
from torch.fx.proxy import Attribute
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ...errors import SettingError, TraceError
from ...graph import evaluation_mode

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_STATIC = (bool, int, float, str, torch.dtype, torch.device, torch.layout, type(None))
_FACTORIES = (torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn)  # reject (proxy, 3) before they dispatch


class _ConcreteProxy(Proxy):
    """A node together with the value that it has for the dummy input."""

    tracer: "_ConcreteTracer"
    value = property(lambda self: self.tracer.values[self.node])

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.value, name)
        if callable(value):
            return Attribute(self, name)  # a method: recorded when it is called
        if isinstance(value, _STATIC):
            return value  # a dtype, a device, a number of dimensions: no batch size changes it
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __len__(self) -> int:
        return len(self.value)

    def __index__(self) -> int:
        return operator.index(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __float__(self) -> float:
        return float(self.value)


class _RecordingMode(TorchFunctionMode):
    """Records what no proxy's own dispatch sees: `torch.full((batch, 3), 0.0)`, `table[:length]`, `torch._assert`."""

    def __init__(self, tracer: "_ConcreteTracer") -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._assert:  # is checked at once, and leaves no node
            return func(bool(args[0]), *args[1:])
        if not any(_has_proxy(leaf) for leaf in tree_leaves((args, kwargs))):
            return func(*args, **(kwargs or {}))
        if func is Tensor.__getitem__:
            return self.tracer.create_proxy("call_function", operator.getitem, args, {})
        return Proxy.__torch_function__(func, types, args, kwargs)


def _has_proxy(leaf: Any) -> bool:
    if isinstance(leaf, slice):  # pytree takes a slice for a leaf
        return any(isinstance(end, Proxy) for end in (leaf.start, leaf.stop, leaf.step))
    return isinstance(leaf, Proxy)


class _ConcreteTracer(Tracer):
    """Runs every node when it is made, so that Python gets the value of whatever it asks for."""

    proxy_buffer_attributes = True

    def __init__(self, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        super().__init__(autowrap_functions=_FACTORIES)
        self._autowrap_search += [torch]
        self.positional, self.named = positional, named
        self.values: dict[Node, Any] = {}
        self.writing: set[Node] = set()  # nodes that change one of their arguments
        self._running = False

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Placeholders for the inputs that were given, in their order; all other arguments keep their defaults."""
        parameters = list(inspect.signature(root_fn).parameters.values())[1:]
        names = [
            parameter.name
            for parameter in parameters
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        # A forward that takes *args has no names for the rest of the inputs.
        names += [f"input_{index}" for index in range(len(names), len(self.positional))]
        self.inputs = dict(zip(names, self.positional, strict=False)) | self.named
        arguments: dict[str, Any] = {}
        for name, value in self.inputs.items():
            proxy = self.create_proxy("placeholder", name, (), {})
            arguments[name] = value if isinstance(value, _STATIC) else proxy

        def forward(*args: Any) -> Any:
            return root_fn(self.root, *args, **{name: arguments[name] for name in self.named})

        return forward, [arguments[name] for name in self.inputs if name not in self.named]

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> Node:
        node = super().create_node(kind, target, *args, **kwargs)
        if kind != "output":
            self._running = True
            try:
                self.values[node] = self._run(node)
            finally:
                self._running = False
        return node

    def _run(self, node: Node) -> Any:
        name: Any = node.target
        if node.op == "placeholder":
            return self.inputs[name]
        if node.op == "get_attr":
            return operator.attrgetter(name)(self.root)
        args, kwargs = map_arg((node.args, node.kwargs), self.values.__getitem__)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        # Autograd counts the in-place changes of every tensor.  A node that changes an argument has an effect without
        # having a user, and must not be taken for dead code.
        versions = [tensor._version for tensor in tensors]
        if node.op == "call_module":
            value = self.root.get_submodule(name)(*args, **kwargs)
        elif node.op == "call_method":
            value = getattr(args[0], name)(*args[1:], **kwargs)
        else:
            value = name(*args, **kwargs)
        if versions != [tensor._version for tensor in tensors]:
            self.writing.add(node)
        return value

    # While a node runs, the layers and parameters in it are computed with and not recorded.

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, slice) and _has_proxy(a):  # NNI looks for no node inside a slice, so it becomes a node itself
            return self.create_proxy("call_function", slice, (a.start, a.stop, a.step), {}).node
        return super().create_arg(a)

    def proxy(self, node: Node) -> Proxy:
        return _ConcreteProxy(node, self)

    def to_bool(self, obj: Proxy) -> bool:
        return bool(self.values[obj.node])

    def iter(self, obj: Any) -> Iterator[Any]:
        value = self.values[obj.node]
        return iter(value) if isinstance(value, dict) else (obj[index] for index in range(len(value)))

    def keys(self, obj: Any) -> Any:
        return self.values[obj.node].keys()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """PyTorch's own layers and their subclasses: NNI cuts norms, convolutions and activations as a whole."""
        if isinstance(m, _CONTAINERS):
            return False
        bases = [base for base in type(m).__mro__ if base is not nn.Module]
        return any(base.__module__.startswith("torch.nn.modules.") for base in bases)


def trace(model: nn.Module, dummy_input: Any) -> GraphModule:
    """The graph of what `model` computes in evaluation mode, for `ModelSpeedup(..., graph_module=...)`.

    Branches, loops and assertions go the way of `dummy_input`.  Sizes stay nodes, so the graph runs at any batch size,
    unless Python makes a number of a size (`int`, `len`, `range`).

    `enable()` makes `ModelSpeedup` call this function itself.  The function needs none of the repairs.

    Args:
        model: The network.  The graph shares its layers, and it is left as it was.
        dummy_input: A tensor, a tuple or list of tensors, or a dictionary of keyword tensors.

    Returns:
        The graph as a module, in the training mode of `model`.

    Raises:
        SettingError: `dummy_input` is anything else.
        TraceError: The network fails on the input, or makes something that no graph can hold.  The message names the
            line.
    """
    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = {}
    if isinstance(dummy_input, dict):
        named = dummy_input
    elif isinstance(dummy_input, Tensor):
        positional = (dummy_input,)
    elif isinstance(dummy_input, list | tuple):
        positional = tuple(dummy_input)
    else:
        raise SettingError(f"trace: dummy_input has to hold tensors, found {dummy_input!r}")
    attributes = set(vars(model))
    try:
        inputs = tree_map_only(Tensor, Tensor.clone, (positional, named))  # forward may write to them
        tracer = _ConcreteTracer(*inputs)
        with evaluation_mode(model), torch.no_grad(), _RecordingMode(tracer):
            graph = tracer.trace(model)
        for node in graph.nodes:
            node.meta.pop("is_wrapped", None)  # otherwise the code made of the graph wraps the function for good
        result = GraphModule(model, graph)
    except Exception as error:  # whatever a user's forward raises
        raise TraceError(f"{type(model).__name__} could not be traced: {_locate(error)}: {error}") from error
    finally:
        for name in set(vars(model)) - attributes:  # constants that fx put there; the graph has its own
            delattr(model, name)
    result.training = model.training
    result.graph.eliminate_dead_code(lambda node: node.is_impure() or node in tracer.writing)
    result.recompile()
    return result


def _locate(error: Exception) -> str:
    """The line of the network, not of PyTorch or of this file, at which `error` came up."""
    frames = list(traceback.extract_tb(error.__traceback__))
    inside = [frame for frame in frames if "/torch/" not in frame.filename and frame.filename != __file__]
    last = (inside or frames)[-1]
    return f"`{last.line}` ({last.filename}:{last.lineno})"
