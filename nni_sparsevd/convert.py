"""`sparsify_` and `bake_`: ordinary layers learn a posterior, and become ordinary again.  A pair that undoes itself."""

from fnmatch import fnmatchcase
from typing import TypeVar

import numpy as np
from torch import nn

from .errors import ModelError, SettingError
from .graph import ChannelGraph, ChannelGroup, Inputs, channel_graph
from .masks import Masks, apply_masks_, compute_masks, validate_masks
from .nn import VARIATIONAL, ChannelGate, is_convertible, is_variational, to_plain_network_, to_variational_
from .settings import PosteriorSettings, make_settings

T = TypeVar("T")


def sparsify_(
    model: nn.Module,
    settings: PosteriorSettings | None = None,
    *,
    example_inputs: Inputs | None = None,
    **keywords: object,
) -> nn.Module:
    """Give the layers of `model` a posterior, in place; returns `model`.

    Settings come as one `PosteriorSettings` or as its keys: `sparsify_(model, estimator="weight", exclude=["head"])`.
    Weight posteriors replace linear, convolution, transposed convolution and embedding layers; parameters stay the
    same objects, so an optimizer made before still holds them.  Gates need `example_inputs`: the network is traced,
    and each coupled channel group gets one gate, after the normalisation behind each of its last writers.

    Raises `SettingError` for an unknown key or a pattern that matches nothing, `ModelError` when there is nothing to
    convert or the model is variational already.
    """
    if settings is not None and keywords:
        keys = ", ".join(keywords)
        raise SettingError(f"sparsify_: give either a PosteriorSettings or keywords, not both (found {keys})")
    chosen = make_settings(PosteriorSettings, keywords) if settings is None else settings
    if is_variational(model):
        raise ModelError(f"{type(model).__name__} is variational already; bake_ it first")
    _check_patterns(model, (*chosen.include, *chosen.exclude, *chosen.kl_weights, *chosen.estimators))
    names = [name for name, module in model.named_modules() if _selected(name, module, chosen)]
    layers = [name for name in names if is_convertible(model.get_submodule(name))]
    if not layers:
        kinds = ", ".join(sorted(kind.__name__ for kind in VARIATIONAL))
        raise ModelError(f"{type(model).__name__} has no layer to convert among those selected; known are {kinds}")
    if chosen.granularity in ("gate", "both"):
        _attach_gates(model, chosen, example_inputs, set(layers))
    if chosen.granularity in ("weight", "both"):
        for name in layers:
            layer = model.get_submodule(name)
            estimator = _last(chosen.estimators, name, layer, chosen.estimator)
            layer = to_variational_(layer, chosen.model_copy(update={"estimator": estimator}))
            layer.kl_weight = find_kl_weight(name, layer, chosen)
    return model


def _matches(pattern: str, name: str, module: nn.Module) -> bool:
    return fnmatchcase(name, pattern) or any(kind.__name__ == pattern for kind in type(module).__mro__[:-2])


def _check_patterns(model: nn.Module, patterns: tuple[str, ...]) -> None:
    modules = dict(model.named_modules())
    for pattern in patterns:
        if not any(_matches(pattern, name, module) for name, module in modules.items()):
            some = ", ".join(name for name, module in modules.items() if is_convertible(module))
            raise SettingError(f"no module of {type(model).__name__} matches {pattern!r}; its layers are: {some[:600]}")


def _selected(name: str, module: nn.Module, settings: PosteriorSettings) -> bool:
    included = not settings.include or any(_matches(pattern, name, module) for pattern in settings.include)
    return included and not any(_matches(pattern, name, module) for pattern in settings.exclude)


def find_kl_weight(name: str, module: nn.Module, settings: PosteriorSettings) -> float:
    """Factor on the KL of this module: the last entry of `kl_weights` that matches it, else 1."""
    return _last(settings.kl_weights, name, module, 1.0)


def _last(entries: dict[str, T], name: str, module: nn.Module, otherwise: T) -> T:
    """Give the last of the entries whose name, pattern or type is this module's."""
    found = [entry for pattern, entry in entries.items() if _matches(pattern, name, module)]
    return found[-1] if found else otherwise


def _attach_gates(
    model: nn.Module, settings: PosteriorSettings, example_inputs: Inputs | None, layers: set[str]
) -> None:
    if example_inputs is None:
        raise SettingError(f"granularity={settings.granularity!r} traces the network: pass example_inputs")
    groups = find_gateable_groups(channel_graph(model, example_inputs), layers)
    if not groups:
        raise ModelError(f"{type(model).__name__} has no channel group that a gate could silence")
    for group in groups:
        attach_gate_(model, settings, group)


def find_gateable_groups(graph: ChannelGraph, layers: set[str]) -> list[ChannelGroup]:
    """The groups that a gate can silence: free, written by these layers alone, each of which writes nothing else."""
    found = []
    for group in graph.groups:
        written = [writer.module in layers for writer in group.writers]
        whole = all(np.array_equal(graph.axes[writer.axis], group.channels) for writer in group.writers)
        if not group.pinned and written and all(written) and whole:
            found.append(group)
    return found


def attach_gate_(model: nn.Module, settings: PosteriorSettings, group: ChannelGroup) -> ChannelGate:
    """Put one gate behind every last writer of a group, after its normalisation; returns it."""
    like = model.get_submodule(group.writers[0].module).weight
    gate = ChannelGate(len(group), settings, device=like.device, dtype=like.dtype)  # type: ignore[arg-type]
    gate.kl_weight = find_kl_weight(group.module, model.get_submodule(group.module), settings)
    gate.writers = tuple(writer.module for writer in group.writers)
    for writer in group.writers:
        gate.attach_(_site(model.get_submodule(writer.site)), writer.channel_dim)
    return gate


def _site(module: nn.Module) -> nn.Module:
    """Where the gate hooks on.  timm's norms with an activation inside have an empty slot between the two."""
    slot = getattr(module, "drop", None)
    return slot if isinstance(slot, nn.Identity) and isinstance(getattr(module, "act", None), nn.Module) else module


def bake_(model: nn.Module, masks: Masks | None = None, *, allow_empty: bool = False) -> nn.Module:
    """Make every layer ordinary again, in place, with masks multiplied in; returns `model`.

    Without `masks` each layer and gate is cut at its own threshold, as in evaluation mode.  `masks` replace that, may
    name ordinary layers too, and what they do not name is kept whole.  Gates are folded into the normalisation or
    layer that they follow.  Works on any network: one without posteriors just gets the masks.

    Raises `MaskError` for masks that name no module or parameter, have the wrong shape, hold other values than 0 and
    1, or remove a whole layer unless `allow_empty`.
    """
    if masks is None:
        masks = compute_masks(model) if is_variational(model) else {}
    else:
        validate_masks(model, masks, allow_empty=allow_empty)
    to_plain_network_(model)
    apply_masks_(model, masks)
    return model
