"""`ExactSpeedup`: the arguments of `ModelSpeedup`, the masks of any pruner, and the same function afterwards."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from ...convert import bake_
from ...errors import MaskError, ModelError, SettingError
from ...files import load_tensors, save_tensors
from ...graph import Inputs, channel_graph
from ...masks import Masks, flatten_masks, unflatten_masks
from ...shrinking import CheckResult, Plan, extend_masks, shrink_masked


class ExactSpeedup:
    """Replaces NNI's `ModelSpeedup`: the masked model becomes smaller and computes what it computed.

    A masked channel seldom is silent: its normalisation still shifts it.  `ModelSpeedup` drops what it carries; here it
    is folded into the layers that read it, and a channel that cannot go exactly stays, with the reason in the plan.

    The arguments are those of `ModelSpeedup`.  Those that steer its search (`batch_dim`, `batch_size`,
    `garbage_collect_values`) have no meaning here; those that replace parts of it are refused.

    `model` is the unwrapped model (`pruner.unwrap_model()`) and is changed in place.  `dummy_input` is a tensor, or a
    tuple, list or dictionary of the tensors that it takes.  `masks_or_file` are the masks of any pruner of NNI, or the
    path of a file of `save_masks`; a pickled file is never read.

    With `silence`, what still shifts a channel that no weight writes any more, such as a norm, is zeroed first.  Then
    as many channels go as with `ModelSpeedup`, and the small model computes what the masked one with silent ones does.

    Raises `ModelError` if the model is still wrapped, `MaskError` for masks that prune activations.
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
        silence: bool = False,
    ) -> None:
        foreign = {"customized_mask_updaters": customized_mask_updaters, "customized_replacers": customized_replacers}
        for name, value in (*foreign.items(), ("graph_module", graph_module)):
            if value:
                raise SettingError(
                    f"ExactSpeedup: {name} changes NNI's own search, which is not made here; leave it out"
                )
        wrapped = [name for name, module in model.named_modules() if hasattr(module, "_nni_wrapper")]
        if wrapped:
            raise ModelError(f"{wrapped[0]} is still wrapped by NNI: call unwrap_model() of the pruner first")
        self.bound_model = model
        self.inputs = _as_inputs(dummy_input)
        self.masks = _read(masks_or_file) if isinstance(masks_or_file, str | Path) else parameter_masks(masks_or_file)
        self._silence = silence
        self._logger = logger or logging.getLogger(__name__)
        self.plan: Plan | None = None
        """What went, what stayed and why; after `speedup_model`."""
        self.check: CheckResult | None = None
        """The largest differences between the masked and the small model; after `speedup_model`."""

    def speedup_model(self) -> nn.Module:
        """Make the model smaller, in place; returns it.

        Raises `MaskError` for masks that fit no parameter or would leave a layer empty, `TraceError` when the model
        cannot be traced, `ShrinkError` rather than change what it computes.
        """
        graph = channel_graph(self.bound_model, self.inputs)
        masks = extend_masks(self.bound_model, self.masks, graph) if self._silence else self.masks
        masked = bake_(copy.deepcopy(self.bound_model), masks)
        small, self.plan, self.check = shrink_masked(masked, graph, self.inputs)
        self._logger.info("ExactSpeedup: %d channels removed; %s", self.plan.removed, self.check)
        vars(self.bound_model).clear()
        vars(self.bound_model).update(vars(small))
        return self.bound_model


def parameter_masks(masks: Any) -> Masks:
    """Masks of a pruner of NNI, without the targets that have none.

    Raises `MaskError` where an activation is masked: a layer's weights alone cannot say that.
    """
    if not isinstance(masks, dict):
        raise MaskError(f"masks: {{module: {{target: tensor}}}} or a path, found {type(masks).__name__}")
    found: Masks = {}
    for name, targets in masks.items():
        for target, mask in targets.items():
            if mask is None:
                continue
            if not target.startswith(("_input_", "_output_")):
                found.setdefault(name, {})[target] = mask.detach()
            elif not bool((mask == 1).all()):
                raise MaskError(f"masks: {name}.{target} masks an activation; only parameters can be removed exactly")
    return found


def save_masks(masks: Any, path: Path | str) -> None:
    """Write the masks of a pruner of NNI as safetensors, whole or not at all; `ExactSpeedup` reads them."""
    save_tensors(flatten_masks(parameter_masks(masks)), Path(path))


def _read(path: str | Path) -> Masks:
    return unflatten_masks(load_tensors(Path(path))[0])


def _as_inputs(dummy_input: Any) -> Inputs:
    values = tuple(dummy_input.values()) if isinstance(dummy_input, dict) else dummy_input
    values = tuple(values) if isinstance(values, list | tuple) else (values,)
    if not values or not all(isinstance(value, Tensor) for value in values):
        raise SettingError(f"dummy_input: tensors, found {[type(value).__name__ for value in values]}")
    return values
