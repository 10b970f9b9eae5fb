"""The inputs of a comparison: those that a network takes, asked of the network itself before it is compared."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ..errors import ModelError, ShrinkError, describe_error
from ..graph import CallArguments, Sizes, find_failing_module, use_other_numbers
from .drawing import (
    ALL_VALUES,
    STRIDE,
    Values,
    batch_sizes,
    concatenate,
    draw_inputs,
    larger_image_sizes,
    make_unusual_values,
    other_sizes_of_classes,
    smaller_image_sizes,
)
from .running import Outputs, Run, copy_as, run_copy

BATCH_SIZES = (1, 3)
SAME_SAMPLE = 1e-9
"""How far a sample's outputs in two batches may be apart, as a part of the largest, where samples do not mix."""


@dataclass(frozen=True)
class Variant:
    """Inputs that a network takes, with what it makes of them."""

    kind: str
    """What is special about them, in words."""
    inputs: CallArguments
    outputs: Outputs
    is_regular: bool
    """Whether their values are ordinary, and their sizes those of the example but for the batch."""
    is_apart: bool = False
    """Whether the samples do not mix, and are of several sizes, so that each is compared by itself."""

    def split(self, outputs: Outputs) -> list[Outputs]:
        """What is compared by itself of outputs for these inputs: all of them, or those of each sample."""
        if not self.is_apart:
            return [outputs]
        samples = len(next(iter(self.outputs.values())))
        shapes = {name: getattr(value, "shape", None) for name, value in outputs.items()}
        if shapes != {name: value.shape for name, value in self.outputs.items()}:
            return [outputs] * samples  # of another network: no sample has this form
        return [{name: value[place : place + 1] for name, value in outputs.items()} for place in range(samples)]


class VariantSearch:
    """Invents inputs, and asks a network which of them it takes.

    Args:
        model: The network that is right.
        example: Arguments that it takes.
        generator: Where the random numbers come from.

    Raises:
        ModelError: The network does not run on the example.
    """

    # 1. A network may refuse another batch, other sizes or random values, and it may take them and make NaN of them.
    #    Then they say nothing about a second network, and the next best ones are tried; at last the example itself.
    # 2. A network that reshapes to a fixed size may take larger images, and make several small ones of each.  A second
    #    network with fewer channels would make another number of them.  So where an output has the batch of the inputs
    #    along its first dimension in the example, it must have it elsewhere.
    # 3. In float64 a network takes several times as long.  So what its outputs are like is asked of the network as it
    #    is, and batches of three, and unusual values, are of smaller images where it takes such.  Where it does not mix
    #    samples, the unusual ones are the other samples of the batches of three.
    def __init__(self, model: nn.Module, example: CallArguments, generator: torch.Generator) -> None:
        self.example = example.map_tensors(lambda value: value.detach().cpu())
        self._generator = generator
        self.uses_uniform_draws = False
        """Whether the network draws random numbers, which are then the same in all runs."""
        self._first: Variant | None = None
        """A batch of one of the most telling values, where it has been drawn."""
        self._original = model
        self._copy_in_32: nn.Module | None = None
        """A copy that has run on the example, where that says what the outputs are like."""
        as_it_is = _run_as_it_is(model, self.example)
        if as_it_is is not None:
            self._copy_in_32, run = as_it_is
            self._model, self.dtype = copy_as(model, torch.float64), torch.float64
            self._look_at(run.outputs)
            self._first = self._draw_first_batch()
        if self._first is None:
            self._model, self.dtype, run = _run_on_example(model, self.example)
            self.uses_uniform_draws = run.draws
            self._look_at(self._outputs_of_example if run.draws else run.outputs)

    def _look_at(self, outputs: Outputs) -> None:
        """Remember what the outputs are like."""
        self._has_infinities = _has_infinities(outputs)
        self._follows_batch = [name for name, value in outputs.items() if _has_batch(value, self.example)]
        self._all_follow_batch = len(self._follows_batch) == len(outputs) > 0

    def copy_in_32(self) -> nn.Module:
        """A copy of the network in float32, of `copy_as`."""
        return self._copy_in_32 or copy_as(self._original, torch.float32)

    @cached_property
    def _outputs_of_example(self) -> Outputs:
        return run_copy(self._model, self.example, uniform_draws=self.uses_uniform_draws).outputs

    def find(self, rounds: int) -> list[Variant]:
        """Find the inputs to compare on.

        Args:
            rounds: How often each batch size is drawn.

        Returns:
            Regular ones first, at least one of them.
        """
        values, first = self._find_values()
        if first is None:
            return [self._make_example_variant()]
        apart = self._find_samples_apart(values, first)
        smaller = None if apart else self._draw_smaller_images(values, first)
        sizes = (BATCH_SIZES * rounds)[2 if apart or smaller is not None else 1 :]
        regular = self._draw_regular(values, sizes, first)
        takes_any_batch = all(variant.kind.startswith("batches") for variant in regular)
        base = batch_sizes(self.example, BATCH_SIZES[0]) if takes_any_batch else {}
        found = [*regular, *self._find_other_sizes(values, base)]
        if apart:
            return [*found, *apart, *self._find_other_numbers(first.inputs)]
        if smaller is not None:
            return [*found, smaller, *self._find_other_values(_take_sample(smaller.inputs, base))]
        return [*found, *self._find_other_values(draw_inputs(self.example, base, self._generator, values))]

    def find_batches(self, sizes: Iterable[int]) -> list[Variant]:
        """Draw one batch of each size.

        Args:
            sizes: Numbers of samples.

        Returns:
            A batch of each size, or none where the network does not take one of them.
        """
        values, first = self._find_values()
        if first is None:
            return []
        drawn = [self._draw(f"batches of {size}", batch_sizes(self.example, size), values) for size in sizes]
        taken = [variant for variant in drawn if variant is not None]
        return taken if len(taken) == len(drawn) else []

    def draw_at_own_sizes(self) -> Variant:
        """Draw inputs of the example's sizes; the example itself where the network takes no other values."""
        values, first = self._find_values()
        drawn = None if first is None else self._draw("the example's sizes", {}, values)
        return drawn or self._make_example_variant()

    def _make_example_variant(self) -> Variant:
        return Variant("the example itself", self.example, self._outputs_of_example, is_regular=True)

    def _find_values(self) -> tuple[Values, Variant | None]:
        """The most telling values that the network takes, and one sample of them, or as many as the example has.

        None in the place of that variant where the network takes the example's values alone.
        """
        if self._first is not None:
            return ALL_VALUES[0], self._first
        smallest = BATCH_SIZES[0]
        options = [(f"batches of {smallest}", batch_sizes(self.example, smallest)), ("the example's sizes", {})]
        for values in ALL_VALUES:
            for kind, sizes in options:
                variant = self._draw(kind, sizes, values)
                if variant is not None:
                    return values, variant
        return ALL_VALUES[-1], None

    def _draw_first_batch(self) -> Variant | None:
        smallest = BATCH_SIZES[0]
        return self._draw(f"batches of {smallest}", batch_sizes(self.example, smallest), ALL_VALUES[0])

    def _find_samples_apart(self, values: Values, first: Variant) -> list[Variant]:
        """Batches of three, of one ordinary sample and two unusual ones each, whose samples are compared one by one.

        They are of smaller images where the network takes such.  There are none where it mixes samples, which shows in
        the ordinary one: the network would make something else of it in either batch.
        """
        base = batch_sizes(self.example, BATCH_SIZES[0])
        if self.dtype != torch.float64 or not first.kind.startswith("batches") or not self._all_follow_batch:
            return []
        if len(base) < len(self.example.tensors):  # a tensor without a batch cannot have other values for each sample
            return []
        smaller = smaller_image_sizes(self.example)
        ordinary = [first.inputs]
        if smaller:
            ordinary.insert(0, draw_inputs(self.example, {**base, **smaller}, self._generator, values))
        for sample in ordinary:
            variants = self._try_apart(sample)
            if variants:
                return variants
        return []

    def _try_apart(self, ordinary: CallArguments) -> list[Variant]:
        unusual = make_unusual_values(ordinary, self._generator)
        if not unusual:
            return []
        near_0, large, uniform, zeros = unusual
        batches = (f"batches of {BATCH_SIZES[1]}", [near_0, large]), ("other magnitudes", [uniform, zeros])
        variants = []
        for kind, samples in batches:
            variant = self._try(kind, concatenate([ordinary, *samples]), is_regular=False)
            if variant is None:
                return []
            variants.append(replace(variant, is_apart=True))
        return variants if _begin_alike(*(variant.outputs for variant in variants)) else []

    def _draw_smaller_images(self, values: Values, first: Variant) -> Variant | None:
        """The larger one of the batches with smaller images; None where the network does not take it."""
        sizes = smaller_image_sizes(self.example)
        if not sizes or not first.kind.startswith("batches") or self.dtype != torch.float64:
            return None
        count = BATCH_SIZES[1]
        return self._draw(
            f"batches of {count}", {**batch_sizes(self.example, count), **sizes}, values, is_regular=False
        )

    def _draw_regular(self, values: Values, sizes: Iterable[int], first: Variant) -> list[Variant]:
        variants: list[Variant | None] = [first]
        for size in sizes:
            drawn = self._draw(f"batches of {size}", batch_sizes(self.example, size), values)
            variants.append(drawn or self._draw("the example's sizes", {}, values))
        regular = [variant for variant in variants if variant is not None]
        return regular or [self._make_example_variant()]

    def _find_other_sizes(self, values: Values, base: Sizes) -> list[Variant]:
        variants = []
        settled = dict(base)
        # An odd number more: a network that takes it shows at once what it makes of larger images and of odd sizes.
        odd = larger_image_sizes(self.example, STRIDE + 1)
        if odd:
            variants.append(self._draw("larger images", {**base, **odd}, values, is_regular=False))
            if variants[0] is not None:
                settled |= odd
            else:
                larger = larger_image_sizes(self.example)
                variants.append(self._draw("larger images", {**base, **larger}, values, is_regular=False))
        # Dimensions of one size, as height and width, change together first.  Where the network accepts none of these
        # sizes, each of the dimensions is changed by itself: they may have been equal by chance.
        for options in other_sizes_of_classes(self.example, settled):
            variants.append(self._draw_first("other sizes", [{**base, **sizes} for sizes in options], values))
            if variants[-1] is not None or not options or len(options[0]) < 2:
                continue
            for dim, size in options[0].items():
                variants.append(self._draw_first("other sizes", [{**base, dim: size}], values))
        return [variant for variant in variants if variant is not None]

    def _find_other_values(self, ordinary: CallArguments) -> list[Variant]:
        """Unusual values in the place of ordinary ones."""
        unusual = make_unusual_values(ordinary, self._generator)
        variants = [self._try("other magnitudes", inputs, is_regular=False) for inputs in unusual]
        return [*(variant for variant in variants if variant is not None), *self._find_other_numbers(ordinary)]

    def _find_other_numbers(self, ordinary: CallArguments) -> list[Variant]:
        with_other_numbers = use_other_numbers(ordinary, float)
        if with_other_numbers is None:
            return []
        variant = self._try("other numbers", with_other_numbers, is_regular=False)
        return [] if variant is None else [variant]

    def _draw_first(self, kind: str, options: Iterable[Sizes], values: Values) -> Variant | None:
        """The first of several sizes that the network takes."""
        for sizes in options:
            variant = self._draw(kind, sizes, values, is_regular=False)
            if variant is not None:
                return variant
        return None

    def _draw(self, kind: str, sizes: Sizes, values: Values, *, is_regular: bool = True) -> Variant | None:
        return self._try(kind, draw_inputs(self.example, sizes, self._generator, values), is_regular=is_regular)

    def _try(self, kind: str, inputs: CallArguments, *, is_regular: bool = True) -> Variant | None:
        """What the network makes of inputs; None where it does not take them."""
        try:
            outputs = run_copy(self._model, inputs, uniform_draws=self.uses_uniform_draws).outputs
        except Exception:  # whatever a network says to inputs that it was not made for
            return None
        is_comparable = self._is_comparable(outputs) and self._keeps_batch(outputs, inputs)
        return Variant(kind, inputs, outputs, is_regular) if is_comparable else None

    def _is_comparable(self, outputs: Outputs) -> bool:
        """Whether the outputs are numbers; they may be infinite where those of the example are."""
        tensors = [value for value in outputs.values() if isinstance(value, Tensor)]
        if self._has_infinities:
            return not any(bool(value.isnan().any()) for value in tensors)
        return all(bool(value.isfinite().all()) for value in tensors)

    def _keeps_batch(self, outputs: Outputs, inputs: CallArguments) -> bool:
        return all(name in outputs and _has_batch(outputs[name], inputs) for name in self._follows_batch)


def _take_sample(batch: CallArguments, batch_dims: Sizes) -> CallArguments:
    """The first sample of a batch."""
    tensors = []
    for place, tensor in enumerate(batch.tensors):
        tensors.append(tensor[:1] if (place, 0) in batch_dims else tensor)
    return batch.with_tensors(tensors)


def _begin_alike(outputs: Outputs, others: Outputs) -> bool:
    """Whether a network made the same of the first samples of two batches."""
    if list(outputs) != list(others):
        return False
    for name, value in outputs.items():
        expected, found = others[name][:1], value[:1]
        if found.shape != expected.shape:
            return False
        if not expected.is_floating_point() or not expected.numel():
            if not torch.equal(found, expected):
                return False
        elif not torch.allclose(found, expected, rtol=0.0, atol=SAME_SAMPLE * float(expected.abs().max())):
            return False
    return True


def _run_as_it_is(model: nn.Module, example: CallArguments) -> tuple[nn.Module, Run] | None:
    """A copy in float32 and its run on the example; None where it does not say what the outputs are like in float64."""
    if any(value.is_floating_point() and value.dtype != torch.float32 for value in model.parameters()):
        return None
    try:
        copied = copy_as(model, torch.float32)
        run = run_copy(copied, example)
    except Exception:  # whatever a user's forward raises: the run in float64 says what
        return None
    tensors = [value for value in run.outputs.values() if isinstance(value, Tensor)]
    is_finite = all(bool(value.isfinite().all()) for value in tensors)
    return (copied, run) if is_finite and not run.draws else None


def _run_on_example(model: nn.Module, example: CallArguments) -> tuple[nn.Module, torch.dtype, Run]:
    """A copy of the network in float64, or in its own type where it does not run in float64, and its run."""
    own_type = next((value.dtype for value in model.parameters() if value.is_floating_point()), torch.float32)
    failure: Exception | None = None
    for dtype in dict.fromkeys((torch.float64, own_type)):
        copied = copy_as(model, dtype)
        try:
            return copied, dtype, run_copy(copied, example)
        except ShrinkError:
            raise
        except Exception as error:  # whatever a user's forward raises
            failure = error
    assert failure is not None
    module = find_failing_module(copied, example)
    place = f", in {module}" if module else ""
    raise ModelError(
        f"{type(model).__name__} itself fails on the example, {example.shapes}{place}: {describe_error(failure)}"
    ) from failure


def _has_infinities(outputs: Outputs) -> bool:
    return any(isinstance(value, Tensor) and bool(value.isinf().any()) for value in outputs.values())


def _has_batch(value: object, inputs: CallArguments) -> bool:
    """Whether an output has the first dimension of the first input."""
    lengths = [len(tensor) for tensor in inputs.tensors if tensor.dim()]
    return isinstance(value, Tensor) and value.dim() > 0 and bool(lengths) and len(value) == lengths[0]
