"""Repairs of `ModelSpeedup`: its tracer, its table of layers, and what it forgets."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from nni.common.graph_utils import TorchGraph
from torch import Tensor, nn

from ...patching import Patch
from ..graph import trace
from .repairs import repair
from .speedup_import import DefaultReplacer, ModelSpeedup, NodeInfo, model_speedup, no_replace, replace_module

Replace = Callable[[nn.Module, Any], nn.Module]
"""Makes a smaller layer of a layer and its masks: (masks of the inputs, mask of the output, masks of parameters)."""


@repair(since="torch 2.2")
def tracer(patch: Patch) -> None:
    """NNI's concrete tracer patches private parts of PyTorch that no longer exist, and reads the bytecode of Python
    before 3.11. `ModelSpeedup` gets the graph of our own tracer, unless the caller hands it a graph.
    """
    patch.set(model_speedup, "concrete_trace", trace)


@repair(since="NNI 3.0")
def layers(patch: Patch) -> None:
    """NNI's table of the layers that it can make smaller goes by class name. timm's subclasses of PyTorch's layers and
    layers without a shape are not in it. They keep their size, and the layers no longer fit together. The missing
    classes are entered.
    """
    for name, replace in {**_sized_layers(), **dict.fromkeys(_SHAPE_FREE_LAYERS, no_replace)}.items():
        if name not in replace_module:
            patch.set(replace_module, name, replace)


_SHAPE_FREE_LAYERS = (
    *("Identity", "DropPath", "Dropout1d", "AlphaDropout", "FeatureAlphaDropout"),
    *("MaxPool1d", "MaxPool2dSame", "AvgPool1d", "AvgPool2dSame"),
    *("AdaptiveAvgPool1d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d"),
    *("ReflectionPad2d", "ReplicationPad2d", "ConstantPad2d"),
    *("UpsamplingNearest2d", "UpsamplingBilinear2d"),
    *("Hardshrink", "Threshold", "Softsign", "Softmin", "LogSoftmax", "Softmax2d"),
)


def _sized_layers() -> dict[str, Replace]:
    """Timm's layers that are cut as a layer of PyTorch is, by class name."""
    return {
        "Conv2dSame": _replace_like("Conv2d"),
        "BatchNormAct2d": _replace_like("BatchNorm2d"),
        **dict.fromkeys(("GroupNorm1", "GroupNormAct", "GroupNorm1Act"), _replace_like("GroupNorm")),
        **dict.fromkeys(("LayerNormAct", "LayerNormFp32", "LayerNormActFp32"), _replace_like("LayerNorm")),
        **dict.fromkeys(
            ("LayerNorm2d", "LayerNormAct2d", "LayerNorm2dFp32", "LayerNormAct2dFp32"), _replace_layer_norm_2d
        ),
    }


def _replace_like(base: str) -> Replace:
    """Cut a layer as NNI cuts `base`, but keep its class, its activation and its options."""

    def replace(module: nn.Module, masks: Any) -> nn.Module:
        return _copy_with_sizes_of(replace_module[base](module, masks), module)

    return replace


def _replace_layer_norm_2d(module: nn.Module, masks: Any) -> nn.Module:
    """Cut a LayerNorm whose channels are in dimension 1; NNI looks for them in the last dimension."""
    inputs, output, parameters = masks
    channels_last = tuple(mask.movedim(1, -1) for mask in inputs)
    return _copy_with_sizes_of(replace_module["LayerNorm"](module, (channels_last, output, parameters)), module)


def _copy_with_sizes_of(small: nn.Module, module: nn.Module) -> nn.Module:
    """A copy of `module` with the parameters, buffers and sizes of `small`, a plain layer that NNI made of it."""
    result = copy.deepcopy(module)
    for name, value in vars(small).items():
        if name not in ("_modules", "training") and "hook" not in name:
            vars(result)[name] = value
    return result


@repair(since="NNI 3.0")
def failed_run(patch: Patch) -> None:
    """A run that fails leaves the network with the random weights of the propagation, or with some layers cut and
    others not. After the repair it leaves the network as it was.
    """
    run = ModelSpeedup.speedup_model

    @functools.wraps(run)
    def speedup_or_restore(self: Any) -> nn.Module:
        layers = {node.target: self.fetch_attr(node.target) for node in self.node_infos if node.op == "call_module"}
        state = {name: tensor.clone() for name, tensor in self.graph_module.state_dict().items()}
        try:
            small: nn.Module = run(self)
        except BaseException:  # an interrupt with Ctrl-C leaves the same damage
            self.graph_module.load_state_dict(state)
            for name, layer in layers.items():
                self.bound_model.set_submodule(name, layer)
            raise
        return small

    patch.set(ModelSpeedup, "speedup_model", speedup_or_restore)


@repair(since="NNI 3.0")
def flags(patch: Patch) -> None:
    """A layer that replaces another comes up in training mode, even in a network in evaluation mode, where its batch
    norms then use and change their statistics. Every parameter comes out trainable. After the repair both flags stay
    what they were.
    """
    run = ModelSpeedup.speedup_model

    @functools.wraps(run)
    def speedup_keeping_flags(self: Any) -> nn.Module:
        with _flags_kept(self.bound_model):
            small: nn.Module = run(self)
        return small

    patch.set(ModelSpeedup, "speedup_model", speedup_keeping_flags)


@contextlib.contextmanager
def _flags_kept(model: nn.Module) -> Iterator[None]:
    """Put back `training` and `requires_grad` by name at the end, whatever replaced the modules and parameters."""
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
    """`auto_set_denpendency_group_ids` passes a dictionary of inputs, which its documentation allows, to the network as
    one argument, and sets the training flag of every layer to that of the network. After the repair the inputs become
    keyword arguments and the flags stay.
    """
    trace_positional = TorchGraph._trace

    @functools.wraps(trace_positional)
    def trace_any(self: Any, model: nn.Module, dummy_input: Any) -> None:
        with _flags_kept(model):
            if not isinstance(dummy_input, dict):
                trace_positional(self, model, dummy_input)
                return
            self.trace = torch.jit.trace(model.eval(), example_kwarg_inputs=dummy_input, strict=False)
            torch._C._jit_pass_inline(self.trace.graph)

    patch.set(TorchGraph, "_trace", trace_any)


@repair(since="torch 2.6")
def mask_files(patch: Patch) -> None:
    """`torch.load` rejects the file that `torch.save(pruner.get_masks())` wrote, because the masks are a defaultdict.
    While `ModelSpeedup` reads the file, a defaultdict is allowed and becomes a plain dictionary.
    """
    init = ModelSpeedup.__init__
    # A defaultdict is pickled as a call of its class with its factory, here the class `dict`: both names must load.
    allowed: list[Any] = [(_empty_masks, "collections.defaultdict"), (_empty_masks, "builtins.dict")]

    @functools.wraps(init)
    def init_allowing_defaultdict(self: Any, *args: Any, **kwargs: Any) -> None:
        with torch.serialization.safe_globals(allowed):
            init(self, *args, **kwargs)

    patch.set(ModelSpeedup, "__init__", init_allowing_defaultdict)


def _empty_masks(default_factory: Any = None) -> dict[str, dict[str, Tensor]]:
    """Take the place of `collections.defaultdict` when a file of masks is read; the file then fills the dictionary."""
    return {}


@repair(since="NNI 3.0")
def last_use(patch: Patch) -> None:
    """`NoMaskUpdater` deletes `_output_randomize` where it means `output_randomize`, so a tensor whose last use is
    `.size()` or `.dim()` ends the run. After the repair the misspelled name means the right one.
    """

    def delete_output_randomize(info: NodeInfo) -> None:
        del info.output_randomize

    patch.set(NodeInfo, "_output_randomize", property(fdel=delete_output_randomize))


@repair(since="NNI 3.0")
def gradients(patch: Patch) -> None:
    """`ModelSpeedup` propagates gradients, and fails without them when it is called under `torch.no_grad()`. After the
    repair it switches gradients on for itself.
    """
    patch.set(ModelSpeedup, "speedup_model", torch.enable_grad()(ModelSpeedup.speedup_model))


@repair(since="NNI 3.0")
def failing_layer(patch: Patch) -> None:
    """`Shape mismatch!` and similar errors do not say where. After the repair a note on them names the layer."""
    replace_all = DefaultReplacer.replace_modules

    @functools.wraps(replace_all)
    def replace_and_name_failure(self: Any, speedup: Any) -> None:
        try:
            replace_all(self, speedup)
        except Exception as error:
            error.add_note(f"while ModelSpeedup replaced {_first_layer_left(self, speedup) or 'a layer'}")
            raise

    patch.set(DefaultReplacer, "replace_modules", replace_and_name_failure)


def _first_layer_left(replacer: Any, speedup: Any) -> str | None:
    """The first layer that NNI can replace and has not: the layer at which it failed."""
    for node, info in speedup.node_infos.items():
        if node.op != "call_module" or info.replaced:
            continue
        if speedup.fetch_attr(node.target)._get_name() in replacer.replace_module_func_dict:
            return str(node.target)
    return None
