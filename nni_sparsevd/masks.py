"""From log alpha to masks: a decision, as data."""

import numpy as np
import torch
from torch import Tensor, nn

from .errors import MaskError, ModelError, SettingError
from .graph import ChannelGraph, ChannelGroup, Inputs, Writer, channel_graph
from .nn import (
    ChannelGate,
    Variational,
    gate_sites,
    is_variational,
    make_plain_copy,
    named_posteriors,
    output_dim,
    scaling_keys,
    spread_over_parameter,
)
from .posterior import group_log_alpha
from .settings import MaskSettings, choose_settings

Masks = dict[str, dict[str, Tensor]]
"""Masks in the format of NNI: {module name: {"weight" or "bias": tensor of 0 and 1 in the target's shape}}.

Example:
    ```python
    import nni_sparsevd as svd
    import torch
    from torch import nn

    masks: svd.Masks = {"0": {"weight": torch.eye(4)}}
    model = svd.bake_(nn.Sequential(nn.Linear(4, 4)), masks)
    assert model[0].weight.count_nonzero() == 4
    ```
"""


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
    - `structure="n:m"` keeps the `keep` most relevant of every `block` weights along the input axis.
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
            needs data), or more weights to keep than a block has.
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
    if chosen.threshold == "held_out":
        raise SettingError("compute_masks: threshold='held_out' is chosen in training; give a number here")
    if not is_variational(model):
        raise ModelError(f"{type(model).__name__} has no posterior; call sparsify_ and train it first")
    with torch.no_grad():
        return _spread_over_names(model, _decide(model, chosen, example_inputs))


def _decide(model: nn.Module, chosen: MaskSettings, example_inputs: Inputs | None) -> Masks:
    """The masks, where a parameter with several names goes by one of them."""
    if chosen.structure == "unstructured":
        return _weight_masks(model, chosen)
    if chosen.structure == "n:m":
        return _block_masks(model, chosen)
    if example_inputs is None:
        return _layer_channel_masks(model, chosen)
    return _group_channel_masks(model, channel_graph(make_plain_copy(model), example_inputs), chosen)


# What all structures share.


def _find_variational(model: nn.Module) -> dict[str, Variational]:
    """The layers with a posterior; the first of those that share one."""
    return {name: module for name, module in named_posteriors(model) if isinstance(module, Variational)}


def find_holders(model: nn.Module) -> dict[Tensor, list[str]]:
    """Find the names of every parameter of a network: several where modules share it."""
    holders: dict[Tensor, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(parameter, []).append(f"{name}.{key}".removeprefix("."))
    return holders


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


def _threshold(chosen: MaskSettings, own_threshold: float) -> float:
    """The threshold that was asked for, or else the layer's own."""
    return chosen.threshold if isinstance(chosen.threshold, float) else own_threshold


def _select_kept(
    scores: dict[str, Tensor], chosen: MaskSettings, own_thresholds: dict[str, float]
) -> dict[str, Tensor]:
    """True where the score is below the threshold, or for all but a fraction `ratio` with the highest scores."""
    if chosen.ratio is None:
        return {name: score < _threshold(chosen, own_thresholds[name]) for name, score in scores.items()}
    if chosen.scope == "layer":
        return {name: _all_but_highest(score, chosen.ratio) for name, score in scores.items()}
    if not scores:
        return {}
    together = torch.cat([score.flatten() for score in scores.values()])
    sizes = [score.numel() for score in scores.values()]
    pieces = _all_but_highest(together, chosen.ratio).split(sizes)
    return {name: piece.view_as(scores[name]) for name, piece in zip(scores, pieces, strict=True)}


def _all_but_highest(score: Tensor, ratio: float) -> Tensor:
    """False at exactly round(ratio * size) places, those of the highest scores; among equals at the later ones."""
    kept = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    order = score.flatten().argsort(stable=True)
    kept[order[: score.numel() - round(ratio * score.numel())]] = True
    return kept.view_as(score)


def _mask_outputs_(masks: Masks, model: nn.Module, name: str, kept: Tensor) -> None:
    """Mask the outputs of a layer, or scale and shift of a norm, where `kept` is False; on top of masks it has."""
    module = model.get_submodule(name)
    targets = masks.setdefault(name, {})
    for key in scaling_keys(module):
        parameter = module._parameters.get(key)
        if parameter is None:
            continue
        mask = spread_over_parameter(kept, module, key, parameter).expand_as(parameter).to(torch.float32)
        targets[key] = targets[key] * mask if key in targets else mask.clone()


# Single weights, and N of M.


def _weight_masks(model: nn.Module, chosen: MaskSettings) -> Masks:
    layers = _find_variational(model)
    scores = {name: layer.log_alpha() for name, layer in layers.items()}
    thresholds = {name: layer.threshold for name, layer in layers.items()}
    kept = _select_kept(scores, chosen, thresholds)
    masks: Masks = {name: {"weight": kept_weights.float()} for name, kept_weights in kept.items()}
    # Beside weights a ratio counts weights, and gates keep to the threshold. Of gates alone it counts the channels.
    by_threshold = chosen.model_copy(update={"ratio": None}) if layers else chosen
    gates = {_gate_key(gate): gate for _, _, gate in gate_sites(model)}
    gate_scores = {key: gate.log_alpha() for key, gate in gates.items()}
    kept_channels = _select_kept(gate_scores, by_threshold, {key: gate.threshold for key, gate in gates.items()})
    for scaled, site, gate in gate_sites(model):
        _mask_outputs_(masks, model, scaled, gate.spread(kept_channels[_gate_key(gate)], site))
    return masks


def _block_masks(model: nn.Module, chosen: MaskSettings) -> Masks:
    masks: Masks = {}
    layers = _find_variational(model)
    if not layers:
        raise ModelError(
            f"masks.structure = 'n:m' decides about weights, and {type(model).__name__} has gates alone: take "
            "posterior.granularity = 'weight' or 'both'"
        )
    for name, layer in layers.items():
        input_dim = 1 - output_dim(layer)
        masks[name] = {"weight": _keep_n_of_m(layer.log_alpha(), input_dim, chosen)}
    return masks


def _keep_n_of_m(score: Tensor, axis: int, chosen: MaskSettings) -> Tensor:
    """Keep the `keep` lowest of every `block` along an axis; a layer that is no whole number of blocks stays whole."""
    if chosen.keep > chosen.block:
        raise SettingError(f"masks.keep: {chosen.keep} of every {chosen.block} weights cannot be kept")
    if score.dim() < 2 or score.shape[axis] % chosen.block:
        return torch.ones_like(score)
    blocks = score.movedim(axis, -1).unflatten(-1, (-1, chosen.block))
    lowest = blocks.argsort(dim=-1, stable=True)[..., : chosen.keep]
    kept = torch.zeros_like(blocks).scatter_(-1, lowest, 1.0)
    return kept.flatten(-2).movedim(-1, axis).contiguous()


# Whole channels: one score per channel.


def _layer_channel_masks(model: nn.Module, chosen: MaskSettings) -> Masks:
    """Masks of output channels of each layer by itself, and of the channels of gates."""
    scores: dict[str, Tensor] = {}
    thresholds: dict[str, float] = {}
    sites = list(gate_sites(model))
    layers = _find_variational(model)
    for name, _, _ in sites:  # where there is a gate, the gate decides
        layers.pop(name, None)
    for name, layer in layers.items():
        scores[name] = _score_outputs(layer)
        thresholds[name] = layer.threshold
    for _, _, gate in sites:
        scores[_gate_key(gate)], thresholds[_gate_key(gate)] = gate.log_alpha(), gate.threshold
    masks: Masks = {}
    selected = _select_kept(scores, chosen, thresholds)
    for name in layers:
        _mask_outputs_(masks, model, name, selected[name])
    for name, site, gate in sites:
        _mask_outputs_(masks, model, name, gate.spread(selected[_gate_key(gate)], site))
    return masks


def _score_outputs(layer: Variational) -> Tensor:
    """Log alpha of all weights that write an output channel together, shape (channels,)."""
    weight, log_sigma2 = layer.weight, layer.log_sigma2.expand_as(layer.weight)
    groups = getattr(layer, "groups", 1)
    if output_dim(layer) == 1 and groups > 1:
        # A transposed convolution: the outputs of a group lie beside the inputs of that group.
        weight, log_sigma2 = weight.unflatten(0, (groups, -1)), log_sigma2.unflatten(0, (groups, -1))
        return group_log_alpha(weight, log_sigma2, [1, *range(3, weight.dim())]).flatten()
    inputs = [dim for dim in range(weight.dim()) if dim != output_dim(layer)]
    return group_log_alpha(weight, log_sigma2, inputs)


def _gate_key(gate: ChannelGate) -> str:
    """A gate among layers, which go by their names: no module's name has a number sign."""
    return f"#{id(gate)}"


def _group_channel_masks(model: nn.Module, graph: ChannelGraph, chosen: MaskSettings) -> Masks:
    """Masks of coupled channels, by the log alpha of their gate, or of all the weights that write them."""
    gates = find_group_gates(model, graph)
    scores: dict[str, Tensor] = {}
    thresholds: dict[str, float] = {}
    for group in graph.groups:
        if group.pinned:
            continue
        gate = gates.get(group.name)
        score = _group_score(model, graph, group) if gate is None else gate.log_alpha()
        if score is not None:
            scores[group.name] = score
            thresholds[group.name] = _group_threshold(model, group, gate)
    if not scores:
        raise ModelError(f"{type(model).__name__} has no channel group with a posterior that could be removed")
    kept_by_group = _select_kept(scores, chosen, thresholds)
    masks: Masks = {}
    for group in graph.groups:
        if group.name not in kept_by_group:
            continue
        kept = kept_by_group[group.name]
        if not chosen.allow_empty and not kept.any():
            kept = scores[group.name] == scores[group.name].min()  # the most relevant channel stays
        mask_group_channels_(masks, model, graph, group, group.channels[~kept.cpu().numpy()])
    return masks


def find_group_gates(model: nn.Module, graph: ChannelGraph) -> dict[str, ChannelGate]:
    """Find the gate of each channel group that has one.

    Args:
        model: A variational network.
        graph: The channel graph of its plain copy.

    Returns:
        Name of a channel group -> the gate behind its writers.
    """
    gates_at: dict[str, list[tuple[nn.Module, ChannelGate]]] = {}
    for name, site, gate in gate_sites(model):
        gates_at.setdefault(name, []).append((site, gate))
    group_gates: dict[str, ChannelGate] = {}
    for group in graph.groups:
        for writer in group.writers:
            for site, gate in gates_at.get(writer.site, ()):
                if group.name not in group_gates and _stands_on_group(graph, group, writer, gate, site):
                    group_gates[group.name] = gate
    return group_gates


def _stands_on_group(
    graph: ChannelGraph, group: ChannelGroup, writer: Writer, gate: ChannelGate, site: nn.Module
) -> bool:
    """Whether a gate scales the outputs of a writer by the positions of their channels in a group."""
    if len(gate.mu) != len(group):
        return False
    positions = graph.positions_of(graph.value_channels[writer.node][writer.channel_dim], group)
    places = gate.read_places(site)
    scaling = np.arange(len(group)) if places is None else places.cpu().numpy()
    if scaling.size != positions.size:
        return False
    return bool((positions == scaling)[scaling >= 0].all())


def _group_threshold(model: nn.Module, group: ChannelGroup, gate: ChannelGate | None) -> float:
    """The threshold of the gate of a group, or of the first variational layer in it."""
    if gate is not None:
        return gate.threshold
    modules = (model.get_submodule(name.rpartition(".")[0]) for name, _ in group.axes)
    return next(module.threshold for module in modules if isinstance(module, Variational))


def _group_score(model: nn.Module, graph: ChannelGraph, group: ChannelGroup) -> Tensor | None:
    """log(sum sigma^2 / sum theta^2) per channel over all variational weights that write it; None without any."""
    signal = torch.zeros(len(group), dtype=torch.float64)
    noise = torch.zeros(len(group), dtype=torch.float64)
    has_posterior = False
    for name, dim in group.axes:
        layer = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(layer, Variational) or not name.endswith(".weight") or dim != output_dim(layer):
            continue
        has_posterior = True
        position = torch.from_numpy(graph.positions_in_group((name, dim), group))
        inside = position >= 0
        inputs = [d for d in range(layer.weight.dim()) if d != dim]
        squares = layer.weight.detach().double().square().sum(inputs).cpu()
        variances = layer.log_sigma2.detach().double().exp().expand_as(layer.weight).sum(inputs).cpu()
        signal.index_add_(0, position[inside], squares[inside])
        noise.index_add_(0, position[inside], variances[inside])
    if not has_posterior:
        return None
    return noise.log() - (signal + torch.finfo(torch.float64).tiny).log()


def _is_table(module: nn.Module, dim: int) -> bool:
    """Whether a module writes channels along this dimension of its weight without reading any."""
    return isinstance(module, nn.Embedding) and dim == output_dim(module)


def mask_group_channels_(
    masks: Masks, model: nn.Module, graph: ChannelGraph, group: ChannelGroup, removed: np.ndarray
) -> None:
    """Mask everything that writes a removed channel or shifts it on its way, in place.

    Weights, biases, norms, position embeddings and layer scales are masked; what only reads the channel is not.

    Args:
        masks: The masks to extend; targets without a mask get one.
        model: The network.
        graph: Its channel graph.
        group: The channel group.
        removed: The channels to remove, from `group.channels`.
    """
    reading_axes = {(reader.weight, reader.input_dim) for reader in graph.readers}
    for name, dim in group.axes:
        module_name, _, key = name.rpartition(".")
        parameter = model.get_submodule(module_name)._parameters.get(key)
        # The columns of an embedding whose weight a linear layer shares are written by the one, and read by the other.
        is_read_only = (name, dim) in reading_axes and not _is_table(model.get_submodule(module_name), dim)
        if parameter is None or is_read_only:
            continue
        indices = torch.from_numpy(graph.indices_along((name, dim), removed))
        mask = masks.setdefault(module_name, {}).setdefault(key, torch.ones(parameter.shape))
        mask.index_fill_(dim, indices, 0.0)


# Masks on a network.


def apply_masks_(model: nn.Module, masks: Masks) -> None:
    """Set what masks remove to zero, in place.

    Args:
        model: The network. What is removed becomes +0.0, never -0.0, also where it was infinite.
        masks: The masks, valid for this network.
    """
    with torch.no_grad():
        for name, targets in masks.items():
            module = model.get_submodule(name)
            for key, mask in targets.items():
                parameter = module.get_parameter(key)
                parameter.masked_fill_(mask.to(parameter.device) == 0, 0.0)


def validate_masks(model: nn.Module, masks: Masks, *, allow_empty: bool = False) -> None:
    """Check that every mask names a parameter, fits it, holds only 0 and 1, and keeps something.

    Args:
        model: The network.
        masks: The masks.
        allow_empty: Accept masks that remove a whole layer.

    Raises:
        MaskError: A mask does not pass. The message names its module and parameter.
    """
    modules = dict(model.named_modules())
    for name, targets in masks.items():
        if name not in modules:
            raise MaskError(f"masks: {type(model).__name__} has no module {name!r}")
        for key, mask in targets.items():
            _validate_mask(modules[name], name, key, mask, allow_empty)


def _validate_mask(module: nn.Module, name: str, key: str, mask: Tensor, allow_empty: bool) -> None:
    parameter = module._parameters.get(key)
    if parameter is None:
        raise MaskError(f"masks: {name} ({type(module).__name__}) has no parameter {key!r}")
    if mask.shape != parameter.shape:
        raise MaskError(f"masks: {name}.{key} has the shape {tuple(parameter.shape)}, its mask {tuple(mask.shape)}")
    if not ((mask == 0) | (mask == 1)).all():
        raise MaskError(f"masks: the mask of {name}.{key} holds other values than 0 and 1")
    if key == "weight" and not allow_empty and not mask.any():
        raise MaskError(
            f"masks: the mask of {name}.weight removes the whole layer; keep some of its weights, or pass "
            "allow_empty=True for a network whose output no longer depends on its input"
        )


def count_weights(model: nn.Module, masks: Masks) -> tuple[int, int]:
    """Count weights: those of more than one dimension, without biases and norms; a shared weight counts once.

    Args:
        model: The network.
        masks: The masks; a weight without a mask is kept whole.

    Returns:
        How many weights the masks keep, and how many there are.
    """
    kept = total = 0
    seen: set[Tensor] = set()
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or weight.dim() < 2 or weight in seen:
            continue
        seen.add(weight)
        total += weight.numel()
        mask = masks.get(name, {}).get("weight")
        kept += weight.numel() if mask is None else int(mask.count_nonzero())
    return kept, total


def flatten_masks(masks: Masks) -> dict[str, Tensor]:
    """Flatten masks to the form in which they are saved: {"module.target": uint8 tensor}."""
    flat: dict[str, Tensor] = {}
    for name, targets in masks.items():
        for key, mask in targets.items():
            flat[f"{name}.{key}"] = mask.to(torch.uint8)
    return flat


def unflatten_masks(tensors: dict[str, Tensor]) -> Masks:
    """Undo `flatten_masks`."""
    masks: Masks = {}
    for path, mask in tensors.items():
        name, _, key = path.rpartition(".")
        masks.setdefault(name, {})[key] = mask.float()
    return masks
