"""Do two networks learn alike?  The gradients of the parameters that are left in a shrunk network."""

import torch
from torch import Tensor, nn

from ..graph import CallArguments, Inputs, as_arguments, kept_indices
from .drawing import batch_sizes, draw_inputs
from .plan import NormMemory, Plan
from .running import copy_as, name_outputs

BATCH_SIZE = 3


def gradient_difference(
    model: nn.Module, small: nn.Module, plan: Plan, example_inputs: Inputs, *, training: bool, seed: int = 0
) -> float:
    """Compare the gradients of the parameters that are left in a shrunk network with those of the masked one.

    They are gradients of a random sum of the outputs, in float64.  They need not agree in two cases: where one channel
    carries the constants of others (`plan.merges`), the gradients of its parameters are the sum of theirs; and where a
    folded constant was made with a parameter that is left, such as a bias that all channels share, that part of its
    gradient is missing.

    Args:
        model: The masked network.
        small: The network that `plan` makes of it.
        plan: The plan that `shrink` returned with `small`.
        example_inputs: What both networks are called with: see `as_arguments`.
        training: Whether batch norms take the statistics of the batch.  The networks are then equal only if what the
            plan removed carries no constant there, too.
        seed: Seed of the random input and of the random sum.

    Returns:
        The largest absolute difference, divided by the largest gradient of `model`.
    """
    generator = torch.Generator().manual_seed(seed)
    example = as_arguments(example_inputs)
    batch = draw_inputs(example, batch_sizes(example, BATCH_SIZE), generator)
    large, shrunk = (copy_as(network, torch.float64) for network in (model, small))
    outputs = _run_with_gradients(large, batch, training)
    weights = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in outputs]
    expected = _read_gradients(large, outputs, weights)
    gradients = _read_gradients(shrunk, _run_with_gradients(shrunk, batch, training), weights)
    largest = max(gradient.abs().max() for gradient in expected.values())
    difference = torch.zeros((), dtype=torch.float64)
    for name, gradient in gradients.items():
        if name in expected:  # a bias that was born is in `small` alone
            left = _without_removed(expected[name], name, plan)
            difference = difference.maximum((left - gradient * _query_factor(plan, name, gradient)).abs().max())
    return float(difference / largest)


def _run_with_gradients(model: nn.Module, batch: CallArguments, training: bool) -> list[Tensor]:
    model.requires_grad_(True)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(training)  # nothing else: dropout would draw different numbers
    outputs = name_outputs(batch.call(model))
    # An output such as a mask, or an order of patches, is computed from no parameter.
    return [value for value in outputs.values() if isinstance(value, Tensor) and value.requires_grad]


def _read_gradients(model: nn.Module, outputs: list[Tensor], weights: list[Tensor]) -> dict[str, Tensor]:
    """Gradients of the sum of outputs times weights, by name of the parameter."""
    torch.autograd.backward(outputs, weights)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: gradient for name, gradient in gradients.items() if gradient is not None and gradient.numel()}


def _without_removed(gradient: Tensor, name: str, plan: Plan) -> Tensor:
    for dim in range(gradient.dim()):
        kept = kept_indices(gradient.shape[dim], plan.cuts.get((name, dim), ()))
        gradient = gradient.index_select(dim, kept)
    for norm, memory in plan.norms.items():
        if memory.indices is not None and name.startswith(f"{norm}."):
            return _without_remembered(gradient, memory)
    return gradient


def _without_remembered(gradient: Tensor, memory: NormMemory) -> Tensor:
    """The gradient of a parameter of a norm that keeps its size: that of the removed channels has become 0."""
    gradient = gradient.clone()
    for dim, size in enumerate(gradient.shape):
        if size == memory.channels:
            gradient.index_fill_(dim, torch.tensor(memory.indices), 0)
    return gradient


def _query_factor(plan: Plan, name: str, like: Tensor) -> Tensor:
    """What a parameter was multiplied by when attention lost dimensions: its gradient was divided by that."""
    factor = torch.ones_like(like)
    for scaling in plan.scales:
        if name in (scaling.weight, scaling.bias):
            removed = plan.cuts.get((name, 0), ())
            # Rows are counted before the cut, so the factors are made at the old size and cut as the weight was.
            rows = torch.ones(1 + max(*scaling.rows, len(like) + len(removed) - 1))
            rows[list(scaling.rows)] = (scaling.after / scaling.before) ** 0.5
            left = rows[kept_indices(len(rows), removed)].to(like)
            factor = factor * left.view(-1, *(1,) * (like.dim() - 1))
    return factor
