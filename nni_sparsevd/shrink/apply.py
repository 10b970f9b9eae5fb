"""Carry out a plan: cut tensors, fold constants, keep every module's class and bring its attributes up to date."""

from typing import Any

import torch
from torch import Tensor, nn

from .carriers import Merge
from .plan import Plan


def apply_plan_(model: nn.Module, plan: Plan) -> nn.Module:
    """Fold, merge and cut in place; `model` is the network that the plan was made for.  Returns it."""
    for bias, added in plan.folds.items():
        if added.any():
            _fold(model, bias, added, plan)
    for (weight, dim), merges in plan.merges.items():
        _merge(model, weight, dim, merges)
    sizes = _head_sizes(model)
    touched: set[str] = set()
    for (name, dim), indices in plan.cuts.items():
        touched |= _cut(model, name, dim, indices)
    for module in sorted(touched):
        refresh_attributes_(model.get_submodule(module))
    for owner, attribute, reader in sizes:
        setattr(owner, attribute, reader.weight.shape[1])
    return model


def _fold(model: nn.Module, name: str, added: Tensor, plan: Plan) -> None:
    bias = dict(_states(model, remove_duplicate=False)).get(name)
    if bias is not None:
        bias.data = (bias.data.double() + added.to(bias.device)).to(bias.dtype)
        return
    owner = name.rpartition(".")[0]  # unknown to the plan's cuts, so born at its final size
    module: Any = model.get_submodule(owner)
    weight = module.get_parameter("weight")
    added = added[_kept(len(added), plan.cuts.get((f"{owner}.weight", 0), ()))]
    module.bias = nn.Parameter(added.to(weight), requires_grad=weight.requires_grad)


def _merge(model: nn.Module, name: str, dim: int, merges: tuple[Merge, ...]) -> None:
    weight = dict(_states(model, remove_duplicate=False))[name]
    columns = weight.data.double().movedim(dim, 0)
    for merge in merges:
        columns[merge.into] += merge.factor * columns[merge.source]
    weight.data = columns.movedim(0, dim).to(weight.dtype).contiguous()


def _kept(size: int, cut: tuple[int, ...]) -> Tensor:
    return torch.tensor(sorted(set(range(size)) - set(cut)), dtype=torch.long)


def _cut(model: nn.Module, name: str, dim: int, indices: tuple[int, ...]) -> set[str]:
    """Remove `indices` of `dim` from a parameter or buffer under each of its names; returns the modules touched."""
    tensor = dict(_states(model, remove_duplicate=False))[name]
    kept = _kept(tensor.shape[dim], indices).to(tensor.device)
    smaller: Tensor = tensor.detach().index_select(dim, kept).contiguous()
    if isinstance(tensor, nn.Parameter):
        smaller = nn.Parameter(smaller, requires_grad=tensor.requires_grad)
    aliases = [alias for alias, other in _states(model, remove_duplicate=False) if other is tensor]
    for alias in aliases:
        module, _, key = alias.rpartition(".")
        setattr(model.get_submodule(module), key, smaller)
    return {alias.rpartition(".")[0] for alias in aliases}


def _states(model: nn.Module, remove_duplicate: bool) -> list[tuple[str, Tensor]]:
    return [
        *model.named_parameters(remove_duplicate=remove_duplicate),
        *model.named_buffers(remove_duplicate=remove_duplicate),
    ]


def refresh_attributes_(module: nn.Module) -> None:
    """Make the sizes that torch's modules remember agree with their tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        first, second = module.weight.shape[:2]
        if 1 < module.groups == module.in_channels and not module.transposed:  # depthwise: one group an input
            module.groups = first // (module.out_channels // module.groups)
        outputs, inputs = (second, first) if module.transposed else (first, second * module.groups)
        module.out_channels, module.in_channels = outputs, inputs
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sized = module.weight if module.weight is not None else module.running_mean
        module.num_features = len(sized) if sized is not None else module.num_features
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups == module.num_channels:
            module.num_groups = len(module.weight)
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def _head_sizes(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Sizes that timm builds a new classifier from: (who remembers it, under which name, whose input it is)."""
    find = getattr(model, "get_classifier", None)
    layers = (find() if callable(find) else None, getattr(model, "conv_head", None))
    readers: list[Any] = [layer for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]
    found = []
    for owner in (model, getattr(model, "head", None)):
        for name in ("num_features", "head_hidden_size", "in_features"):
            size = vars(owner).get(name) if isinstance(owner, nn.Module) and owner not in readers else None
            same = [reader for reader in readers if size == reader.weight.shape[1]]
            found += [(owner, name, reader) for reader in same[:1]]
    return found  # type: ignore[return-value]
