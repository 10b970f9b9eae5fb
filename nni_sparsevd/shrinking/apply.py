"""Carry out a plan: cut tensors, fold constants, keep every module's class and bring its attributes up to date."""

from typing import Any

import torch
from torch import Tensor, nn

from ..graph import AttentionScale, cut_, kept_indices, named_states
from .carriers import Merge
from .layer_norm import RememberingLayerNorm
from .plan import Plan


def apply_plan_(model: nn.Module, plan: Plan) -> nn.Module:
    """Fold, merge and cut in place; `model` is the network that the plan was made for.  Returns it."""
    named = dict(named_states(model))
    for bias, added in plan.folds.items():
        if added.any():
            _fold(model, named.get(bias), bias, added, plan)
    for (weight, dim), merges in plan.merges.items():
        _merge(named[weight], dim, merges)
    for scale, number in plan.scales:
        _rescale(model, named, scale, number)
    for name, (channel_dim, removed) in plan.norms.items():
        owner, _, key = name.rpartition(".")
        remembering = RememberingLayerNorm(model.get_submodule(name), channel_dim, removed)  # type: ignore[arg-type]
        setattr(model.get_submodule(owner), key, remembering)
    sizes = _head_sizes(model)
    cut_(model, plan.cuts, plan.sizes)
    for holder, attribute, reader in sizes:
        setattr(holder, attribute, reader.weight.shape[1])
    return model


def _fold(model: nn.Module, bias: Tensor | None, name: str, added: Tensor, plan: Plan) -> None:
    if bias is not None:
        bias.data = (bias.data.double() + added.to(bias.device)).to(bias.dtype)
        return
    owner = name.rpartition(".")[0]  # unknown to the plan's cuts, so born at its final size
    module: Any = model.get_submodule(owner)
    weight = module.get_parameter("weight")
    added = added[kept_indices(len(added), plan.cuts.get((f"{owner}.weight", 0), ()))]
    module.bias = nn.Parameter(added.to(weight), requires_grad=weight.requires_grad)


def _merge(weight: Tensor, dim: int, merges: tuple[Merge, ...]) -> None:
    columns = weight.data.double().movedim(dim, 0)
    for merge in merges:
        columns[merge.into] += merge.factor * columns[merge.source]
    weight.data = columns.movedim(0, dim).to(weight.dtype).contiguous()


def _rescale(model: nn.Module, named: dict[str, Tensor], scale: AttentionScale, number: int) -> None:
    """Multiply the queries by what the attention will divide too much, and tell the module that remembers its scale."""
    before = scale.dimensions.size
    for name in (scale.weight, scale.bias):
        if name is not None:
            rows = named[name].data.double()
            rows[torch.from_numpy(scale.rows)] *= (number / before) ** 0.5
            named[name].data = rows.to(named[name].dtype)
    owner = model.get_submodule(scale.module)
    for key, value in vars(owner).items():
        if isinstance(value, float) and value == before**-0.5:
            setattr(owner, key, number**-0.5)


def _head_sizes(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Sizes that timm builds a new classifier from: (who remembers it, under which name, whose input it is)."""
    find = getattr(model, "get_classifier", None)
    layers = (find() if callable(find) else None, getattr(model, "conv_head", None))
    readers: list[Any] = [layer for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]
    found = []
    for owner in (model, getattr(model, "head", None)):
        for name in ("num_features", "head_hidden_size", "in_features", "embed_dim"):
            size = vars(owner).get(name) if isinstance(owner, nn.Module) and owner not in readers else None
            same = [reader for reader in readers if size == reader.weight.shape[1]]
            found += [(owner, name, reader) for reader in same[:1]]
    return found  # type: ignore[return-value]
