"""The inputs of a comparison: those that a network takes, asked of the network itself before it is compared."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ..errors import ModelError, ShrinkError, describe_error
from ..graph import CallArguments, find_failing_module, use_other_numbers
from .drawing import (
    ALL_VALUES,
    STRIDE,
    Sizes,
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
    #    is, and batches of three, and unusual values, are of smaller images where it takes such.
    def __init__(self, model: nn.Module, example: CallArguments, generator: torch.Generator) -> None:
        self.example = example.map_tensors(lambda value: value.detach().cpu())
        self._generator = generator
        self.uses_uniform_draws = False
        """Whether the network draws random numbers, which are then the same in all runs."""
        self._first: Variant | None = None
        """A batch of one of the most telling values, where it has been drawn."""
        run = _run_as_it_is(model, self.example)
        if run is not None:
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
        smaller = self._draw_smaller_images(values, first)
        regular = self._draw_regular(values, (BATCH_SIZES * rounds)[1 if smaller is None else 2 :], first)
        takes_any_batch = all(variant.kind.startswith("batches") for variant in regular)
        base = batch_sizes(self.example, BATCH_SIZES[0]) if takes_any_batch else {}
        found = [*regular, *self._find_other_sizes(values, base)]
        if smaller is not None:
            return [*found, smaller, *self._find_other_values(_take_sample(smaller, base))]
        drawn = draw_inputs(self.example, base, self._generator, values)
        return [*found, *self._find_other_values(Variant("", drawn, {}, is_regular=False))]

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

    def _find_other_values(self, ordinary: Variant) -> list[Variant]:
        """Unusual values in the place of ordinary ones, of which it may be known what the network makes of them."""
        unusual = make_unusual_values(ordinary.inputs, self._generator)
        together = self._try_together(ordinary, unusual)
        variants = [together]
        if together is None:
            variants = [self._try("other magnitudes", inputs, is_regular=False) for inputs in unusual]
        with_other_numbers = use_other_numbers(ordinary.inputs, float)
        if with_other_numbers is not None:
            variants.append(self._try("other numbers", with_other_numbers, is_regular=False))
        return [variant for variant in variants if variant is not None]

    def _try_together(self, ordinary: Variant, unusual: list[CallArguments]) -> Variant | None:
        """Unusual values as one batch; None where the network mixes samples, or does not take it."""
        # That samples do not mix shows in an ordinary one among them, of which the network makes what it made before.
        if not ordinary.outputs or not unusual or not self._all_follow_batch:
            return None
        variant = self._try("other magnitudes", concatenate([ordinary.inputs, *unusual]), is_regular=False)
        if variant is None or not _begins_with(variant.outputs, ordinary.outputs):
            return None
        return replace(variant, is_apart=True)

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


def _take_sample(batch: Variant, batch_dims: Sizes) -> Variant:
    """The first sample of a batch, with what the network makes of it in the batch; no outputs where they have none."""
    tensors = []
    for place, tensor in enumerate(batch.inputs.tensors):
        tensors.append(tensor[:1] if (place, 0) in batch_dims else tensor)
    outputs = {}
    if len(batch_dims) == len(tensors):  # else a tensor without a batch cannot have other values for each sample
        outputs = {name: value[:1] for name, value in batch.outputs.items() if isinstance(value, Tensor)}
    return replace(batch, inputs=batch.inputs.with_tensors(tensors), outputs=outputs)


def _begins_with(outputs: Outputs, first: Outputs) -> bool:
    """Whether the first sample of a batch has these outputs."""
    if list(outputs) != list(first):
        return False
    for name, expected in first.items():
        found = outputs[name][:1]
        if not expected.is_floating_point() or not expected.numel():
            if not torch.equal(found, expected):
                return False
        elif not torch.allclose(found, expected, rtol=0.0, atol=SAME_SAMPLE * float(expected.abs().max())):
            return False
    return True


def _run_as_it_is(model: nn.Module, example: CallArguments) -> Run | None:
    """A run on the example in float32; None where it does not say what the outputs are like in float64."""
    if any(value.is_floating_point() and value.dtype != torch.float32 for value in model.parameters()):
        return None
    try:
        run = run_copy(copy_as(model, torch.float32), example)
    except Exception:  # whatever a user's forward raises: the run in float64 says what
        return None
    tensors = [value for value in run.outputs.values() if isinstance(value, Tensor)]
    is_finite = all(bool(value.isfinite().all()) for value in tensors)
    return run if is_finite and not run.draws else None


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
