"""Do two networks compute the same function?  Measured on random inputs, in float64 and float32."""

import math
from collections import defaultdict
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ..errors import ShrinkError, describe_error
from ..graph import Inputs, as_arguments, find_failing_module
from .running import Outputs, as_numbers_of, copy_as, run_copy
from .variants import Variant, VariantSearch

TOLERANCE_64 = 1e-10
"""Largest relative difference in float64, for networks that are stored in float64."""
TOLERANCE_STORED = 1e-6
"""The same for networks stored in float32: a folded bias was rounded once, when it was stored."""
TOLERANCE_32 = 1e-5
"""Largest relative difference in float32."""
SMALLEST_SHARE = 1e-5
"""Outputs whose values are a smaller share of the largest ones are judged as if they had this share."""


@dataclass(frozen=True)
class Differences:
    """The largest differences between the outputs of two networks."""

    absolute: float
    relative: float
    """Relative to the largest value of the same output."""


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
    """Random batches compared in float64; those of one sample, of ordinary sizes and values, also in float32."""
    stored_in_64: bool
    """Whether both networks hold float64 parameters, so that nothing was rounded when it was stored."""
    half: HalfErrors | None = None
    """For networks stored in half precision: what that precision does to either of them."""
    kinds: tuple[str, ...] = ()
    """What the batches are like, in words: "batches of 1", "other sizes", ..., as far as the first network goes."""
    runs_in_64: bool = True
    """Whether the first network runs in float64; else all figures are those of its own precision."""

    @property
    def ok(self) -> bool:
        """Equal to rounding.  In float32 a network that is noisy by itself may differ by twice its noise.

        A network in half precision may be off by twice what the first network is off by itself in that precision.
        """
        if self.half is not None:
            return max(self.max_rel_64, self.max_rel_32, self.half.small) <= self.half.limit
        if not self.runs_in_64:
            return self.max_rel_64 <= TOLERANCE_32
        tolerance = TOLERANCE_64 if self.stored_in_64 else TOLERANCE_STORED
        return self.max_rel_64 <= tolerance and self.max_rel_32 <= max(TOLERANCE_32, 2 * self.noise_32)

    def to_dict(self) -> dict[str, object]:
        """All fields, and the verdict under "ok", as JSON can hold them."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        verdict = "equal to rounding" if self.ok else "DIFFERENT"
        return (
            f"{verdict}: largest difference {self.max_abs_64:.2g} (relative {self.max_rel_64:.2g}) in float64, "
            f"{self.max_abs_32:.2g} (relative {self.max_rel_32:.2g}) in float32, {self.inputs} random batches "
            f"({', '.join(self.kinds)})"
        )


def check(model: nn.Module, small: nn.Module, example_inputs: Inputs, rounds: int = 3, seed: int = 0) -> CheckResult:
    """Compare two networks in evaluation mode on random inputs.

    Args:
        model: The network that is right, masked for instance.
        small: The network that should compute the same, shrunk for instance.  Both are left as they are.
        example_inputs: What both networks are called with: a tensor, a tuple of arguments, a dict of keyword arguments,
            or a pair (args, kwargs); see `as_arguments`.  `model` is asked what else it takes.  Random batches have
            these shapes in batches of one and of three; there are also larger images, another size along every
            dimension, numbers near 0, large numbers, inputs of one value, and zeros.  Batches of three, and what is
            unusual, are of smaller images where `model` takes such: float64 is slow.  Where it does not take some of
            them, or makes NaN of them, the sizes or values of the example itself serve; where it amplifies rounding, as
            some do in float32, they are left out; `kinds` says which were compared.  Whole numbers are the example's.
        rounds: How often each batch size is drawn.
        seed: Seed of the random inputs.

    Returns:
        The largest differences; its `ok` is the verdict.

    Raises:
        ModelError: `model` itself does not run on the example; the message names the module.
        ShrinkError: `small` does not run on what `model` takes, or an output can be compared with nothing.

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
        ```
    """
    search = VariantSearch(model, as_arguments(example_inputs), torch.Generator().manual_seed(seed))
    variants = _find_stable(model, search, rounds)
    small_outputs = _run_all(copy_as(small, search.dtype), variants, search.uses_uniform_draws)
    in_64 = _compare_samples(variants, small_outputs)
    # Copies in float64 tell a wrong removal from rounding; copies in float32 show what users will see.
    in_32, noise_32 = in_64, 0.0
    rounded = _find_smallest([variant for variant in variants if variant.is_regular])
    if search.dtype == torch.float64:
        in_32, noise_32 = _compare_in_32(search.copy_in_32(), small, rounded, search.uses_uniform_draws)
    return CheckResult(
        max_abs_64=in_64.absolute,
        max_rel_64=in_64.relative,
        max_abs_32=in_32.absolute,
        max_rel_32=in_32.relative,
        noise_32=noise_32,
        inputs=len(variants),
        stored_in_64=_are_stored_in_64(model, small),
        half=_measure_half(model, small, rounded, search.uses_uniform_draws),
        kinds=tuple(dict.fromkeys(variant.kind for variant in variants)),
        runs_in_64=search.dtype == torch.float64,
    )


def _find_stable(model: nn.Module, search: VariantSearch, rounds: int) -> list[Variant]:
    """Find the inputs to compare on; unusual ones on which a network in float32 alone amplifies rounding are left out.

    An instance norm of a constant image divides rounding by next to nothing: on zeros, torchvision's RAFT differs from
    itself by 4 % when its weights are off by one rounding.  Such inputs say nothing about a second network.
    """
    variants = search.find(rounds)
    if search.dtype == torch.float64:
        return variants
    disturbed = _run_all(_round_otherwise(model, search.dtype), variants, search.uses_uniform_draws)
    regular = [variant.outputs for variant in variants if variant.is_regular]
    stable = []
    for variant, outputs in zip(variants, disturbed, strict=True):
        differences = _largest_differences([*regular, variant.outputs], [*regular, outputs], len(regular))
        if variant.is_regular or differences.relative <= TOLERANCE_32 / 2:
            stable.append(variant)
    return stable


@torch.no_grad()
def _round_otherwise(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy whose weights are off by about one rounding each."""
    generator = torch.Generator().manual_seed(0)
    copied = copy_as(model, dtype)
    for parameter in copied.parameters():
        if parameter.is_floating_point():
            noise = torch.randn(parameter.shape, generator=generator, dtype=dtype)
            # Not in place: the copy shares its memory with the network.
            parameter.data = parameter * (1 + torch.finfo(dtype).eps * noise)
    return copied


def _find_smallest(regular: list[Variant]) -> list[Variant]:
    """The batches of the fewest samples: rounding is the same in a larger batch, and costs as much again."""
    smallest = regular[0].kind
    return [variant for variant in regular if variant.kind == smallest]


def _are_stored_in_64(*models: nn.Module) -> bool:
    # A folded bias is rounded when it is stored: networks in float32 cannot agree better than that, even in float64.
    return all(parameter.dtype == torch.float64 for model in models for parameter in model.parameters())


def _outputs_of(variants: list[Variant]) -> list[Outputs]:
    return [variant.outputs for variant in variants]


def _compare_samples(variants: list[Variant], small_outputs: list[Outputs]) -> Differences:
    """Differences of what the smaller network makes of all inputs, of which the regular ones come first."""
    regular = sum(variant.is_regular for variant in variants)
    outputs = _split_samples(variants, _outputs_of(variants))
    return _largest_differences(outputs, _split_samples(variants, small_outputs), regular)


def _split_samples(variants: list[Variant], outputs: list[Outputs]) -> list[Outputs]:
    """Outputs for each batch, or for each sample where the samples of a batch are compared one by one."""
    return [part for variant, whole in zip(variants, outputs, strict=True) for part in variant.split(whole)]


def _run_all(copied: nn.Module, variants: list[Variant], uniform_draws: bool) -> list[Outputs]:
    """What a copy of a network, of `copy_as`, makes of inputs that the first one takes.

    Raises:
        ShrinkError: The network does not run on one of them.
    """
    outputs = []
    for variant in variants:
        try:
            outputs.append(run_copy(copied, variant.inputs, uniform_draws=uniform_draws).outputs)
        except ShrinkError:
            raise
        except Exception as error:  # whatever a user's forward raises
            module = find_failing_module(copied, as_numbers_of(copied, variant.inputs))
            place = f", in {module}" if module else ""
            raise ShrinkError(
                f"{type(copied).__name__} does not run on {variant.inputs.shapes} ({variant.kind}), which the network "
                f"that it is compared with takes{place}: {describe_error(error)}"
            ) from error
    return outputs


def _compare_in_32(
    copied: nn.Module, small: nn.Module, regular: list[Variant], uniform_draws: bool
) -> tuple[Differences, float]:
    """Differences of a copy in float32 and a network, and how far the copy is from its original in float64."""
    try:
        rounded = _run_all(copied, regular, uniform_draws)
    except ShrinkError:  # a network that computes in float64 whatever it holds
        return Differences(0.0, 0.0), 0.0
    rounded_small = _run_all(copy_as(small, torch.float32), regular, uniform_draws)
    noise = _largest_differences(_outputs_of(regular), rounded, len(regular)).relative
    differences = _largest_differences(rounded, rounded_small, len(regular))
    return differences, noise if math.isfinite(noise) else 0.0


def find_half_type(*models: nn.Module) -> torch.dtype | None:
    """Find the coarsest half precision in which networks hold parameters; None where none of them does."""
    types = {parameter.dtype for model in models for parameter in model.parameters()}
    return next((dtype for dtype in (torch.bfloat16, torch.float16) if dtype in types), None)


def _measure_half(model: nn.Module, small: nn.Module, regular: list[Variant], uniform_draws: bool) -> HalfErrors | None:
    """Run both networks in the half precision that they are stored in; None where they are stored in another one.

    Args:
        model: The network that is right.
        small: The other network.
        regular: Inputs, with the outputs of `model` in float64.
        uniform_draws: Whether random tensors hold one number each.
    """
    dtype = find_half_type(model, small)
    if dtype is None:
        return None
    epsilon = torch.finfo(dtype).eps
    try:
        outputs = [_run_all(copy_as(network, dtype), regular, uniform_draws) for network in (model, small)]
        errors = [_largest_differences(_outputs_of(regular), halved, len(regular)).relative for halved in outputs]
    except ShrinkError:  # an operator that PyTorch does not have in half precision on a CPU
        errors = [math.inf]
    if not math.isfinite(errors[0]):
        return HalfErrors(0.0, 0.0, epsilon)
    return HalfErrors(errors[0], errors[1], epsilon)


def _largest_differences(left: list[Outputs], right: list[Outputs], regular: int) -> Differences:
    """Absolute and relative differences of the outputs for all batches, of which the first ones are regular.

    They are infinite where structures or shapes differ, or where a value is NaN.  Relative means to the largest value
    of the same output in `left` over all regular batches, or over the other batch itself where that has larger values:
    what a network makes of zeros may be tiny, and rounding is none of the network's size there.
    """
    absolute = relative = 0.0
    usual = _largest_values(left[:regular])
    for expected, computed in zip(left, right, strict=True):
        if not _have_one_structure(expected, computed):
            return Differences(math.inf, math.inf)
        own = _largest_values([expected])
        for name, value in expected.items():
            if not isinstance(value, Tensor):
                continue
            difference = _largest_difference(value, computed[name])
            if difference == math.inf:
                return Differences(math.inf, math.inf)
            # An output that is 0 but for rounding is judged by the others.
            scale = max(usual.get(name, 0.0), own[name], SMALLEST_SHARE * max([*usual.values(), *own.values()]))
            absolute = max(absolute, difference)
            relative = max(relative, difference / scale if scale else difference)
    return Differences(absolute, relative)


def _largest_values(batches: list[Outputs]) -> dict[str, float]:
    """The largest finite value of each output over several batches."""
    largest: dict[str, float] = defaultdict(float)
    for outputs in batches:
        for name, value in outputs.items():
            if isinstance(value, Tensor):
                finite = (
                    value[value.isfinite()].abs() if value.is_floating_point() else value.to(torch.complex128).abs()
                )
                largest[name] = max(largest[name], finite.max().item() if finite.numel() else 0.0)
    return largest


def _have_one_structure(left: Outputs, right: Outputs) -> bool:
    """Whether two outputs have the same places, tensors of the same shapes there, and the same plain values."""
    if list(left) != list(right):
        return False
    for name, value in left.items():
        other = right[name]
        if isinstance(value, Tensor) != isinstance(other, Tensor):
            return False
        if value.shape != other.shape if isinstance(value, Tensor) else value != other:
            return False
    return True


def _largest_difference(left: Tensor, right: Tensor) -> float:
    """The largest absolute difference; infinite where a value is NaN, or is infinite on one side alone."""
    dtype = torch.complex128 if left.is_complex() or right.is_complex() else torch.float64
    expected, computed = left.to(dtype), right.to(dtype)
    differs = torch.where(expected == computed, 0.0, (expected - computed).abs())  # two infinities are equal
    largest = differs.max().item() if differs.numel() else 0.0
    return math.inf if math.isnan(largest) else largest
