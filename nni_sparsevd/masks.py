"""From log alpha to masks: a decision, as data."""

import numpy as np
import torch
from torch import Tensor, nn

from .errors import MaskError, ModelError, SettingError
from .graph import ChannelGraph, ChannelGroup, Inputs, channel_graph
from .nn import ChannelGate, Variational, gate_sites, is_variational, make_plain_copy, output_dim
from .posterior import group_log_alpha
from .settings import MaskSettings, make_settings

Masks = dict[str, dict[str, Tensor]]
"""NNI's format: {module name: {"weight" or "bias": tensor of 0 and 1 in the target's shape}}."""


def compute_masks(
    model: nn.Module,
    settings: MaskSettings | None = None,
    *,
    example_inputs: Inputs | None = None,
    **keywords: object,
) -> Masks:
    """What to keep (1) and what to remove (0) of a variational network.

    Without settings: every weight and gate whose log alpha reaches its layer's threshold goes, which is what the
    network computes in evaluation mode.  `structure="structured"` decides on whole output channels: over coupled groups
    when `example_inputs` are given (then nothing else of a removed channel is left, so `shrink` can take it out), layer
    by layer otherwise; the most relevant channel of a group stays unless `allow_empty`.  `structure="n:m"` keeps the
    `keep` most relevant of every `block` weights along the input axis.

    Raises `ModelError` for a network without posteriors, `SettingError` for settings that do not go together.
    """
    if settings is not None and keywords:
        keys = ", ".join(keywords)
        raise SettingError(f"compute_masks: give either a MaskSettings or keywords, not both (found {keys})")
    chosen = make_settings(MaskSettings, keywords) if settings is None else settings
    if chosen.threshold == "held_out":
        raise SettingError("compute_masks: threshold='held_out' is chosen in training; give a number here")
    if not is_variational(model):
        raise ModelError(f"{type(model).__name__} has no posterior; call sparsify_ and train it first")
    with torch.no_grad():
        if chosen.structure == "structured":
            if example_inputs is None:
                return _layer_masks(model, chosen)
            return _group_masks(model, channel_graph(make_plain_copy(model), example_inputs), chosen)
        layers = {name: m for name, m in model.named_modules() if isinstance(m, Variational)}
        scores = {name: layer.log_alpha() for name, layer in layers.items()}
        if chosen.structure == "n:m":
            axes = {name: 1 - output_dim(layer) for name, layer in layers.items()}
            return {name: {"weight": _n_of_m(score, axes[name], chosen)} for name, score in scores.items()}
        kept = _cut(scores, chosen, {name: layer.threshold for name, layer in layers.items()})
        masks: Masks = {name: {"weight": keep.float()} for name, keep in kept.items()}
        for scaled, _, gate in gate_sites(model):
            _silence(masks, model, scaled, gate.repeat_over_parts(_gate_cut(gate, chosen)))
        return masks


def _cut(scores: dict[str, Tensor], chosen: MaskSettings, own: dict[str, float]) -> dict[str, Tensor]:
    """Keep (True) what scores below the threshold, or all but a fraction `ratio` of the highest scores."""
    if chosen.ratio is None:
        return {name: score < _limit(chosen, own[name]) for name, score in scores.items()}
    if chosen.scope == "layer":
        return {name: _all_but_highest(score, chosen.ratio) for name, score in scores.items()}
    together = torch.cat([score.flatten() for score in scores.values()])
    pieces = _all_but_highest(together, chosen.ratio).split([score.numel() for score in scores.values()])
    return {name: piece.view_as(scores[name]) for name, piece in zip(scores, pieces, strict=True)}


def _all_but_highest(score: Tensor, ratio: float) -> Tensor:
    """Exactly round(ratio * size) False, at the highest scores; ties fall to the later index."""
    kept = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    order = score.flatten().argsort(stable=True)
    kept[order[: score.numel() - round(ratio * score.numel())]] = True
    return kept.view_as(score)


def _gate_cut(gate: ChannelGate, chosen: MaskSettings) -> Tensor:
    """A ratio speaks of weights, so gates keep to the threshold."""
    return gate.log_alpha() < _limit(chosen, gate.threshold)


def _limit(chosen: MaskSettings, own: float) -> float:
    """The threshold asked for, or else a layer's own."""
    return chosen.threshold if isinstance(chosen.threshold, float) else own


def _n_of_m(score: Tensor, axis: int, chosen: MaskSettings) -> Tensor:
    """Keep the `keep` lowest of every `block` along the input axis; a layer whose inputs do not divide stays whole."""
    if chosen.keep > chosen.block:
        raise SettingError(f"masks.keep: {chosen.keep} of every {chosen.block} weights cannot be kept")
    if score.dim() < 2 or score.shape[axis] % chosen.block:
        return torch.ones_like(score)
    blocks = score.movedim(axis, -1).unflatten(-1, (-1, chosen.block))
    kept = torch.zeros_like(blocks).scatter_(-1, blocks.argsort(dim=-1, stable=True)[..., : chosen.keep], 1.0)
    return kept.flatten(-2).movedim(-1, axis).contiguous()


def _silence(masks: Masks, model: nn.Module, name: str, kept: Tensor) -> None:
    """Zero the outputs of a layer, or scale and shift of a norm, where `kept` is False."""
    module = model.get_submodule(name)
    targets = masks.setdefault(name, {})
    for key in ("weight", "bias"):
        parameter = module._parameters.get(key)
        if parameter is None:
            continue
        shape = [1] * parameter.dim()
        shape[output_dim(module) if key == "weight" else 0] = -1
        mask = kept.view(shape).expand_as(parameter).to(torch.float32)
        targets[key] = targets[key] * mask if key in targets else mask.clone()


# Structured: one score a channel.


def _layer_masks(model: nn.Module, chosen: MaskSettings) -> Masks:
    """Output channels of each layer by itself, and gates."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Variational)}
    scores = {name: _row_log_alpha(layer) for name, layer in layers.items()}
    own = {name: layer.threshold for name, layer in layers.items()}
    gates = {name: gate for name, _, gate in gate_sites(model)}
    for name, gate in gates.items():
        scores[name], own[name] = gate.log_alpha(), gate.threshold
    masks: Masks = {}
    for name, kept in _cut(scores, chosen, own).items():
        _silence(masks, model, name, gates[name].repeat_over_parts(kept) if name in gates else kept)
    return masks


def find_group_gates(model: nn.Module, graph: ChannelGraph) -> dict[str, ChannelGate]:
    """Name of a channel group -> the gate behind its writers, where it has one; `graph` is that of the plain copy."""
    gates = {writer: gate for _, _, gate in gate_sites(model) for writer in gate.writers}
    found = {group.name: [gates[w.module] for w in group.writers if w.module in gates] for group in graph.groups}
    return {name: behind[0] for name, behind in found.items() if behind}


def _group_masks(model: nn.Module, graph: ChannelGraph, chosen: MaskSettings) -> Masks:
    """Coupled channels by the log alpha of their gate, or of all the weights that write them."""
    gates, scores, own = find_group_gates(model, graph), {}, {}
    for group in graph.groups:
        gate = gates.get(group.name)
        score = _group_score(model, graph, group) if gate is None else gate.log_alpha()
        if not group.pinned and score is not None:
            scores[group.name] = score
            modules = [model.get_submodule(name.rpartition(".")[0]) for name, _ in group.axes]
            own[group.name] = next(m.threshold for m in [gate, *modules] if isinstance(m, ChannelGate | Variational))
    if not scores:
        raise ModelError(f"{type(model).__name__} has no channel group with a posterior that could be removed")
    kept = {name: keep if chosen.allow_empty else _never_empty(keep, scores[name])
            for name, keep in _cut(scores, chosen, own).items()}  # fmt: skip
    masks: Masks = {}
    for group in graph.groups:
        if group.name in kept and not group.pinned:
            mask_group_channels_(masks, model, graph, group, group.channels[~kept[group.name].cpu().numpy()])
    return masks


def _never_empty(kept: Tensor, score: Tensor) -> Tensor:
    """The most relevant channel of a group stays."""
    return kept if kept.any() else score == score.min()


def _row_log_alpha(layer: Variational) -> Tensor:
    dims = [dim for dim in range(layer.weight.dim()) if dim != output_dim(layer)]
    return group_log_alpha(layer.weight, layer.log_sigma2, dims)


def _group_score(model: nn.Module, graph: ChannelGraph, group: ChannelGroup) -> Tensor | None:
    """log(sum sigma^2 / sum theta^2) over every variational weight that writes into the group, per channel."""
    mean = variance = None
    for name, dim in group.axes:
        module = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(module, Variational) or not name.endswith(".weight") or dim != output_dim(module):
            continue
        position = torch.from_numpy(graph.positions_in_group((name, dim), group))
        inside = position >= 0
        others = [d for d in range(module.weight.dim()) if d != dim]
        squares = module.weight.detach().double().square().sum(others).cpu()
        noise = module.log_sigma2.detach().double().exp().expand_as(module.weight).sum(others).cpu()
        size = len(group)
        mean = torch.zeros(size, dtype=torch.float64) if mean is None else mean
        variance = torch.zeros(size, dtype=torch.float64) if variance is None else variance
        mean.index_add_(0, position[inside], squares[inside])
        variance.index_add_(0, position[inside], noise[inside])
    if mean is None or variance is None:
        return None
    return variance.log() - (mean + torch.finfo(torch.float64).tiny).log()


def mask_group_channels_(
    masks: Masks, model: nn.Module, graph: ChannelGraph, group: ChannelGroup, removed: np.ndarray
) -> None:
    """Everything that writes a removed channel, or shifts it on its way: weights, biases, norms, positions, scales."""
    read = {(reader.weight, reader.input_dim) for reader in graph.readers}
    for name, dim in group.axes:
        module = model.get_submodule(name.rpartition(".")[0])
        key = name.rpartition(".")[2]
        parameter = module._parameters.get(key)
        if parameter is None or (name, dim) in read:
            continue
        indices = torch.from_numpy(graph.indices_along((name, dim), removed))
        mask = masks.setdefault(name.rpartition(".")[0], {}).setdefault(key, torch.ones(parameter.shape))
        mask.index_fill_(dim, indices, 0.0)


# Masks on a network.


def apply_masks_(model: nn.Module, masks: Masks) -> None:
    """Zero what `masks` remove, in place; a masked weight is +0.0, never -0.0."""
    with torch.no_grad():
        for name, targets in masks.items():
            module = model.get_submodule(name)
            for key, mask in targets.items():
                parameter = module.get_parameter(key)
                parameter.masked_fill_(mask.to(parameter.device) == 0, 0.0)


def validate_masks(model: nn.Module, masks: Masks, *, allow_empty: bool = False) -> None:
    """Raise `MaskError` unless every mask names a parameter, fits it, holds 0 and 1 only and leaves something."""
    modules = dict(model.named_modules())
    for name, targets in masks.items():
        if name not in modules:
            raise MaskError(f"masks: {type(model).__name__} has no module {name!r}")
        for key, mask in targets.items():
            parameter = modules[name]._parameters.get(key)
            if parameter is None:
                raise MaskError(f"masks: {name} ({type(modules[name]).__name__}) has no parameter {key!r}")
            if mask.shape != parameter.shape:
                raise MaskError(
                    f"masks: {name}.{key} has the shape {tuple(parameter.shape)}, its mask {tuple(mask.shape)}"
                )
            if not ((mask == 0) | (mask == 1)).all():
                raise MaskError(f"masks: the mask of {name}.{key} holds other values than 0 and 1")
            if key == "weight" and not allow_empty and not mask.any():
                raise MaskError(
                    f"masks: the mask of {name}.weight removes the whole layer; keep something of it, or pass "
                    "allow_empty=True for a network whose output no longer depends on its input"
                )


def count_weights(model: nn.Module, masks: Masks) -> tuple[int, int]:
    """(weights that `masks` keep, weights in all), over all weights of more than one dimension."""
    kept = total = 0
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() > 1:
            total += weight.numel()
            mask = masks.get(name, {}).get("weight")
            kept += weight.numel() if mask is None else int(mask.count_nonzero())
    return kept, total


def flatten_masks(masks: Masks) -> dict[str, Tensor]:
    """Masks as they are saved: {"module.target": uint8 tensor}."""
    return {f"{name}.{key}": mask.to(torch.uint8) for name, targets in masks.items() for key, mask in targets.items()}


def unflatten_masks(tensors: dict[str, Tensor]) -> Masks:
    """The inverse of `flatten`."""
    masks: Masks = {}
    for path, mask in tensors.items():
        name, _, key = path.rpartition(".")
        masks.setdefault(name, {})[key] = mask.float()
    return masks
