"""Repairs of `ModelSpeedup`: its tracer, its table of layers, and what it forgets."""

import contextlib
import copy
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from ...patching import Patch
from ..graph import trace
from .repairs import repair

Replace = Callable[[Any, Any], nn.Module]


def _not_imported() -> bool:
    return "nni.compression.speedup.utils" not in sys.modules


@repair(since="torch 2.2", needed=_not_imported)
def pytree_registration(patch: Patch) -> None:
    """NNI registers fx's immutable containers as pytree nodes, as PyTorch does by now: it warns, means to make that
    an error, and loses its own registration.  So NNI is imported here, while what is registered already is skipped.
    """
    register = _pytree._register_pytree_node

    def skip(cls: type, *args: Any, **kwargs: Any) -> None:
        if cls not in _pytree.SUPPORTED_NODES:
            register(cls, *args, **kwargs)

    with Patch() as during_import:
        during_import.set(_pytree, "_register_pytree_node", skip)
        import nni.compression.speedup.utils  # noqa: F401  for its effect


@repair(since="torch 2.2")
def tracer(patch: Patch) -> None:
    """NNI's concrete tracer patches private parts of PyTorch that are gone, and reads Python's bytecode of before 3.11.
    `ModelSpeedup` is given the graph of our own tracer where the caller gives none.
    """
    from nni.compression.speedup import model_speedup

    patch.set(model_speedup, "concrete_trace", trace)


@repair(since="NNI 3.0")
def layers(patch: Patch) -> None:
    """The table of what can be cut goes by the name of the class, so timm's subclasses of PyTorch's layers, and layers
    without any shape, stay whole, and the network does not fit together any more.
    """
    from nni.compression.speedup.replacement import no_replace, replace_module

    def like(base: str) -> Replace:
        """Cut as NNI cuts `base`, and keep the class, its activation and its options."""

        def replace(module: nn.Module, masks: Any) -> nn.Module:
            return _take_over(module, replace_module[base](module, masks))

        return replace

    def channels_first(module: nn.Module, masks: Any) -> nn.Module:
        """NNI looks for LayerNorm's channels in the last dimension."""
        inputs, output, parameters = masks
        last = tuple(mask.movedim(1, -1) for mask in inputs)
        return _take_over(module, replace_module["LayerNorm"](module, (last, output, parameters)))

    derived = {
        "Conv2dSame": like("Conv2d"),
        "BatchNormAct2d": like("BatchNorm2d"),
        **dict.fromkeys(("GroupNorm1", "GroupNormAct", "GroupNorm1Act"), like("GroupNorm")),
        **dict.fromkeys(("LayerNormAct", "LayerNormFp32", "LayerNormActFp32"), like("LayerNorm")),
        **dict.fromkeys(("LayerNorm2d", "LayerNormAct2d", "LayerNorm2dFp32", "LayerNormAct2dFp32"), channels_first),
    }
    for name, replace in {**derived, **dict.fromkeys(_SHAPE_FREE, no_replace)}.items():
        if name not in replace_module:
            patch.set(replace_module, name, replace)


_SHAPE_FREE = (
    *("Identity", "DropPath", "Dropout1d", "AlphaDropout", "FeatureAlphaDropout"),
    *("MaxPool1d", "MaxPool2dSame", "AvgPool1d", "AvgPool2dSame"),
    *("AdaptiveAvgPool1d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d"),
    *("ReflectionPad2d", "ReplicationPad2d", "ConstantPad2d"),
    *("UpsamplingNearest2d", "UpsamplingBilinear2d"),
    *("Hardshrink", "Threshold", "Softsign", "Softmin", "LogSoftmax", "Softmax2d"),
)


def _take_over(module: nn.Module, small: nn.Module) -> nn.Module:
    """A copy of `module` with the parameters, buffers and sizes of `small`, a plain layer that NNI made of it."""
    result = copy.deepcopy(module)
    kept = {"_modules", "training", *(name for name in vars(small) if "hook" in name)}
    vars(result).update({name: value for name, value in vars(small).items() if name not in kept})
    return result


@repair(since="NNI 3.0")
def failed_run(patch: Patch) -> None:
    """A run that fails leaves the network with the random weights of the propagation, or with some layers cut and
    others not.  It leaves it as it was.
    """
    from nni.compression.speedup import ModelSpeedup

    run = ModelSpeedup.speedup_model

    @functools.wraps(run)
    def put_back(self: Any) -> nn.Module:
        layers = {node.target: self.fetch_attr(node.target) for node in self.node_infos if node.op == "call_module"}
        state = {name: tensor.clone() for name, tensor in self.graph_module.state_dict().items()}
        try:
            return run(self)  # type: ignore[no-any-return]
        except BaseException:  # Ctrl-C too
            self.graph_module.load_state_dict(state)
            for name, layer in layers.items():
                self.bound_model.set_submodule(name, layer)
            raise

    patch.set(ModelSpeedup, "speedup_model", put_back)


@repair(since="NNI 3.0")
def flags(patch: Patch) -> None:
    """A layer that takes another's place comes up in training mode, also in a network that is evaluated, where its
    batch norms then use, and change, their statistics; and every parameter comes out trainable.  Flags stay what they
    were.
    """
    from nni.compression.speedup import ModelSpeedup

    run = ModelSpeedup.speedup_model

    @functools.wraps(run)
    def keep(self: Any) -> nn.Module:
        with _flags_kept(self.bound_model):
            return run(self)  # type: ignore[no-any-return]

    patch.set(ModelSpeedup, "speedup_model", keep)


@contextlib.contextmanager
def _flags_kept(model: nn.Module) -> Iterator[None]:
    training = {name: module.training for name, module in model.named_modules()}
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        for name, module in model.named_modules():
            module.training = training.get(name, module.training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable.get(name, parameter.requires_grad))


@repair(since="NNI 3.0")
def dependency_inputs(patch: Patch) -> None:
    """`auto_set_denpendency_group_ids` gives a dictionary of inputs, which its documentation allows, to the network as
    one argument, and sets the training flag of every layer to the network's.  The inputs become keywords; flags stay.
    """
    from nni.common.graph_utils import TorchGraph

    run = TorchGraph._trace

    @functools.wraps(run)
    def with_keywords(self: Any, model: nn.Module, dummy_input: Any) -> None:
        with _flags_kept(model):
            if isinstance(dummy_input, dict):
                self.trace = torch.jit.trace(model.eval(), example_kwarg_inputs=dummy_input, strict=False)
                torch._C._jit_pass_inline(self.trace.graph)
            else:
                run(self, model, dummy_input)

    patch.set(TorchGraph, "_trace", with_keywords)


@repair(since="torch 2.6")
def mask_files(patch: Patch) -> None:
    """`torch.load` refuses what `torch.save(pruner.get_masks())` wrote: a defaultdict.  While `ModelSpeedup` reads the
    file, it is allowed, as a plain dictionary.
    """
    from nni.compression.speedup import ModelSpeedup

    start = ModelSpeedup.__init__
    allowed: list[Any] = [(_plain, "collections.defaultdict"), (_plain, "builtins.dict")]

    @functools.wraps(start)
    def allow(self: Any, *args: Any, **kwargs: Any) -> None:
        with torch.serialization.safe_globals(allowed):
            start(self, *args, **kwargs)

    patch.set(ModelSpeedup, "__init__", allow)


def _plain(default_factory: Any = None) -> dict[str, Any]:
    return {}


@repair(since="NNI 3.0")
def last_use(patch: Patch) -> None:
    """`NoMaskUpdater` deletes `_output_randomize` where it means `output_randomize`: a tensor whose last use is
    `.size()` or `.dim()` ends the run.  The misspelt name is made to mean the other.
    """
    from nni.compression.speedup.container import NodeInfo

    patch.set(NodeInfo, "_output_randomize", property(fdel=lambda info: delattr(info, "output_randomize")))


@repair(since="NNI 3.0")
def gradients(patch: Patch) -> None:
    """`ModelSpeedup` propagates gradients, and called under `torch.no_grad()` it fails for want of them.  It switches
    them on for itself.
    """
    from nni.compression.speedup import ModelSpeedup

    patch.set(ModelSpeedup, "speedup_model", torch.enable_grad()(ModelSpeedup.speedup_model))


@repair(since="NNI 3.0")
def failing_layer(patch: Patch) -> None:
    """`Shape mismatch!` and its like do not say where.  A note on the exception names the layer."""
    from nni.compression.speedup.replacer import DefaultReplacer

    replace_all = DefaultReplacer.replace_modules

    @functools.wraps(replace_all)
    def name_it(self: Any, speedup: Any) -> None:
        try:
            replace_all(self, speedup)
        except Exception as error:
            left = [node for node, info in speedup.node_infos.items() if node.op == "call_module" and not info.replaced]
            known = [
                node for node in left if speedup.fetch_attr(node.target)._get_name() in self.replace_module_func_dict
            ]
            error.add_note(f"while ModelSpeedup replaced {known[0].target if known else 'a layer'}")
            raise

    patch.set(DefaultReplacer, "replace_modules", name_it)
