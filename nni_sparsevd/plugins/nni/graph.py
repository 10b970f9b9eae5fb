"""A network as the `torch.fx` graph that NNI's `ModelSpeedup` works on: control flow follows one concrete run."""

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

from ...errors import TraceError
from ...graph import evaluation_mode

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_STATIC = (bool, int, float, str, torch.dtype, torch.device, torch.layout, type(None))
_FACTORIES = (torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn)  # refuse (proxy, 3) before dispatching


class _Concrete(Proxy):
    """A node together with the value that it has for the dummy input."""

    tracer: "_Tracer"
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


class _Record(TorchFunctionMode):
    """Records what no proxy's own dispatch sees: `torch.full((batch, 3), 0.0)`, `table[:length]`, `torch._assert`."""

    def __init__(self, tracer: "_Tracer") -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._assert:  # holds or not now, and is no node
            return func(bool(args[0]), *args[1:])
        if not any(_has_proxy(leaf) for leaf in tree_leaves((args, kwargs))):
            return func(*args, **(kwargs or {}))
        if func is Tensor.__getitem__:
            return self.tracer.create_proxy("call_function", operator.getitem, args, {})
        return Proxy.__torch_function__(func, types, args, kwargs)


def _has_proxy(leaf: Any) -> bool:
    if isinstance(leaf, slice):  # which is a leaf to pytree
        return any(isinstance(end, Proxy) for end in (leaf.start, leaf.stop, leaf.step))
    return isinstance(leaf, Proxy)


class _Tracer(Tracer):
    """Runs every node when it is made, so that whatever asks for a value can be told."""

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
        names = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
        names += [f"input_{index}" for index in range(len(names), len(self.positional))]
        self.inputs = dict(zip(names, self.positional, strict=False)) | self.named
        proxies = {name: self.create_proxy("placeholder", name, (), {}) for name in self.inputs}
        given = {name: value if isinstance(value, _STATIC) else proxies[name] for name, value in self.inputs.items()}

        def forward(*args: Any) -> Any:
            return root_fn(self.root, *args, **{name: given[name] for name in self.named})

        return forward, [given[name] for name in self.inputs if name not in self.named]

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

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, slice) and _has_proxy(a):  # NNI finds no node inside a slice
            return self.create_proxy("call_function", slice, (a.start, a.stop, a.step), {}).node
        return super().create_arg(a)

    def proxy(self, node: Node) -> Proxy:
        return _Concrete(node, self)

    def to_bool(self, obj: Proxy) -> bool:
        return bool(self.values[obj.node])

    def iter(self, obj: Any) -> Iterator[Any]:
        value = self.values[obj.node]
        return iter(value) if isinstance(value, dict) else (obj[index] for index in range(len(value)))

    def keys(self, obj: Any) -> Any:
        return self.values[obj.node].keys()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """What PyTorch wrote and what derives from it: NNI cuts norms, convolutions and activations as a whole."""
        written = any(one.__module__.startswith("torch.nn.modules.") for one in type(m).__mro__ if one is not nn.Module)
        return written and not isinstance(m, _CONTAINERS)


def trace(model: nn.Module, dummy_input: Any) -> GraphModule:
    """What `model` computes in evaluation mode, for `ModelSpeedup(..., graph_module=...)`.

    `dummy_input` is a tensor, a tuple or list of tensors, or a dictionary of keyword tensors.  Branches, loops and
    assertions go the way of this input; sizes stay nodes, so the graph runs at any batch size, unless Python makes a
    number of one (`int`, `len`, `range`).  Layers are shared with `model`, which is left as it was.

    Raises `TraceError` when the network fails on the input or makes something that no graph can hold.
    """
    if isinstance(dummy_input, dict):
        positional, named = (), dummy_input
    else:
        positional, named = (dummy_input,) if isinstance(dummy_input, Tensor) else tuple(dummy_input), {}
    own = set(vars(model))
    try:
        tracer = _Tracer(*tree_map_only(Tensor, Tensor.clone, (positional, named)))  # forward may write to them
        with evaluation_mode(model), torch.no_grad(), _Record(tracer):
            graph = tracer.trace(model)
        for node in graph.nodes:
            node.meta.pop("is_wrapped", None)  # or the code made of the graph wraps the function for good
        result = GraphModule(model, graph)
    except Exception as error:  # whatever a user's forward raises
        raise TraceError(f"{type(model).__name__} could not be traced: {_place(error)}: {error}") from error
    finally:
        for name in set(vars(model)) - own:  # constants that fx parked there; the graph has them now
            delattr(model, name)
    result.training = model.training
    result.graph.eliminate_dead_code(lambda node: node.is_impure() or node in tracer.writing)
    result.recompile()
    return result


def _place(error: Exception) -> str:
    """The line of the network, not of PyTorch or of this file, in which `error` came up."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [one for one in frames if "/torch/" not in one.filename and one.filename != __file__] or list(frames)
    return f"`{inside[-1].line}` ({inside[-1].filename}:{inside[-1].lineno})"
