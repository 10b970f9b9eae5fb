"""From log alpha to masks: a decision, as data."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache

import torch
from torch import nn

from ..errors import ModelError, SettingError
from ..graph import ChannelGraph, Inputs, channel_graph
from ..nn import is_variational, make_plain_copy
from ..settings import MaskSettings, choose_settings
from .format import Masks, find_holders
from .group_channels import mask_channels_by_group
from .layer_channels import mask_channels_by_layer
from .scores import check_evidence
from .single_weights import mask_blocks, mask_weights


def compute_masks(
    model: nn.Module,
    settings: MaskSettings | None = None,
    *,
    example_inputs: Inputs | None = None,
    **keywords: object,
) -> Masks:
    """Decide what to keep (1) and what to remove (0) of a variational network.

    By default every weight and gate whose log alpha reaches the threshold of its layer is removed, which is what the
    network computes in evaluation mode.

    - `structure="structured"` removes whole output channels. With `example_inputs` it decides over coupled channels,
      and masks everything that writes a removed channel, so that `shrink` can remove the channel; without them it
      decides layer by layer. The most relevant channel of a group stays unless `allow_empty`.
    - `structure="n:m"` keeps the `keep` most relevant of every `block` weights along the input axis. Gates keep to the
      threshold.
    - `threshold="evidence"` removes what the evidence does not need: see `posterior.evidence_gain`.
    - A `ratio` counts weights, and with `structure="structured"`, or in a network that has gates alone, channels.

    Args:
        model: A variational network; it stays as it is.
        settings: How to decide; None: the defaults.
        example_inputs: What the network is called with: a tensor, a tuple, a dict of keywords, or (args, kwargs).
        keywords: Fields of `MaskSettings`, instead of `settings`: `compute_masks(model, ratio=0.9)`.

    Returns:
        {module name: {"weight" or "bias": tensor of 0 and 1 in the shape of the parameter}}.

    Raises:
        SettingError: Both `settings` and keywords, an unknown keyword or a wrong value, `threshold="held_out"` (which
            needs data), `threshold="evidence"` with a prior that it cannot judge, more weights to keep than a block
            has, or a `ratio` beside blocks.
        ModelError: The network has no posterior, no channel group that could be removed, or, with `structure="n:m"`, no
            posterior on weights.
        TraceError: The network cannot be traced with `example_inputs`.

    Example:
        ```python
        import nni_sparsevd as svd
        import torch
        from torch import nn

        model = svd.sparsify_(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)))
        masks = svd.compute_masks(model, structure="structured", ratio=0.5, example_inputs=torch.zeros(1, 8))
        assert masks["0"]["bias"].sum() == 3
        ```
    """
    chosen = choose_settings("compute_masks", MaskSettings, settings, keywords)
    return next(compute_masks_by_each(model, [chosen], example_inputs))


def compute_masks_by_each(
    model: nn.Module, decisions: Iterable[MaskSettings], example_inputs: Inputs | None
) -> Iterator[Masks]:
    """Decide as `compute_masks` does by several settings, one after the other; the network is traced once for all.

    Args:
        model: A variational network; it stays as it is, also between two decisions.
        decisions: How to decide.
        example_inputs: What the network is called with; None: it is not traced.

    Yields:
        The masks by each of the settings.

    Raises:
        SettingError: As `compute_masks`.
        ModelError: As `compute_masks`.
        TraceError: As `compute_masks`.
    """

    @cache
    def trace(remember_norms: bool) -> ChannelGraph | None:
        if example_inputs is None:
            return None
        return channel_graph(make_plain_copy(model), example_inputs, remember_norms=remember_norms)

    for chosen in decisions:
        _check(model, chosen)
        with torch.no_grad():
            masks = _spread_over_names(model, _decide(model, chosen, trace))
        yield masks


def _check(model: nn.Module, chosen: MaskSettings) -> None:
    if chosen.threshold == "held_out":
        raise SettingError("compute_masks: threshold='held_out' is chosen in training; give a number here")
    if not is_variational(model):
        raise ModelError(f"{type(model).__name__} has no posterior; call sparsify_ and train it first")
    if chosen.threshold == "evidence":
        check_evidence(model)


def _decide(model: nn.Module, chosen: MaskSettings, trace: Callable[[bool], ChannelGraph | None]) -> Masks:
    """The masks, where a parameter with several names goes by one of them."""
    if chosen.structure == "unstructured":
        return mask_weights(model, chosen)
    if chosen.structure == "n:m":
        return mask_blocks(model, chosen)
    graph = trace(chosen.remember_norms)
    return mask_channels_by_layer(model, chosen) if graph is None else mask_channels_by_group(model, graph, chosen)


def _spread_over_names(model: nn.Module, masks: Masks) -> Masks:
    """Give each name of a parameter what the masks remove of it under any of its names."""
    for names in find_holders(model).values():
        places = [(name.rpartition(".")[0], name.rpartition(".")[2]) for name in names]
        own_masks = [masks[module][key] for module, key in places if key in masks.get(module, {})]
        if len(places) == 1 or not own_masks:
            continue
        together = torch.stack(own_masks).amin(0)
        for module, key in places:
            masks.setdefault(module, {})[key] = together.clone()
    return masks
