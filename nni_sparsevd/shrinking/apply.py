"""Carry out a plan: cut tensors, fold constants, keep every module's class and bring its attributes up to date."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ShrinkError
from ..graph import (
    bind_attentions_,
    copy_model,
    cut_,
    free_attentions_,
    kept_indices,
    list_modules,
    named_states,
)
from .layer_norm import RememberingLayerNorm
from .padded_norm import pad_norm_
from .plan import NormMemory, Plan
from .plan_fit import refuse_misfit
from .plan_parts import Merge, QueryScaling

SIZES_OF_HEADS = ("num_features", "head_hidden_size", "in_features", "embed_dim")
"""Attributes from which timm builds a new classifier."""
SCALES = ("scale", "scaling", "scale_factor", "scaling_factor", "softmax_scale", "q_scale")
"""Attributes in which a module may hold the scale of its attention, for another path through its code."""


def apply_plan_(model: nn.Module, plan: Plan) -> nn.Module:
    """Make a network smaller in place, as a plan says.

    Args:
        model: The masked network that the plan was made for, or a fresh copy of it, in this process or another one.
            Its tensors are compared by name and shape.  That its weights have their zeros where the plan was made
            cannot be seen from the plan: `check` compares the outputs.
        plan: The result of `make_plan`, `shrink` or `Plan.load`.

    Returns:
        `model`, bit for bit what `shrink` would have returned for it.

    Raises:
        ShrinkError: The plan was made for another network; the message names the tensor.  Nothing is changed then.
    """
    freed = free_attentions_(model, _find_changed_attentions(model, plan))
    try:
        refuse_misfit(model, plan)
    except ShrinkError:
        bind_attentions_(freed)
        raise
    # The order matters: constants are folded and merged while all columns are still there, then everything is cut.
    # timm's sizes of heads are recognized by their value before the cut, and set after it.
    states = dict(named_states(model))
    for bias, added in plan.folds.items():
        _fold_(model, states.get(bias), bias, added, plan)
    for (weight, dim), merges in plan.merges.items():
        _merge_(states[weight], dim, merges)
    for scaling in plan.scales:
        _rescale_(model, states, scaling)
    for name, memory in plan.norms.items():
        _remember_(model, name, memory)
    sized_after = _find_head_sizes(model)
    cut_(model, plan.cuts, {(change.module, change.attribute, change.position): change.after for change in plan.sizes})
    for owner, attribute, layer in sized_after:
        setattr(owner, attribute, layer.weight.shape[1])
    return model


def apply_plan(model: nn.Module, plan: Plan) -> nn.Module:
    """Make a smaller copy of a network, as a plan says.

    Args:
        model: The masked network that the plan was made for; it is left as it is.
        plan: The result of `make_plan`, `shrink` or `Plan.load`.

    Returns:
        What `apply_plan_` makes of a deep copy.

    Raises:
        ShrinkError: The plan was made for another network; the message names the tensor.
        ModelError: The network holds something that cannot be copied.
    """
    # What is cut is a new tensor in any case, and most of a network may be cut: so the copy shares the memory of the
    # parameters at first, and only what is left of that afterwards is copied.
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter:
            memo[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    shared = {id(value) for value in memo.values()}
    for buffer in model.buffers():  # `clone` is several times as fast as `copy.deepcopy`
        if type(buffer) is Tensor and not buffer.requires_grad:
            memo[id(buffer)] = buffer.clone()
    small = apply_plan_(copy_model(model, memo), plan)
    for parameter in small.parameters():
        if id(parameter) in shared:
            parameter.data = parameter.detach().clone()
    return small


def _find_changed_attentions(model: nn.Module, plan: Plan) -> set[str]:
    """PyTorch's attentions that lose rows, columns or heads, and so need another form."""
    changed = {change.module for change in plan.sizes} | {name.rpartition(".")[0] for name, _ in plan.cuts}
    attentions = set()
    for name, module in list_modules(model):
        if isinstance(module, nn.MultiheadAttention) and {name, f"{name}.out_proj".lstrip(".")} & changed:
            attentions.add(name)
    return attentions


def _fold_(model: nn.Module, bias: Tensor | None, name: str, added: Tensor, plan: Plan) -> None:
    """Add what the removed inputs brought; a layer without a bias gets one."""
    if bias is not None:
        bias.data = (bias.data.double() + added.to(bias.device)).to(bias.dtype)
        return
    # The plan's cuts do not know a bias that is not there yet, so it is born at its final size.
    owner = name.rpartition(".")[0]
    layer: Any = model.get_submodule(owner)
    weight = layer.get_parameter("weight")
    added = added[kept_indices(len(added), plan.cuts.get((f"{owner}.weight", 0), ()))]
    layer.bias = nn.Parameter(added.to(weight), requires_grad=weight.requires_grad)


def _merge_(weight: Tensor, dim: int, merges: tuple[Merge, ...]) -> None:
    # In float64, as a weight that takes over several is rounded once; a copy, as the memory may be that of another
    # network.
    columns = weight.data.to(torch.float64, copy=True).movedim(dim, 0)
    for merge in merges:
        columns[merge.into] += merge.factor * columns[merge.source]
    weight.data = columns.movedim(0, dim).to(weight.dtype).contiguous()


def _rescale_(model: nn.Module, states: dict[str, Tensor], scaling: QueryScaling) -> None:
    """Make the queries smaller, as the attention will divide by the root of fewer dimensions.

    A module may hold that scale as an attribute: it is recognized by its name and value.
    """
    rows = torch.tensor(scaling.rows)
    for name in (scaling.weight, scaling.bias):
        if name is not None:
            values = states[name].data.to(torch.float64, copy=True)
            values[rows] *= (scaling.after / scaling.before) ** 0.5
            states[name].data = values.to(states[name].dtype)
    attention = model.get_submodule(scaling.module)
    for name in SCALES:
        if vars(attention).get(name) == scaling.before**-0.5:
            setattr(attention, name, scaling.after**-0.5)


def _remember_(model: nn.Module, name: str, memory: NormMemory) -> None:
    norm = model.get_submodule(name)
    if memory.indices is not None:
        pad_norm_(norm, memory.channel_dim, memory.channels, memory.indices, memory.removed)
        return
    assert isinstance(norm, nn.LayerNorm)
    model.set_submodule(name, RememberingLayerNorm(norm, memory.channel_dim, memory.removed))


def _find_head_sizes(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Sizes that timm builds a new classifier from: (owner of the attribute, its name, the layer whose input it is)."""
    layers = _find_heads(model)
    sizes = []
    for owner in (model, getattr(model, "head", None)):
        if not isinstance(owner, nn.Module) or owner in layers:
            continue
        for name in SIZES_OF_HEADS:
            size = vars(owner).get(name)
            for layer in layers:
                if size == layer.weight.shape[1]:
                    sizes.append((owner, name, layer))
                    break
    return sizes


def _find_heads(model: nn.Module) -> list[Any]:
    """The layers that read timm's features: the classifier, and what some networks have before it."""
    get_classifier = getattr(model, "get_classifier", None)
    layers = (get_classifier() if callable(get_classifier) else None, getattr(model, "conv_head", None))
    return [layer for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]
