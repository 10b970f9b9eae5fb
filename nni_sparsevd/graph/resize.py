"""Cut the tensors of a module, and bring the sizes that modules remember up to date."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .groups import SizeAttribute
from .labels import Axis, Flags


def cut_(model: nn.Module, cuts: Mapping[Axis, Sequence[int]], sizes: Iterable[tuple[SizeAttribute, int]]) -> None:
    """Remove indices from axes of parameters and buffers in place, under each of their names; set sizes to numbers."""
    named = dict(named_states(model))
    aliases: dict[int, list[str]] = defaultdict(list)
    for name, tensor in named.items():
        aliases[id(tensor)].append(name)
    axes: dict[str, list[tuple[int, Sequence[int]]]] = defaultdict(list)
    for (name, dim), indices in cuts.items():
        axes[aliases[id(named[name])][0]].append((dim, indices))
    for size, number in sizes:
        _set(model, size, number)
    touched: set[str] = set()
    for name, cut in axes.items():
        names = aliases[id(named[name])]
        old = named[name]
        smaller = remove_indices(old.detach(), cut)
        if isinstance(old, nn.Parameter):
            smaller = nn.Parameter(smaller, requires_grad=old.requires_grad)
        for alias in names:
            module, _, key = alias.rpartition(".")
            setattr(model.get_submodule(module), key, smaller)
            touched.add(module)
    for module in sorted(touched):
        refresh_attributes_(model.get_submodule(module))


def _set(model: nn.Module, size: SizeAttribute, number: int) -> None:
    module, name, at = size.origin
    owner = model.get_submodule(module)
    value = getattr(owner, name)
    if at is not None:
        value = type(value)([*value[:at], number, *value[at + 1 :]])
    setattr(owner, name, number if at is None else value)


def remaining_sizes(sizes: Iterable[SizeAttribute], removed: Flags) -> list[tuple[SizeAttribute, int]]:
    """Each size with the number of channels that stay."""
    return [(size, int((~removed[size.channels]).sum())) for size in sizes]


def kept_indices(size: int, cut: Sequence[int]) -> Tensor:
    """Indices of an axis that stay, shape (left,)."""
    stays = torch.ones(size, dtype=torch.bool)
    stays[list(cut)] = False
    return stays.nonzero().flatten()


def named_states(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers under every name."""
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def remove_indices(tensor: Tensor, cut: Iterable[tuple[int, Sequence[int]]]) -> Tensor:
    """`tensor` without these indices of these dimensions."""
    for dim, indices in cut:
        tensor = tensor.index_select(dim, kept_indices(tensor.shape[dim], indices).to(tensor.device))
    return tensor


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
    elif isinstance(module, nn.LayerNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups == module.num_channels:
            module.num_groups = len(module.weight)
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
