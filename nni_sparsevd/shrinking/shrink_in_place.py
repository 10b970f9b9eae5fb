"""Shrinking a network that is still learning: what has died goes, and the optimizer's memory of it."""

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..convert import bake_
from ..errors import ShrinkError
from ..graph import Axis, Inputs, channel_graph, copy_model, named_states, remove_indices
from ..masks import compute_masks
from ..nn import ChannelGate, Variational, gate_sites, is_variational, named_posteriors, output_dim
from ..settings import MaskSettings
from .apply import apply_plan_
from .carriers import Merge
from .plan import Plan
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
    """Remove from `model`, in place, every channel that its posteriors have given up; returns the account.

    To be called now and then between steps, so that they become cheaper.  The network stays variational: weights,
    log sigma^2 and gates lose the same channels, and so do the moments that `optimizer` keeps of them; those of another
    shape than their parameter, such as Adafactor's, begin anew.  In evaluation mode its outputs stay the same; in
    training mode the noise of what went is gone.

    What went cannot come back, and of channels just above their own threshold some would have.  `threshold` is the log
    alpha, well above it, that counts here instead; what stays the same is then the outputs of a network cut there.

    Parameters are replaced by smaller ones, in the optimizer too.  Whoever else holds the old ones (an average of the
    weights, DistributedDataParallel) has to be made again.  A network without posteriors loses its plain zeros.

    Raises `ShrinkError` for a gate on several parts of one layer, `TraceError` when the network cannot be traced;
    nothing has changed then.
    """
    with _cut_at(model, threshold):
        return _shrink_(model, example_inputs, optimizer, round_to)


@contextmanager
def _cut_at(model: nn.Module, threshold: float | None) -> Iterator[None]:
    """Make all posteriors decide at this log alpha for a while."""
    posteriors = [module for _, module in named_posteriors(model)]
    own = [module.threshold for module in posteriors]
    try:
        for module in posteriors:
            module.threshold = module.threshold if threshold is None else threshold
        yield
    finally:
        for module, before in zip(posteriors, own, strict=True):
            module.threshold = before


def _shrink_(model: nn.Module, example_inputs: Inputs, optimizer: torch.optim.Optimizer | None, round_to: int) -> Plan:
    sites = list(gate_sites(model))
    for name, _, gate in sites:
        if len(gate.parts) > 1:
            raise ShrinkError(f"{name}: a gate on {len(gate.parts)} parts of one layer stays until the end of training")
    masks = compute_masks(model, MaskSettings(allow_empty=True)) if is_variational(model) else {}
    masked = bake_(copy_model(model), masks, allow_empty=True)
    small, plan, _ = shrink_masked(masked, channel_graph(masked, example_inputs), example_inputs, round_to)
    cuts = {**plan.cuts, **_of_posteriors(model, plan.cuts, sites)}
    before = dict(named_states(model))
    for (name, dim), merges in plan.merges.items():
        _clear_(model.get_submodule(name.rpartition(".")[0]), dim, merges)
    for scale, number in plan.scales:  # the mean of these rows is about to be multiplied, and log alpha has to stay
        layer = model.get_submodule(scale.weight.rpartition(".")[0])
        if isinstance(layer, Variational):
            layer.log_sigma2.data[torch.from_numpy(scale.rows)] += math.log(number / scale.dimensions.size)
    apply_plan_(model, replace(plan, cuts=cuts, folds=_before_gates(plan.folds, sites)))
    for name, _ in plan.merges:
        _keep_(model.get_submodule(name.rpartition(".")[0]), small.get_parameter(name))
    if optimizer is not None:
        _follow_(optimizer, before, dict(named_states(model)), cuts)
    return plan


def _of_posteriors(model: nn.Module, cuts: Cuts, sites: Sites) -> Cuts:
    """What log sigma^2 and gates lose, along with the weights that they belong to."""
    found: Cuts = {}
    named, modules = dict(named_states(model)), dict(model.named_modules())
    for (name, dim), indices in cuts.items():
        for owner, module in modules.items():  # several, where they share a weight
            own = isinstance(module, Variational) and module.weight is named[name]
            if own and module.log_sigma2.shape[dim] == module.weight.shape[dim]:
                found[f"{owner}.log_sigma2", dim] = indices
    names = {id(module): name for name, module in modules.items()}  # a gate on several writers has one
    for _, _, gate in sites:
        writer = gate.writers[0]
        indices = cuts.get((f"{writer}.weight", output_dim(modules[writer])), ())
        if indices:
            found[f"{names[id(gate)]}.mu", 0] = found[f"{names[id(gate)]}.log_sigma2", 0] = indices
    return found


def _before_gates(folds: dict[str, Tensor], sites: Sites) -> dict[str, Tensor]:
    """What baked biases take up, for biases that a gate still scales afterwards."""
    scaled = {f"{name}.bias": torch.where(gate.mask(), gate.mu, 1).detach().double().cpu() for name, _, gate in sites}
    return {name: added / scaled.get(name, 1.0) for name, added in folds.items()}


def _clear_(layer: nn.Module, dim: int, merges: tuple[Merge, ...]) -> None:
    """What is removed counts as 0 before anything is added to it."""
    if isinstance(layer, Variational):
        columns, kept_ones = layer.weight.data.movedim(dim, 0), layer.mask().movedim(dim, 0)
        for merge in merges:
            for column in (merge.into, merge.source):
                columns[column] *= kept_ones[column]


def _keep_(layer: nn.Module, wanted: Tensor) -> None:
    """A weight that carries for others must not count as removed."""
    if isinstance(layer, Variational):
        lost = (wanted.to(layer.weight.device) != 0) & ~layer.mask()
        below = layer.weight.detach().square().log() + (layer.threshold - 1)
        if layer.log_sigma2.shape == below.shape:
            layer.log_sigma2.data = torch.where(lost, below, layer.log_sigma2.data)
            return
        shared = [dim for dim in range(below.dim()) if dim != output_dim(layer)]
        lowest = torch.where(lost, below, math.inf).amin(shared, keepdim=True)
        layer.weight.data.masked_fill_(~layer.mask() & ~lost, 0.0)  # or they would come back with it
        layer.log_sigma2.data = layer.log_sigma2.data.minimum(lowest)


def _follow_(optimizer: torch.optim.Optimizer, before: dict[str, Tensor], after: dict[str, Tensor], cuts: Cuts) -> None:
    """Give the optimizer the new parameters in the place of the old, with what is left of its memory of them."""
    lost: dict[int, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
    for (name, dim), indices in cuts.items():
        lost[id(before[name])].append((dim, indices))
    successors = {id(old): after[name] for name, old in before.items()}
    born = {name: value for name, value in after.items() if name not in before and isinstance(value, nn.Parameter)}
    for group in optimizer.param_groups:
        # a bias that took up constants where there was none learns as its weight does
        adopted = [bias for name, bias in born.items() if _holds(group, before, f"{name.rpartition('.')[0]}.weight")]
        for old in list(group["params"]):
            memory = optimizer.state.pop(old, {})
            if memory and not (lost[id(old)] and any(_factored(value, old) for value in memory.values())):
                optimizer.state[successors.get(id(old), old)] = {
                    key: remove_indices(value, lost[id(old)])
                    if isinstance(value, Tensor) and value.shape == old.shape else value
                    for key, value in memory.items()
                }  # fmt: skip
        group["params"] = [successors.get(id(old), old) for old in group["params"]] + adopted


def _factored(value: object, parameter: Tensor) -> bool:
    """Memory of all of a parameter in a form that cannot be cut, such as Adafactor's: it begins anew."""
    return isinstance(value, Tensor) and value.numel() > 1 and value.shape != parameter.shape


def _holds(group: dict[str, list[Tensor]], named: dict[str, Tensor], name: str) -> bool:
    return any(parameter is named.get(name) for parameter in group["params"])
