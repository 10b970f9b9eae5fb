"""Zeros that cost nothing: linear layers and 1x1 convolutions on a sparse kernel, where it is measured to be faster."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..graph import Inputs, as_tuple, evaluation_mode
from ..measure import measure_latencies
from ..nn import is_variational

ROUNDS = 15


class SparseLinear(nn.Module):
    """A linear layer whose weight is kept by rows (CSR) with indices of 32 bits; of a 1x1 convolution, too.

    It computes what the layer did, to rounding, and cannot be trained.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            weight = layer.weight.detach().flatten(1).to_sparse_csr()
        self.register_buffer("rows", weight.crow_indices().int())
        self.register_buffer("columns", weight.col_indices().int())
        self.register_buffer("values", weight.values())  # apart: a sparse parameter can be neither copied nor saved
        self.shape = tuple(weight.shape)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
        self.channel_dim = 1 if isinstance(layer, nn.Conv2d) else -1

    def forward(self, x: Tensor) -> Tensor:
        """Features, or channels, in and out; all other dimensions as they are."""
        weight = torch.sparse_csr_tensor(self.rows, self.columns, self.values, self.shape, check_invariants=False)
        features = x.movedim(self.channel_dim, -1)
        columns = features.reshape(-1, features.shape[-1]).t()
        # the sparse matrix on the left: F.linear has it on the right, and is several times slower
        flat = torch.mv(weight, columns[:, 0])[None] if columns.shape[1] == 1 else torch.mm(weight, columns).t()
        flat = flat if self.bias is None else flat + self.bias
        return flat.reshape(*features.shape[:-1], -1).movedim(-1, self.channel_dim)


@dataclass(frozen=True)
class Choice:
    """What was measured of one layer, on the inputs that it gets."""

    layer: str
    zeros: float
    """Share of its weights."""
    faster: float
    """Dense time over sparse time, medians of interleaved rounds on the threads that are set."""
    converted: bool


def to_sparse_inference_(model: nn.Module, example_inputs: Inputs, *, least: float = 1.1) -> list[Choice]:
    """Put every layer that a sparse kernel makes at least `least` times faster on it, in place.

    Each linear layer and 1x1 convolution is tried on the inputs that it gets from `example_inputs`, on this machine:
    shape, batch and zeros all matter.  What is converted computes the same to rounding and no longer learns.  Such a
    network runs in PyTorch only: export the dense one.

    Raises `ModelError` for a network that is still variational.
    """
    if is_variational(model):
        raise ModelError(f"{type(model).__name__} still has posteriors; convert what bake_ or shrink gives back")
    layers = {name: module for name, module in model.named_modules() if _can(module)}
    names = {module: name for name, module in layers.items()}
    seen: dict[str, Tensor] = {}

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.setdefault(names[module], inputs[0])

    hooks = [module.register_forward_pre_hook(look) for module in layers.values()]
    choices = []
    with evaluation_mode(model), torch.no_grad():
        try:
            model(*as_tuple(example_inputs))
        finally:
            for hook in hooks:
                hook.remove()
        for name, x in seen.items():
            dense = layers[name]
            sparse = SparseLinear(dense)
            times = measure_latencies({"dense": dense, "sparse": sparse}, x, ROUNDS, torch.get_num_threads())
            faster = times["dense"] / times["sparse"]
            zeros = 1 - int(dense.weight.count_nonzero()) / dense.weight.numel()
            choices.append(Choice(name, zeros, faster, faster >= least))
            if choices[-1].converted:
                owner, _, key = name.rpartition(".")
                setattr(model.get_submodule(owner), key, sparse)
    return choices


def _can(module: nn.Module) -> bool:
    if type(module) is nn.Linear:
        return True
    return type(module) is nn.Conv2d and (
        module.kernel_size == module.stride == (1, 1) and module.groups == 1 and module.padding in (0, (0, 0))
    )
