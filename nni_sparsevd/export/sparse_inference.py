"""Zeros that cost nothing: linear layers and 1x1 convolutions on a sparse kernel where it is measured to be faster."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..graph import Inputs, as_arguments, evaluation_mode
from ..measure import measure_latencies
from ..nn import is_variational

ROUNDS = 15
"""Interleaved rounds of a comparison of a layer's dense and sparse form."""
KERNEL_TYPES = (torch.float32, torch.float64)
"""Types that PyTorch's sparse kernel for the CPU has."""


class SparseLinear(nn.Module):
    """A linear layer whose weight is stored by rows (CSR), with 32-bit indices; it serves 1x1 convolutions, too.

    It computes what the layer computed, to rounding, and cannot be trained.

    Args:
        layer: The dense layer; it is not changed.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            weight = layer.weight.detach().flatten(1).to_sparse_csr()
        # three dense buffers: a sparse parameter can be neither copied nor saved
        self.register_buffer("rows", weight.crow_indices().int())
        self.register_buffer("columns", weight.col_indices().int())
        self.register_buffer("values", weight.values())
        self.shape = tuple(weight.shape)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
        self.channel_dim = -3 if isinstance(layer, nn.Conv2d) else -1  # an image may come without a batch

    def forward(self, x: Tensor) -> Tensor:
        """Map the features (of a linear layer) or the channels (of a convolution); other dimensions stay."""
        weight = torch.sparse_csr_tensor(self.rows, self.columns, self.values, self.shape, check_invariants=False)
        features = x.movedim(self.channel_dim, -1)
        columns = features.reshape(-1, features.shape[-1]).t()
        # The sparse matrix stands on the left.  F.linear puts it on the right, and is several times slower.
        if columns.shape[1] == 1:
            flat = torch.mv(weight, columns[:, 0])[None]
        else:
            flat = torch.mm(weight, columns).t()
        if self.bias is not None:
            flat = flat + self.bias
        # Laid out as the dense layer's output: the network may go on with a view of it.
        return flat.reshape(*features.shape[:-1], -1).movedim(-1, self.channel_dim).contiguous()


@dataclass(frozen=True)
class Choice:
    """What was measured of one layer, on the inputs that reach it."""

    layer: str
    zeros: float
    """Share of its weights that are zero."""
    faster: float
    """Dense time over sparse time: medians of interleaved rounds, on the threads that are set."""
    converted: bool


def to_sparse_inference_(model: nn.Module, example_inputs: Inputs, *, least: float = 1.1) -> list[Choice]:
    """Replace every layer that a sparse kernel makes faster on this machine, in place.

    Each linear layer and 1x1 convolution is timed on the inputs that reach it: shape, batch and zeros all matter.  A
    converted layer computes the same to rounding and no longer learns.  Such a network runs in PyTorch only; to export
    it, export the dense one.

    Args:
        model: A network without posteriors, with zeros in its weights.
        example_inputs: What `model` is called with, of the shapes and batch size that will be used; see `export`.
        least: Speed-up from which a layer is converted.

    Returns:
        What was measured, a row for each layer that was tried.

    Raises:
        ModelError: The network is still variational.
    """
    if is_variational(model):
        raise ModelError(f"{type(model).__name__} still has posteriors; convert what bake_ or shrink gives back")
    choices = []
    with evaluation_mode(model), torch.no_grad():
        for name, x in _record_inputs(model, example_inputs).items():
            dense = model.get_submodule(name)
            assert isinstance(dense, nn.Linear | nn.Conv2d)
            sparse = SparseLinear(dense)
            times = measure_latencies({"dense": dense, "sparse": sparse}, x, ROUNDS, torch.get_num_threads())
            faster = times["dense"] / times["sparse"]
            zeros = 1 - int(dense.weight.count_nonzero()) / dense.weight.numel()
            choices.append(Choice(name, zeros, faster, faster >= least))
            if faster >= least:
                owner, _, key = name.rpartition(".")
                setattr(model.get_submodule(owner), key, sparse)
    return choices


def _record_inputs(model: nn.Module, example_inputs: Inputs) -> dict[str, Tensor]:
    """The input of every layer that could be converted in its first call, by the layer's name.

    Layers that are never called, or with their input as a keyword, have none.
    """
    layers = {name: module for name, module in model.named_modules() if _is_convertible(module)}
    names = {module: name for name, module in layers.items()}
    inputs: dict[str, Tensor] = {}

    def record(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if arguments:
            inputs.setdefault(names[module], arguments[0])

    hooks = [module.register_forward_pre_hook(record) for module in layers.values()]
    try:
        as_arguments(example_inputs).call(model)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def _is_convertible(module: nn.Module) -> bool:
    """Whether a module is a matrix product that the kernel knows: exactly torch's linear layer or 1x1 convolution."""
    if type(module) not in (nn.Linear, nn.Conv2d) or module.weight.dtype not in KERNEL_TYPES:
        return False
    if not isinstance(module, nn.Conv2d):
        return True
    single_taps = module.kernel_size == module.stride == (1, 1) and module.padding in (0, (0, 0))
    return single_taps and module.groups == 1
