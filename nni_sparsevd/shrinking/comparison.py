"""Do two networks compute the same function?  Measured on random inputs, in float64 and float32."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ..graph import Inputs, as_tuple, copy_model, kept_indices
from .plan import Plan

TOLERANCE_64 = 1e-10
TOLERANCE_32 = 1e-5
TOLERANCE_STORED = 1e-6
"""In float64, for networks stored in float32: a folded bias was rounded once when it was stored."""
BATCHES = (1, 3)


LARGER = 32
"""Pixels by which images are also tried larger, where the network takes them: a multiple of most strides."""


@dataclass(frozen=True)
class CheckResult:
    """Largest differences over all random inputs; relative ones to the largest output."""

    max_abs_64: float
    max_rel_64: float
    max_abs_32: float
    max_rel_32: float
    noise_32: float
    """What float32 alone does to the first network: its relative difference to itself in float64."""
    inputs: int
    """Random batches compared in each precision."""
    stored_in_64: bool
    """Whether both networks hold float64 parameters, so that nothing was rounded when it was stored."""

    @property
    def ok(self) -> bool:
        """Equal to rounding.  In float32 a network that is noisy by itself may differ by as much as it is noisy."""
        wide = TOLERANCE_64 if self.stored_in_64 else TOLERANCE_STORED
        return self.max_rel_64 <= wide and self.max_rel_32 <= max(TOLERANCE_32, 2 * self.noise_32)

    def to_dict(self) -> dict[str, object]:
        """JSON-able, with the verdict."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        verdict = "equal to rounding" if self.ok else "DIFFERENT"
        return (
            f"{verdict}: largest difference {self.max_abs_64:.2g} (relative {self.max_rel_64:.2g}) in float64, "
            f"{self.max_abs_32:.2g} (relative {self.max_rel_32:.2g}) in float32, {self.inputs} random batches each"
        )


def check(model: nn.Module, small: nn.Module, example_inputs: Inputs, rounds: int = 3, seed: int = 0) -> CheckResult:
    """Compare two networks in evaluation mode on random inputs.

    The batches have the shapes of `example_inputs`, in several sizes, and larger images where `model` takes them.
    Integer inputs are drawn from the values of the example.  Both models are left as they were.
    """
    generator = torch.Generator().manual_seed(seed)
    example = as_tuple(example_inputs)
    batches = [draw_inputs(example, size, generator) for _ in range(rounds) for size in BATCHES]
    larger = draw_inputs(tuple(_enlarged(value) for value in example), 1, generator)
    if any(value.shape[1:] != given.shape[1:] for value, given in zip(larger, example, strict=True)):
        batches += [larger] if _runs(_on(model, torch.float64), larger) else []
    exact, exact_small = (_all_outputs(one, torch.float64, batches) for one in (model, small))
    rounded, rounded_small = (_all_outputs(one, torch.float32, batches) for one in (model, small))
    in_64, in_32 = _differences(exact, exact_small), _differences(rounded, rounded_small)
    noise_32 = _differences(exact, rounded)[1]
    parameters = [*model.parameters(), *small.parameters()]
    stored = all(p.dtype == torch.float64 for p in parameters)
    return CheckResult(*in_64, *in_32, noise_32 if math.isfinite(noise_32) else 0.0, len(batches), stored)


def gradient_difference(
    model: nn.Module, small: nn.Module, plan: Plan, example_inputs: Inputs, *, training: bool, seed: int = 0
) -> float:
    """Largest difference between gradients of the parameters that survive, relative to the largest gradient.

    Of a random sum of the outputs, in float64.  With `training`, batch norms take the statistics of the batch: the
    networks are then equal only if what the plan removed is silent there, too.  Where one channel carries the
    constants of others (`plan.merges`), the gradients of its own parameters are the sum of theirs; and where folded
    constants were made with a parameter that survives, such as a bias that all channels share, their part of its
    gradient is gone.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = draw_inputs(as_tuple(example_inputs), BATCHES[-1], generator)
    first, second = (_on(one, torch.float64) for one in (model, small))
    gradients: list[dict[str, Tensor]] = []
    weights: list[Tensor] = []
    for one in (first, second):
        one.requires_grad_(True)
        for norm in (module for module in one.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)):
            norm.train(training)  # nothing else: dropout would draw different numbers
        outputs = _tensors(one(*batch))
        weights = weights or [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in outputs]
        torch.autograd.backward(outputs, weights)
        gradients.append({name: p.grad for name, p in one.named_parameters() if p.grad is not None})
    largest = max(gradient.abs().max() for gradient in gradients[0].values())
    difference = torch.zeros((), dtype=torch.float64)
    for name, gradient in gradients[1].items():
        expected = gradients[0].get(name)
        if expected is not None:  # else a bias that was born
            for dim in range(expected.dim()):
                expected = expected.index_select(dim, kept_indices(expected.shape[dim], plan.cuts.get((name, dim), ())))
            difference = difference.maximum((expected - gradient * _factor(plan, name, gradient)).abs().max())
    return float(difference / largest)


def _factor(plan: Plan, name: str, like: Tensor) -> Tensor:
    """What a parameter was multiplied by when attention lost dimensions: its gradient was divided by that."""
    factor = torch.ones_like(like)
    for scale, number in plan.scales:
        if name in (scale.weight, scale.bias):
            rows = torch.ones(1 + max(int(scale.rows.max()), len(like) + len(plan.cuts.get((name, 0), ())) - 1))
            rows[torch.from_numpy(scale.rows)] = (number / scale.dimensions.size) ** 0.5
            left = rows[kept_indices(len(rows), plan.cuts.get((name, 0), ()))].to(like)
            factor = factor * left.view(-1, *(1,) * (like.dim() - 1))
    return factor


def _differences(left: list[Tensor], right: list[Tensor]) -> tuple[float, float]:
    """The largest, absolute and relative to the largest value; infinite where shapes or finiteness differ."""
    absolute = largest = 0.0
    for one, other in zip(left, right, strict=True):
        if one.shape != other.shape or not (one.isfinite().all() and other.isfinite().all()):
            return float("inf"), float("inf")
        absolute = max(absolute, (one.double() - other.double()).abs().max().item())
        largest = max(largest, one.abs().max().item())
    return absolute, absolute / largest if largest else absolute


def _on(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy_model(model).cpu().to(dtype).eval()


def _all_outputs(model: nn.Module, dtype: torch.dtype, batches: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """Of all batches in a row; the copy that computes them lives no longer than this."""
    made = _on(model, dtype)
    return [value for batch in batches for value in _outputs(made, batch)]


def _outputs(model: nn.Module, batch: tuple[Tensor, ...]) -> list[Tensor]:
    kind = next((p.dtype for p in model.parameters()), torch.float64)
    with torch.no_grad():
        return _tensors(model(*(value.to(kind) if value.is_floating_point() else value for value in batch)))


def _runs(model: nn.Module, batch: tuple[Tensor, ...]) -> bool:
    try:
        outputs = _outputs(model, batch)
    except Exception:  # whatever a network says to a size that it was not made for
        return False
    return all(value.shape[:1] == (1,) for value in outputs)  # else a reshape has made several images of one


def _enlarged(value: Tensor) -> Tensor:
    if value.dim() != 4 or not value.is_floating_point():
        return value
    return value.new_empty(1, value.shape[1], *(size + LARGER for size in value.shape[2:]))


def draw_inputs(example: tuple[Tensor, ...], batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """A batch in the shape of `example`: normal numbers in float64, or the example's own integers, picked at random."""
    drawn = []
    for value in example:
        shape = (batch, *value.shape[1:])
        if value.is_floating_point():
            drawn.append(torch.randn(shape, generator=generator, dtype=torch.float64))
        else:
            picks = torch.randint(value.numel(), shape, generator=generator)
            drawn.append(value.detach().cpu().flatten()[picks])
    return tuple(drawn)


def _tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in _tensors(value)]  # type: ignore[attr-defined]
