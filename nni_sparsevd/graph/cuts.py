"""Cut the tensors of a network, and bring the sizes that its modules remember up to date."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

from .equations import Axis
from .names import list_modules, named_states, owner_of
from .origins import Origin

HOOKS_THAT_COMPUTE_WEIGHTS = (BasePruningMethod, WeightNorm)
"""torch's pruning, and its weight norm before the days of parametrizations."""
KeptIndices = dict[tuple[int, tuple[int, ...]], Tensor]
"""The size of an axis and the indices cut from it, the same for all axes of a group -> the indices that stay."""


def cut_(model: nn.Module, cuts: Mapping[Axis, Sequence[int]], sizes: Mapping[Origin, int]) -> None:
    """Remove indices from axes of parameters and buffers in place, and set attributes that hold sizes.

    Args:
        model: The network.
        cuts: For an axis the indices to remove.  A tensor with several names may go by any of them.
        sizes: Attributes that hold sizes, with their new values.
    """
    tensors = dict(named_states(model))
    names_of: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        names_of[id(tensor)].append(name)
    cuts_of: dict[str, list[tuple[int, Sequence[int]]]] = defaultdict(list)
    for (name, dim), indices in cuts.items():
        cuts_of[names_of[id(tensors[name])][0]].append((dim, indices))
    for origin, size in sizes.items():
        _set_size(model, origin, size)
    modules = dict(list_modules(model))
    kept: KeptIndices = {}
    touched: set[str] = set()
    for name, own_cuts in cuts_of.items():
        old = tensors[name]
        smaller = remove_indices(old.detach(), own_cuts, kept)
        if isinstance(old, nn.Parameter):
            smaller = nn.Parameter(smaller, requires_grad=old.requires_grad)
        for alias in names_of[id(old)]:
            module, _, key = alias.rpartition(".")
            owner = modules[module]
            setattr(owner, key, smaller)
            # A fresh network would make a buffer outside the state dict at its old size: a file has to bring this one.
            owner._non_persistent_buffers_set.discard(key)
            touched.add(owner_of(alias))
    for module in sorted(touched):
        recompute_weights_(modules[module])
        refresh_attributes_(modules[module])


def _set_size(model: nn.Module, origin: Origin, size: int) -> None:
    module, name, place = origin
    owner = model.get_submodule(module)
    if place is None:
        setattr(owner, name, size)
        return
    sizes = getattr(owner, name)
    setattr(owner, name, type(sizes)([*sizes[:place], size, *sizes[place + 1 :]]))


def kept_indices(size: int, cut: Sequence[int]) -> Tensor:
    """Indices of an axis of this size that stay when `cut` are removed, shape (indices that stay,)."""
    stays = np.ones(size, np.bool_)
    stays[np.asarray(cut, np.int64)] = False
    return torch.from_numpy(np.flatnonzero(stays))


def remove_indices(
    tensor: Tensor, cuts: Iterable[tuple[int, Sequence[int]]], kept: KeptIndices | None = None
) -> Tensor:
    """`tensor` without some indices: `cuts` has pairs of a dimension and its indices, `kept` remembers the others."""
    kept = {} if kept is None else kept
    for dim, indices in cuts:
        key = tensor.shape[dim], tuple(indices)
        if key not in kept:
            kept[key] = kept_indices(*key)
        tensor = tensor.index_select(dim, kept[key].to(tensor.device))
    return tensor


def recompute_weights_(module: nn.Module) -> None:
    """Make a weight that torch's hooks compute before each call agree with what it is computed from."""
    # Until the next call the module would hold the weight of the last one, at its old size, and `refresh_attributes_`
    # would read that size.  Without a history, as torch copies no tensor that has one.
    with torch.no_grad():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, HOOKS_THAT_COMPUTE_WEIGHTS):
                hook(module, ())


def refresh_attributes_(module: nn.Module) -> None:
    """Make the sizes that one of torch's modules remembers agree with its tensors."""
    for kind, refresh in _REFRESH.items():
        if isinstance(module, kind):
            refresh(module)
            return


def _refresh_linear(module: Any) -> None:
    module.out_features, module.in_features = module.weight.shape


def _refresh_convolution(module: Any) -> None:
    first, second = module.weight.shape[:2]
    depthwise = 1 < module.groups == module.in_channels
    if module.transposed:
        if depthwise:
            module.groups = first
        module.out_channels, module.in_channels = second * module.groups, first
        return
    if depthwise:  # one group for each input, and each input had several outputs perhaps
        module.groups = first // (module.out_channels // module.groups)
    module.out_channels, module.in_channels = first, second * module.groups


def _refresh_batch_norm(module: Any) -> None:
    sized = module.weight if module.weight is not None else module.running_mean
    if sized is not None:
        module.num_features = len(sized)


def _refresh_layer_norm(module: Any) -> None:
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


def _refresh_group_norm(module: Any) -> None:
    if module.num_groups == module.num_channels:
        module.num_groups = len(module.weight)
    module.num_channels = len(module.weight)


def _refresh_embedding(module: Any) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


def _refresh_recurrent(module: Any) -> None:
    module.input_size = module.weight_ih_l0.shape[1]


def _refresh_prelu(module: Any) -> None:
    module.num_parameters = len(module.weight)


def _refresh_attention(module: Any) -> None:
    module.embed_dim = len(module.out_proj.weight)


_REFRESH: dict[type[nn.Module], Callable[[Any], None]] = {
    nn.Linear: _refresh_linear,
    nn.modules.conv._ConvNd: _refresh_convolution,
    nn.modules.batchnorm._NormBase: _refresh_batch_norm,
    nn.LayerNorm: _refresh_layer_norm,
    nn.GroupNorm: _refresh_group_norm,
    nn.Embedding: _refresh_embedding,
    nn.PReLU: _refresh_prelu,
    nn.RNNBase: _refresh_recurrent,
    nn.MultiheadAttention: _refresh_attention,
}
