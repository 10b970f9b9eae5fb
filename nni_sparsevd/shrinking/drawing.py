"""Inputs that are invented for a comparison: other values than those of the example, and other sizes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..graph import CallArguments, InputDim, Sizes, resize_inputs
from .running import is_inexact

STRIDE = 32
"""Pixels of a side: a multiple of most strides.  Images are also tried larger by as much, and in sizes of so many."""
SMALL, LARGE = 1e-3, 1e3
"""Factors on the numbers of unusual inputs."""


@dataclass(frozen=True)
class Values:
    """Where the values of invented inputs come from."""

    numbers: Literal["normal", "positive", "near the example"]
    """Numbers of a normal distribution, between 0 and 1, or within a half to one and a half of the example's."""
    picks_integers: bool
    """Whether whole numbers and flags are picked at random from those of the example; else they are the example's."""


# The most telling values first: a network may take no others than positive ones, as a logarithm does, or no other whole
# numbers than the example's, as sorted lengths.
ALL_VALUES: tuple[Values, ...] = (
    Values("normal", True), Values("positive", True), Values("near the example", True),
    Values("normal", False), Values("positive", False), Values("near the example", False),
)  # fmt: skip


def draw_inputs(
    example: CallArguments, sizes: Sizes, generator: torch.Generator, values: Values = ALL_VALUES[0]
) -> CallArguments:
    """Draw random inputs.

    Args:
        example: Arguments whose tensors, but for `sizes`, have the shapes that are drawn.  What is no tensor stays.
        sizes: Sizes that differ from those of the example.
        generator: Where the random numbers come from.
        values: Which values are drawn.

    Returns:
        Arguments on the CPU, their numbers in double precision.
    """
    resized = resize_inputs(tuple(tensor.detach().cpu() for tensor in example.tensors), sizes)
    return example.with_tensors([_draw_tensor(tensor, generator, values) for tensor in resized])


def _draw_tensor(like: Tensor, generator: torch.Generator, values: Values) -> Tensor:
    if not is_inexact(like):
        if not values.picks_integers:
            return like.clone()
        return like.flatten()[torch.randint(like.numel(), like.shape, generator=generator)]
    dtype = torch.complex128 if like.is_complex() else torch.float64
    if values.numbers == "normal":
        return torch.randn(like.shape, generator=generator, dtype=dtype)
    uniform = torch.rand(like.shape, generator=generator, dtype=dtype)
    return uniform if values.numbers == "positive" else like.to(dtype) * (0.5 + uniform)


def batch_sizes(example: CallArguments, batch_size: int) -> dict[InputDim, int]:
    """The sizes of a batch: those of the first dimension, of the first tensor and of all that agree with it.

    Args:
        example: Arguments of a call.
        batch_size: How many samples the batch has.

    Returns:
        Sizes for `draw_inputs`.
    """
    lengths = [(place, len(tensor)) for place, tensor in enumerate(example.tensors) if tensor.dim()]
    return {(place, 0): batch_size for place, length in lengths if length == lengths[0][1]}


def larger_image_sizes(example: CallArguments, pixels: int = STRIDE) -> dict[InputDim, int]:
    """The sizes of larger images; empty where no input is an image.

    Args:
        example: Arguments of a call.
        pixels: By how much each side is larger.

    Returns:
        Sizes for `draw_inputs`.
    """
    return {dim: size + pixels for dim, size in _find_sides(example).items()}


def smaller_image_sizes(example: CallArguments) -> dict[InputDim, int]:
    """The sizes of images of about half the side, a multiple of most strides.

    Args:
        example: Arguments of a call.

    Returns:
        Sizes for `draw_inputs`; empty where no input is an image, or one is not larger than that.
    """
    sizes = {dim: max(1, round(size / 2 / STRIDE)) * STRIDE for dim, size in _find_sides(example).items()}
    return sizes if all(sizes[dim] < size for dim, size in _find_sides(example).items()) else {}


def _find_sides(example: CallArguments) -> dict[InputDim, int]:
    """Height and width of every image."""
    sides: dict[InputDim, int] = {}
    for place, tensor in enumerate(example.tensors):
        if tensor.dim() == 4 and tensor.is_floating_point():
            sides |= {(place, dim): tensor.shape[dim] for dim in (2, 3)}
    return sides


def other_sizes_of_classes(example: CallArguments, settled: Sizes) -> Iterator[list[dict[InputDim, int]]]:
    """Other sizes for all dimensions that have one size, which may belong together: height and width, or nodes.

    Args:
        example: Arguments of a call.
        settled: Dimensions that have other sizes already.

    Yields:
        For each size, what to try until the network takes it.
    """
    dims: dict[int, list[InputDim]] = {}
    for place, tensor in enumerate(example.tensors):
        for dim, size in enumerate(tensor.shape):
            if (place, dim) not in settled:
                dims.setdefault(size, []).append((place, dim))
    for size, together in sorted(dims.items()):
        others = [other for other in (size + 1, 2 * size, size - 1) if other > 0]
        yield [dict.fromkeys(together, other) for other in others]


def make_unusual_values(arguments: CallArguments, generator: torch.Generator) -> list[CallArguments]:
    """Make the same arguments with numbers near 0, large ones, one number everywhere, and zeros.

    Args:
        arguments: Arguments that `draw_inputs` has drawn.
        generator: Where that one number comes from.

    Returns:
        Four arguments; none where no tensor holds numbers that are not whole.
    """
    if not any(tensor.is_floating_point() for tensor in arguments.tensors):
        return []
    number = float(torch.randn((), generator=generator))
    return [
        _map_numbers(arguments, lambda value: SMALL * value),
        _map_numbers(arguments, lambda value: LARGE * value),
        _map_numbers(arguments, lambda value: torch.full_like(value, number)),
        _map_numbers(arguments, torch.zeros_like),
    ]


def concatenate(samples: Sequence[CallArguments]) -> CallArguments:
    """Make one batch of several arguments.

    Args:
        samples: Arguments whose tensors agree but for their first dimension, that of the batch.

    Returns:
        The first arguments with the tensors of all along that dimension.
    """
    tensors = zip(*(sample.tensors for sample in samples), strict=True)
    return samples[0].with_tensors([torch.cat(parts) for parts in tensors])


def _map_numbers(arguments: CallArguments, function: Callable[[Tensor], Tensor]) -> CallArguments:
    return arguments.map_tensors(lambda value: function(value) if value.is_floating_point() else value)
