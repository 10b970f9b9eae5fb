"""Shrinking a network that is still learning: dead channels are removed, and the optimizer's memory of them."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ..convert import bake_
from ..graph import (
    Axis,
    Inputs,
    channel_graph,
    copy_model,
    kept_indices,
    named_states,
    remove_indices,
    require_parameters,
    require_traceable,
)
from ..masks import compute_masks
from ..nn import ChannelGate, Variational, gate_sites, is_variational, named_posteriors, output_dim, scaling_keys
from ..settings import MaskSettings
from .apply import apply_plan_
from .plan import Plan
from .plan_fit import read_shapes
from .plan_parts import Merge
from .shrink_copy import shrink_masked

Cuts = dict[Axis, tuple[int, ...]]
Sites = list[tuple[str, nn.Module, ChannelGate]]


def shrink_(
    model: nn.Module,
    example_inputs: Inputs,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    threshold: float | None = None,
    round_to: int = 1,
) -> Plan:
    """Remove from a network, in place, every channel that its posteriors have given up, so that its steps get cheaper.

    It is called now and then between two steps of training.  The network stays variational: weights, log sigma^2 and
    gates lose the same channels, and so does the optimizer's memory of them.  In evaluation mode the outputs are what
    they were; in training mode the noise of the removed channels is missing.

    Parameters are replaced by smaller ones, in the optimizer too.  Whatever else holds the old ones (an average of the
    weights, DistributedDataParallel) has to be made again.

    Args:
        model: A variational network.  A network without posteriors loses its plain zeros.
        example_inputs: What `model` is called with; see `shrink`.
        optimizer: The optimizer of its parameters.  Memory in the shape of a parameter, as Adam's moments, loses the
            same channels; memory in another shape, as Adafactor's rows and columns, is forgotten.
        threshold: Log alpha from which on a weight or a gate counts as removed, instead of each posterior's own
            threshold.  A removed channel cannot come back, and some of those just above their own threshold would have:
            a value well above it spares them.  The outputs are then those of the network cut at this threshold.
        round_to: What is left of each group is a multiple of this number of channels, where the group had that many.

    Returns:
        The plan: what was removed, what was kept, and why.

    Raises:
        ShrinkError: The smaller network does not compute the same.
        ModelError: What `shrink` raises.
        TraceError: The network cannot be traced.
        SettingError: `round_to` is below 1.

    Nothing has changed where it raises.

    Example:
        ```python
        import torch
        from torch import nn

        import nni_sparsevd as svd

        x = torch.randn(2, 4)
        model = svd.sparsify_(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
        optimizer = torch.optim.Adam(model.parameters())
        model(x).sum().backward()
        optimizer.step()
        with torch.no_grad():
            model[2].log_sigma2[:, :3] = 9.0  # training has found that three neurons are noise to their reader
        plan = svd.shrink_(model, x, optimizer)
        assert plan.removed == 3 and model[0].weight.shape == (3, 4)
        ```
    """
    with _use_threshold(model, threshold):
        return _shrink_(model, example_inputs, optimizer, round_to)


@contextmanager
def _use_threshold(model: nn.Module, threshold: float | None) -> Iterator[None]:
    """Make all posteriors decide at this log alpha for a while; None leaves each its own."""
    posteriors = [module for module in model.modules() if isinstance(module, Variational | ChannelGate)]
    own_thresholds = [module.threshold for module in posteriors]
    try:
        if threshold is not None:
            for module in posteriors:
                module.threshold = threshold
        yield
    finally:
        for module, own in zip(posteriors, own_thresholds, strict=True):
            module.threshold = own


def _shrink_(model: nn.Module, example_inputs: Inputs, optimizer: torch.optim.Optimizer | None, round_to: int) -> Plan:
    """Plan on a baked copy, then carry the plan out on the posteriors."""
    # 1. What a posterior removes, the baked copy has as zeros.  The removal is planned, carried out and compared there,
    #    so that `model` is only touched when all went well.
    # 2. A plan for baked weights is not yet one for posteriors:
    #    a. log sigma^2 and gates have to lose the same channels;
    #    b. what counts as removed must be 0 before one channel takes over others;
    #    c. log alpha has to stay where means are multiplied;
    #    d. a bias that a gate scales afterwards absorbs a constant divided by the gate.
    # 3. After that, no weight that carries for others may count as removed.
    require_traceable(model, example_inputs)
    require_parameters(model)
    sites = list(gate_sites(model))
    masks = compute_masks(model, MaskSettings(allow_empty=True)) if is_variational(model) else {}
    masked = bake_(copy_model(model), masks, allow_empty=True)
    small, plan, _ = shrink_masked(masked, channel_graph(masked, example_inputs), example_inputs, round_to)

    before = dict(named_states(model))
    gate_cuts = _find_gate_cuts(model, plan.cuts, sites)
    cuts = {**plan.cuts, **_find_posterior_cuts(model, plan.cuts), **gate_cuts}  # 2a
    sizes_before = {gate: len(gate.mu) for _, _, gate in sites}
    for (name, dim), merges in plan.merges.items():
        _clear_removed_(_owner(model, name), dim, merges)  # 2b
    _keep_log_alpha_(model, plan)  # 2c
    folds = _divide_by_gates(plan.folds, sites)  # 2d
    apply_plan_(model, replace(plan, cuts=cuts, folds=folds, shapes=read_shapes(model)))
    _renumber_places_(model, gate_cuts, sizes_before)
    for name, _ in plan.merges:
        _keep_carriers_(_owner(model, name), small.get_parameter(name))  # 3
    if optimizer is not None:
        _follow_(optimizer, before, dict(named_states(model)), cuts)
    return plan


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _find_posterior_cuts(model: nn.Module, cuts: Cuts) -> Cuts:
    """What log sigma^2 loses, along with the weights that it belongs to."""
    tensors = dict(named_states(model))
    posteriors = dict(named_posteriors(model))  # layers that share a weight share its log sigma^2: it is cut once
    posterior_cuts: Cuts = {}
    for (name, dim), indices in cuts.items():
        for owner, module in posteriors.items():
            if not (isinstance(module, Variational) and module.weight is tensors[name]):
                continue
            # One variance for each output has size 1 along the other dimensions: nothing is cut there.
            if module.log_sigma2.shape[dim] == module.weight.shape[dim]:
                posterior_cuts[f"{owner}.log_sigma2", dim] = indices
    return posterior_cuts


def _find_gate_cuts(model: nn.Module, cuts: Cuts, sites: Sites) -> Cuts:
    """What gates lose: the channels of which no output is left, and the places of the outputs that leave."""
    names = {id(module): name for name, module in model.named_modules()}
    gate_cuts: Cuts = {}
    for scaled, site, gate in sites:
        removed = _find_removed_outputs(model.get_submodule(scaled), scaled, cuts)
        if not removed:
            continue
        gate_name, places = names[id(gate)], gate.read_places(site)
        if places is None:
            channels = removed
        else:
            gate_cuts[f"{gate_name}.{gate.places_name(site)}", 0] = removed
            left = set(places[kept_indices(len(places), removed).to(places.device)].tolist())
            channels = tuple(channel for channel in range(len(gate.mu)) if channel not in left)
        if channels:  # all sites of a gate lose the same channels
            gate_cuts[f"{gate_name}.mu", 0] = channels
            gate_cuts[f"{gate_name}.log_sigma2", 0] = channels
    return gate_cuts


def _find_removed_outputs(layer: nn.Module, name: str, cuts: Cuts) -> tuple[int, ...]:
    """The outputs that a layer or norm loses, ascending."""
    key = scaling_keys(layer)[0]
    dim = output_dim(layer) if key == "weight" else 0
    removed = cuts.get((f"{name}.{key}", dim), ())
    groups = getattr(layer, "groups", 1)
    if dim == 0 or groups == 1:
        return removed
    # The second axis of a grouped transposed convolution has the positions in a group; whole groups leave with all
    # their inputs, along the first axis.
    inputs, positions = layer.weight.shape[:2]  # type: ignore[index, union-attr]
    lost_inputs = np.isin(np.arange(inputs), cuts.get((f"{name}.{key}", 0), ())).reshape(groups, -1)
    lost_positions = np.isin(np.arange(positions), removed)
    lost = np.logical_or.outer(np.logical_and.reduce(lost_inputs, axis=1), lost_positions)
    return tuple(np.flatnonzero(lost).tolist())


def _renumber_places_(model: nn.Module, gate_cuts: Cuts, sizes_before: dict[ChannelGate, int]) -> None:
    names = {id(module): name for name, module in model.named_modules()}
    for gate, size in sizes_before.items():
        channels = gate_cuts.get((f"{names[id(gate)]}.mu", 0), ())
        if channels:
            gate.renumber_(kept_indices(size, channels))


def _keep_log_alpha_(model: nn.Module, plan: Plan) -> None:
    """The means of these rows are about to be multiplied, so their variances are multiplied by the square."""
    for scaling in plan.scales:
        layer = _owner(model, scaling.weight)
        if isinstance(layer, Variational):
            layer.log_sigma2.data[torch.tensor(scaling.rows)] += math.log(scaling.after / scaling.before)


def _divide_by_gates(folds: dict[str, Tensor], sites: Sites) -> dict[str, Tensor]:
    """What baked biases absorb, for biases that a gate still scales afterwards."""
    factors: dict[str, Tensor] = {}
    for name, site, gate in sites:
        means = torch.where(gate.mask(), gate.mean(), 1).detach().double().cpu()
        own = gate.spread(means, site)
        factors[f"{name}.bias"] = own * factors.get(f"{name}.bias", 1.0)
    return {name: added / factors.get(name, 1.0) for name, added in folds.items()}


def _clear_removed_(layer: nn.Module, dim: int, merges: tuple[Merge, ...]) -> None:
    """Set to 0 what counts as removed in the columns of a merge: the sum must not contain it."""
    if not isinstance(layer, Variational):
        return
    columns, kept = layer.weight.data.movedim(dim, 0), layer.mask().movedim(dim, 0)
    for merge in merges:
        for column in (merge.into, merge.source):
            columns[column] *= kept[column]


def _keep_carriers_(layer: nn.Module, baked: Tensor) -> None:
    """Lower log sigma^2 where a weight carries for others but would count as removed."""
    # 1. The mean of such a weight has changed, and log alpha = log sigma^2 - log mean^2 with it: it may stand above the
    #    threshold now, and the outputs would not be what they were.
    # 2. One below the threshold is low enough for the weight to be kept, and high enough for it to be removed later, if
    #    it turns out to be noise.
    # 3. Where outputs have one variance each, it has to be low enough for the smallest of these weights.  Others of the
    #    same output fall below the threshold with it, and would come back: their means are set to 0.
    if not isinstance(layer, Variational):
        return
    lost = (baked.to(layer.weight.device) != 0) & ~layer.mask()
    below = layer.weight.detach().square().log() + (layer.threshold - 1)  # 2
    if layer.log_sigma2.shape == below.shape:
        layer.log_sigma2.data = torch.where(lost, below, layer.log_sigma2.data)
        return
    shared = [dim for dim in range(below.dim()) if dim != output_dim(layer)]
    lowest = torch.where(lost, below, math.inf).amin(shared, keepdim=True)
    layer.weight.data.masked_fill_(~layer.mask() & ~lost, 0.0)  # 3
    layer.log_sigma2.data = layer.log_sigma2.data.minimum(lowest)


def _follow_(optimizer: torch.optim.Optimizer, before: dict[str, Tensor], after: dict[str, Tensor], cuts: Cuts) -> None:
    """Give the optimizer the new parameters in the place of the old, with what is left of its memory of them."""
    cuts_of: dict[int, list[tuple[int, Sequence[int]]]] = defaultdict(list)
    for (name, dim), indices in cuts.items():
        cuts_of[id(before[name])].append((dim, indices))
    successors = {id(old): after[name] for name, old in before.items()}
    for group in optimizer.param_groups:
        # Asked while the group still holds the old parameters, by which `before` knows them.
        born = _find_born_biases(group["params"], before, after)
        for old in group["params"]:
            memory = optimizer.state.pop(old, {})
            smaller = _cut_memory(memory, old, cuts_of[id(old)])
            if smaller:
                optimizer.state[successors.get(id(old), old)] = smaller
        group["params"] = [successors.get(id(old), old) for old in group["params"]] + born


def _find_born_biases(
    parameters: list[Tensor], before: dict[str, Tensor], after: dict[str, Tensor]
) -> list[nn.Parameter]:
    """Biases that absorbed constants where there was none, for layers whose weight is among these parameters."""
    # A new bias learns in the group of its layer's weight: with that learning rate and that decay.
    held = {id(parameter) for parameter in parameters}
    born = []
    for name, value in after.items():
        weight = before.get(f"{name.rpartition('.')[0]}.weight")
        if name not in before and isinstance(value, nn.Parameter) and weight is not None and id(weight) in held:
            born.append(value)
    return born


def _cut_memory(
    memory: dict[str, object], parameter: Tensor, cuts: list[tuple[int, Sequence[int]]]
) -> dict[str, object]:
    """What an optimizer remembers of a parameter, without the removed channels; empty where it has to begin anew."""
    # 1. Memory in the parameter's shape is cut as the parameter is.  Single numbers, such as counts of steps, stay.
    # 2. Memory in another shape cannot be cut.  Adafactor keeps one number for each row, a mean over all columns, and
    #    one for each column, a mean over all rows: the removed ones cannot be taken out of these means.
    # 3. Half of a memory is worse than none, as the optimizer believes to be past its first step: all is forgotten.
    if cuts and any(_is_factored(value, parameter) for value in memory.values()):
        return {}
    smaller: dict[str, object] = {}
    for key, value in memory.items():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            smaller[key] = remove_indices(value, cuts)
        else:
            smaller[key] = value
    return smaller


def _is_factored(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.numel() > 1 and value.shape != parameter.shape
