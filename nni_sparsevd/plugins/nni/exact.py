"""`ExactSpeedup`: the arguments of `ModelSpeedup`, the masks of any pruner, and the same function afterwards."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from ... import shrinking
from ...convert import bake_
from ...errors import MaskError, ModelError, SettingError, SparseVDWarning
from ...files import load_tensors, save_tensors
from ...graph import CallArguments, channel_graph, copy_module
from ...masks import Masks, flatten_masks, unflatten_masks
from ...nn import is_variational
from ...shrinking import CheckResult, Plan, shrink_masked
from .dummy_input import read_dummy_input


class ExactSpeedup:
    """Takes the place of NNI's `ModelSpeedup`: the masked model becomes smaller and computes what it computed.

    The output of a masked channel is seldom zero: its normalization still shifts it.  `ModelSpeedup` drops that
    constant.  Here it is folded into the layers that read the channel.  A channel that cannot be removed exactly stays,
    and the plan has the reason.

    This class runs no code of NNI and needs none of the repairs of `enable()`.

    Args:
        model: The unwrapped model (`pruner.unwrap_model()`).  It is changed in place.
        dummy_input: What the model is called with: a tensor, a tuple or list of arguments, a dictionary of keyword
            arguments, or a pair (args, kwargs), in any nesting.
        masks_or_file: The masks of any pruner of NNI, or the path of a file that `save_masks` has written.  A pickled
            file is never read.
        map_location: Ignored; masks follow the model's device.
        batch_dim: Ignored; it steers the search of `ModelSpeedup`.
        batch_size: Ignored; it steers the search of `ModelSpeedup`.
        customized_mask_updaters: None or empty; they would change the search of `ModelSpeedup`.
        customized_replacers: None or empty; they would change the search of `ModelSpeedup`.
        graph_module: None; it would replace the graph of `ModelSpeedup`.
        garbage_collect_values: Ignored; it steers the search of `ModelSpeedup`.
        logger: Where the number of removed channels is logged.  None: the logger of this module.
        extend_masks: Zero first what still shifts a channel whose weights are all masked, such as a bias or a norm.
            This changes what the model computes, to what `ModelSpeedup` would make of it.  As many channels are removed
            as by `ModelSpeedup`, and the small model computes exactly what the model with extended masks computes.

    Raises:
        ModelError: The model is still wrapped, or has posteriors.
        MaskError: A mask prunes an activation, or is no mask.
        FileFormatError: The file is missing, or holds no tensors in safetensors format.
        SettingError: An argument replaces a part of `ModelSpeedup`, or `dummy_input` has no tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Any,
        masks_or_file: Masks | dict[str, dict[str, Tensor | None]] | str | Path,
        map_location: Any = None,
        batch_dim: int = 0,
        batch_size: int = 8,
        customized_mask_updaters: Sequence[Any] | None = None,
        customized_replacers: Sequence[Any] | None = None,
        graph_module: GraphModule | None = None,
        garbage_collect_values: bool = True,
        logger: logging.Logger | None = None,
        *,
        extend_masks: bool = False,
    ) -> None:
        foreign = {
            "customized_mask_updaters": customized_mask_updaters,
            "customized_replacers": customized_replacers,
            "graph_module": graph_module,
        }
        for name, value in foreign.items():
            if value:
                raise SettingError(
                    f"ExactSpeedup: {name} changes NNI's own search, which is not made here; leave it out"
                )
        wrapped = [name for name, module in model.named_modules() if hasattr(module, "_nni_wrapper")]
        if wrapped:
            raise ModelError(f"{wrapped[0]} is still wrapped by NNI: call unwrap_model() of the pruner first")
        if is_variational(model):
            raise ModelError(f"{type(model).__name__} has posteriors: bake_ it first, which gives ordinary layers")
        self.bound_model = model
        self.inputs = _as_inputs(dummy_input)
        if isinstance(masks_or_file, str | Path):
            self.masks = unflatten_masks(load_tensors(Path(masks_or_file))[0])
        else:
            self.masks = parameter_masks(masks_or_file)
        self._extend_masks = extend_masks
        self._logger = logger or logging.getLogger(__name__)
        self.plan: Plan | None = None
        """The channels removed, kept and pinned, with their reasons; after `speedup_model`."""
        self.check: CheckResult | None = None
        """The largest differences between the masked and the small model; after `speedup_model`."""

    def speedup_model(self) -> nn.Module:
        """Make the model smaller, in place; a warning says where no channel can be removed.

        Returns:
            The model.

        Raises:
            MaskError: A mask fits no parameter, or would leave a layer empty.
            TraceError: The model cannot be traced.
            ShrinkError: The small model would not compute what the masked one computes.
        """
        graph = channel_graph(self.bound_model, self.inputs)
        masks = self.masks
        if self._extend_masks:
            masks = shrinking.extend_masks(self.bound_model, masks, graph)
        masked = bake_(copy_module(self.bound_model), masks)
        small, self.plan, self.check = shrink_masked(masked, graph, self.inputs)
        self._logger.info("ExactSpeedup: %d channels removed; %s", self.plan.removed, self.check)
        if not self.plan.removed:
            warnings.warn(
                "ExactSpeedup: no channel was removed. The masks leave no channel that is zero as a whole, or those "
                "that are cannot leave: print(speedup.plan)",
                SparseVDWarning,
                stacklevel=2,
            )
        # The caller and NNI hold this very object, so it becomes the small model instead of being replaced by it.
        vars(self.bound_model).clear()
        vars(self.bound_model).update(vars(small))
        return self.bound_model


def parameter_masks(masks: Any) -> Masks:
    """The masks of a pruner of NNI, without the targets that have none.

    Args:
        masks: {module name: {target name: tensor of 0 and 1, or None}}.

    Raises:
        MaskError: `masks` is no dictionary of dictionaries of tensors, or masks an activation, which a layer's weights
            alone cannot say.
    """
    if not isinstance(masks, dict):
        raise MaskError(f"masks: {{module: {{target: tensor}}}} or a path, found {type(masks).__name__}")
    parameters: Masks = {}
    for name, targets in masks.items():
        if not isinstance(targets, dict):
            raise MaskError(f"masks: {name}: {{target: tensor}}, found {type(targets).__name__}")
        for target, mask in targets.items():
            if mask is None:
                continue
            if not isinstance(mask, Tensor):
                raise MaskError(f"masks: {name}.{target}: a tensor of 0 and 1, found {type(mask).__name__}")
            if not target.startswith(("_input_", "_output_")):
                parameters.setdefault(name, {})[target] = mask.detach()
            elif not bool((mask == 1).all()):
                raise MaskError(f"masks: {name}.{target} masks an activation; only parameters can be removed exactly")
    return parameters


def save_masks(masks: Any, path: Path | str) -> None:
    """Write the masks of a pruner of NNI to a file that `ExactSpeedup` reads.

    The file is in safetensors format, and written whole or not at all.

    Args:
        masks: What `compress` or `get_masks` of a pruner returns: {module name: {target name: tensor, or None}}.
        path: The file; one that exists is replaced.

    Raises:
        MaskError: `masks` is no dictionary, or masks an activation.
    """
    save_tensors(flatten_masks(parameter_masks(masks)), Path(path))


def _as_inputs(dummy_input: Any) -> CallArguments:
    arguments = read_dummy_input(dummy_input)
    if not arguments.tensors:
        raise SettingError(f"dummy_input: tensors, found {dummy_input!r}")
    return arguments
