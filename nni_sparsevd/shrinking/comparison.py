"""Do two networks compute the same function?  Measured on random inputs, in float64 and float32."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ..errors import ShrinkError
from ..graph import Inputs, as_tuple, copy_model, kept_indices
from .plan import Plan

TOLERANCE_64 = 1e-10
"""Largest relative difference in float64, for networks that are stored in float64."""
TOLERANCE_STORED = 1e-6
"""The same for networks stored in float32: a folded bias was rounded once, when it was stored."""
TOLERANCE_32 = 1e-5
"""Largest relative difference in float32."""
BATCH_SIZES = (1, 3)
EXTRA_PIXELS = 32
"""Pixels by which images are also tried larger, where the network takes them: a multiple of most strides."""


@dataclass(frozen=True)
class HalfErrors:
    """What half precision does to two networks: their largest relative differences to the first one in float64."""

    model: float
    """The difference of the first network."""
    small: float
    """The difference of the second network; 0 where that precision cannot be computed with, or overflows, on a CPU."""
    epsilon: float
    """The distance from 1 to the next larger number of that precision."""

    @property
    def limit(self) -> float:
        """The largest relative difference that counts as rounding."""
        return 2 * max(self.model, self.epsilon)


@dataclass(frozen=True)
class CheckResult:
    """Largest differences between two networks over all random inputs; relative to the largest output where it says so.

    It prints as one line with a verdict.
    """

    max_abs_64: float
    """Largest absolute difference in float64."""
    max_rel_64: float
    """Largest relative difference in float64."""
    max_abs_32: float
    """Largest absolute difference in float32."""
    max_rel_32: float
    """Largest relative difference in float32."""
    noise_32: float
    """What float32 alone does to the first network: its relative difference to itself in float64."""
    inputs: int
    """Random batches compared in each precision."""
    stored_in_64: bool
    """Whether both networks hold float64 parameters, so that nothing was rounded when it was stored."""
    half: HalfErrors | None = None
    """For networks stored in half precision: what that precision does to either of them."""

    @property
    def ok(self) -> bool:
        """Equal to rounding.  In float32 a network that is noisy by itself may differ by twice its noise.

        A network in half precision may be off by twice what the first network is off by itself in that precision.
        """
        if self.half is not None:
            return max(self.max_rel_64, self.max_rel_32, self.half.small) <= self.half.limit
        tolerance = TOLERANCE_64 if self.stored_in_64 else TOLERANCE_STORED
        return self.max_rel_64 <= tolerance and self.max_rel_32 <= max(TOLERANCE_32, 2 * self.noise_32)

    def to_dict(self) -> dict[str, object]:
        """All fields, and the verdict under "ok", as JSON can hold them."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        verdict = "equal to rounding" if self.ok else "DIFFERENT"
        return (
            f"{verdict}: largest difference {self.max_abs_64:.2g} (relative {self.max_rel_64:.2g}) in float64, "
            f"{self.max_abs_32:.2g} (relative {self.max_rel_32:.2g}) in float32, {self.inputs} random batches each"
        )


def check(model: nn.Module, small: nn.Module, example_inputs: Inputs, rounds: int = 3, seed: int = 0) -> CheckResult:
    """Compare two networks in evaluation mode on random inputs.

    Args:
        model: The network that is right, masked for instance.
        small: The network that should compute the same, shrunk for instance.  Both are left as they are.
        example_inputs: One tensor or a tuple of them, as both networks take them.  Random batches have these shapes in
            batches of one and of three.  Where `model` takes them, there are also larger images, another size along
            every dimension, numbers near 0, images of one value, and zeros.  Integer inputs are drawn from the values
            of the example.
        rounds: How often each batch size is drawn.
        seed: Seed of the random inputs.

    Returns:
        The largest differences; its `ok` is the verdict.

    Raises:
        ShrinkError: A network returns something else than tensors, or dicts, lists and tuples of them.

    Example:
        ```python
        import torch
        from torch import nn

        import nni_sparsevd as svd

        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
        with torch.no_grad():
            model[1].weight[0] = 0  # the first channel is constant
        images = torch.randn(2, 3, 8, 8)
        small, plan = svd.shrink(model, images)
        result = svd.check(model, small, images)
        assert result.ok and plan.removed == 1
        print(result)
        ```
    """
    generator = torch.Generator().manual_seed(seed)
    example = as_tuple(example_inputs)
    batches = [draw_inputs(example, size, generator) for _ in range(rounds) for size in BATCH_SIZES]
    batches += _draw_larger_images(model, example, generator)
    regular = len(batches)
    batches += draw_unusual_inputs(model, example, generator)
    # Copies in float64 tell a wrong removal from rounding; copies in float32 show what users will see.
    exact, exact_small = (_all_outputs(network, torch.float64, batches) for network in (model, small))
    rounded, rounded_small = (_all_outputs(network, torch.float32, batches) for network in (model, small))
    in_64 = _largest_differences(exact, exact_small, regular)
    in_32 = _largest_differences(rounded, rounded_small, regular)
    noise_32 = _largest_differences(exact, rounded, regular)[1]
    # A folded bias is rounded when it is stored: networks in float32 cannot agree better than that, even in float64.
    parameters = [*model.parameters(), *small.parameters()]
    return CheckResult(
        *in_64,
        *in_32,
        noise_32=noise_32 if math.isfinite(noise_32) else 0.0,
        inputs=len(batches),
        stored_in_64=all(parameter.dtype == torch.float64 for parameter in parameters),
        half=_measure_half(model, small, exact[:regular], batches[:regular]),
    )


def find_half_type(*models: nn.Module) -> torch.dtype | None:
    """Find the coarsest half precision in which networks hold parameters; None where none of them does."""
    types = {parameter.dtype for model in models for parameter in model.parameters()}
    return next((dtype for dtype in (torch.bfloat16, torch.float16) if dtype in types), None)


def _measure_half(
    model: nn.Module, small: nn.Module, exact: list[list[Tensor]], batches: list[tuple[Tensor, ...]]
) -> HalfErrors | None:
    """Run both networks in the half precision that they are stored in; None where they are stored in another one.

    Args:
        model: The network that is right.
        small: The other network.
        exact: The outputs of `model` in float64, for each batch.
        batches: The inputs.
    """
    dtype = find_half_type(model, small)
    if dtype is None:
        return None
    epsilon = torch.finfo(dtype).eps
    try:
        outputs = [_all_outputs(network, dtype, batches) for network in (model, small)]
        errors = [_largest_differences(exact, halved, len(batches))[1] for halved in outputs]
    except RuntimeError:  # an operator that PyTorch does not have in half precision on a CPU
        errors = [math.inf]
    if not math.isfinite(errors[0]):
        return HalfErrors(0.0, 0.0, epsilon)
    return HalfErrors(errors[0], errors[1], epsilon)


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
        example_inputs: One tensor or a tuple of them, as both networks take them.
        training: Whether batch norms take the statistics of the batch.  The networks are then equal only if what the
            plan removed carries no constant there, too.
        seed: Seed of the random input and of the random sum.

    Returns:
        The largest absolute difference, divided by the largest gradient of `model`.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = draw_inputs(as_tuple(example_inputs), BATCH_SIZES[-1], generator)
    large, shrunk = (_copy_as(network, torch.float64) for network in (model, small))
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


def _run_with_gradients(model: nn.Module, batch: tuple[Tensor, ...], training: bool) -> list[Tensor]:
    model.requires_grad_(True)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(training)  # nothing else: dropout would draw different numbers
    return _flatten_outputs(model(*batch))


def _read_gradients(model: nn.Module, outputs: list[Tensor], weights: list[Tensor]) -> dict[str, Tensor]:
    """Gradients of the sum of outputs times weights, by name of the parameter."""
    torch.autograd.backward(outputs, weights)
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _without_removed(gradient: Tensor, name: str, plan: Plan) -> Tensor:
    for dim in range(gradient.dim()):
        kept = kept_indices(gradient.shape[dim], plan.cuts.get((name, dim), ()))
        gradient = gradient.index_select(dim, kept)
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


def _largest_differences(left: list[list[Tensor]], right: list[list[Tensor]], regular: int) -> tuple[float, float]:
    """Absolute and relative differences of the outputs for all batches, of which the first ones are regular.

    They are infinite where shapes differ or a value is not finite.  Relative means to the largest value of `left` over
    all regular batches, or over the other batch itself where that has larger values: what a network makes of zeros may
    be tiny, and rounding is none of the network's size there.
    """
    absolute = relative = 0.0
    largest = max((_largest(outputs) for outputs in left[:regular]), default=0.0)
    for expected, computed in zip(left, right, strict=True):
        difference = _largest_difference(expected, computed)
        if difference == float("inf"):
            return difference, difference
        scale = max(largest, _largest(expected))
        absolute = max(absolute, difference)
        relative = max(relative, difference / scale if scale else difference)
    return absolute, relative


def _largest(outputs: list[Tensor]) -> float:
    return max((value.abs().max().item() for value in outputs if value.numel()), default=0.0)


def _largest_difference(left: list[Tensor], right: list[Tensor]) -> float:
    """The largest absolute difference, infinite where shapes differ or a value is not finite."""
    largest = 0.0
    for expected, computed in zip(left, right, strict=True):
        if expected.shape != computed.shape or not (expected.isfinite().all() and computed.isfinite().all()):
            return float("inf")
        largest = max(largest, (expected.double() - computed.double()).abs().max().item())
    return largest


def _copy_as(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy_model(model).cpu().to(dtype).eval()


def _all_outputs(model: nn.Module, dtype: torch.dtype, batches: list[tuple[Tensor, ...]]) -> list[list[Tensor]]:
    """The outputs for each batch; the copy that computes them lives no longer than this."""
    copied = _copy_as(model, dtype)
    return [_run(copied, batch) for batch in batches]


def _run(model: nn.Module, batch: tuple[Tensor, ...]) -> list[Tensor]:
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float64)
    inputs = [value.to(dtype) if value.is_floating_point() else value for value in batch]
    with torch.no_grad():
        return _flatten_outputs(model(*inputs))


def draw_inputs(example: tuple[Tensor, ...], batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """A random batch: normal numbers in float64, or the example's own integers, picked at random.

    Args:
        example: Tensors whose shapes, but for the first dimension, the batch has.
        batch_size: The first dimension of each tensor.
        generator: Where the random numbers come from.
    """
    drawn = []
    for value in example:
        shape = (batch_size, *value.shape[1:])
        if value.is_floating_point():
            drawn.append(torch.randn(shape, generator=generator, dtype=torch.float64))
        else:
            picks = torch.randint(value.numel(), shape, generator=generator)
            drawn.append(value.detach().cpu().flatten()[picks])
    return tuple(drawn)


def _draw_larger_images(
    model: nn.Module, example: tuple[Tensor, ...], generator: torch.Generator
) -> list[tuple[Tensor, ...]]:
    """One batch of larger images; none where no input is an image, or where the network does not take them."""
    enlarged = tuple(_enlarge(value) for value in example)
    larger = draw_inputs(enlarged, 1, generator)
    same = all(drawn.shape[1:] == value.shape[1:] for drawn, value in zip(larger, example, strict=True))
    if same or not _runs(_copy_as(model, torch.float64), larger):
        return []
    return [larger]


def _enlarge(value: Tensor) -> Tensor:
    if value.dim() != 4 or not value.is_floating_point():
        return value
    return value.new_empty(1, value.shape[1], *(size + EXTRA_PIXELS for size in value.shape[2:]))


def draw_unusual_inputs(
    model: nn.Module, example: tuple[Tensor, ...], generator: torch.Generator
) -> list[tuple[Tensor, ...]]:
    """Batches that the network takes, of other sizes and of other values than `draw_inputs` draws.

    Args:
        model: The network that is right; it is asked which of these inputs it takes.
        example: Tensors that it takes.
        generator: Where the random numbers come from.

    Returns:
        One batch of one for each size of the example, where another size is taken, and one of three samples: numbers
        near 0, an image of one value, and zeros.
    """
    asked = _copy_as(model, torch.float64)
    batches = []
    # Dimensions of one size belong together, as do height and width, or the tokens of two inputs.
    sizes = {size for value in example for size in value.shape[1:]}
    for size in sorted(sizes):
        for other in (size + 1, 2 * size, size - 1):
            batch = draw_inputs(tuple(_replace_size(value, size, other) for value in example), 1, generator)
            if other > 0 and _runs(asked, batch):
                batches.append(batch)
                break
    flat = tuple(_flatten_samples(value) for value in draw_inputs(example, 3, generator))
    return [*batches, flat] if _runs(asked, flat) else batches


def _replace_size(value: Tensor, size: int, other: int) -> Tensor:
    """A tensor in the shape of `value` with each dimension of this size, but the first, replaced by another one."""
    shape = [1, *(other if old == size else old for old in value.shape[1:])]
    if value.is_floating_point():
        return value.new_empty(shape)
    return value.detach().flatten().repeat(2 + math.prod(shape) // value.numel())[: math.prod(shape)].view(shape)


def _flatten_samples(value: Tensor) -> Tensor:
    """Three samples with numbers near 0, with one value everywhere, and with zeros; whole numbers as they are."""
    if not value.is_floating_point():
        return value
    first = value[1].flatten()[:1].sum()
    return torch.stack([1e-3 * value[0], torch.full_like(value[1], float(first)), torch.zeros_like(value[2])])


def _runs(model: nn.Module, batch: tuple[Tensor, ...]) -> bool:
    """Whether a network takes a batch and makes finite numbers of it."""
    try:
        outputs = _run(model, batch)
    except Exception:  # whatever a network says to a size that it was not made for
        return False
    # A network that reshapes to a fixed size may have made several images of one.
    same_batch = all(value.shape[:1] == batch[0].shape[:1] for value in outputs)
    return same_batch and all(bool(value.isfinite().all()) for value in outputs)


def _flatten_outputs(output: object) -> list[Tensor]:
    """All tensors of an output, which may be a tensor, or a dict, list or tuple of them."""
    if output is None:  # an optional result that this call does not have
        return []
    if isinstance(output, Tensor):
        return [output]
    if not isinstance(output, Iterable):
        raise ShrinkError(f"outputs can be compared if they are tensors, found {type(output).__name__}")
    tensors = []
    for value in output.values() if isinstance(output, dict) else output:
        tensors += _flatten_outputs(value)
    return tensors
