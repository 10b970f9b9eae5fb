"""The values that are kept: exact, in half precision, or in 8 or 4 bits with a scale for each row.

Those of the coding "posterior" are in `multiples`.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...errors import FileFormatError

Coding = Literal["exact", "float16", "int8", "int4", "posterior"]
CODINGS: tuple[Coding, ...] = get_args(Coding)
LARGEST_STEP = {"int8": 127, "int4": 7}
"""The largest whole number of each coding, the same in both directions."""
HALF_MAX = 65504.0
"""The largest number of half precision."""
HALF_TINY = 2.0**-24
"""The smallest positive number of half precision."""
Values = NDArray[np.float32]
Rows = NDArray[np.intp]


def fits_half(values: Values) -> bool:
    """Whether half precision holds these values: finite, and none too large."""
    return bool(np.isfinite(values).all() and (np.abs(values) <= HALF_MAX).all())


def encode_values(values: Values, rows: Rows, coding: Coding) -> bytes:
    """Code the kept values of a matrix.

    Args:
        values: The entries that are not zero, row by row, shape (kept,).
        rows: The row of each, ascending, shape (kept,).
        coding: "exact" is float32, "float16" is half precision.  "int8" and "int4" write first a scale in half
            precision for each row that has a value, then the values as whole multiples of it; "int4" puts two into a
            byte, the first in the low half.

    Returns:
        The bytes, little-endian.
    """
    if coding == "exact":
        return values.astype("<f4").tobytes()
    if coding == "float16":
        return values.astype("<f2").tobytes()
    used_rows, place = np.unique(rows, return_inverse=True)
    largest, limit = np.zeros(len(used_rows), np.float32), LARGEST_STEP[coding]
    np.maximum.at(largest, place, np.abs(values))
    # Rounded to half precision before it divides: the reader multiplies by the rounded scale.  Rounded up, because a
    # scale that was rounded down would cut off the largest values, by up to a third where half precision is subnormal.
    scales = _round_up_to_half(np.maximum(largest / limit, HALF_TINY))
    steps = np.rint(values / scales.astype(np.float32)[place]).astype(np.int8)
    return scales.tobytes() + (steps.tobytes() if coding == "int8" else _join_halves(steps))


def _round_up_to_half(values: Values) -> NDArray[np.float16]:
    """The smallest numbers of half precision that are no smaller than these, which are positive."""
    nearest = values.astype("<f2")
    next_larger = np.nextafter(nearest, np.float16(np.inf))
    return np.where(nearest.astype(np.float32) < values, next_larger, nearest).astype("<f2")


def decode_values(content: bytes, rows: Rows, coding: Coding) -> Values:
    """The inverse of `encode_values`, less what the coding loses.

    Args:
        content: What `encode_values` has given.
        rows: The row of each value, ascending, shape (kept,).
        coding: The coding that was used.

    Returns:
        The values, shape (kept,).

    Raises:
        FileFormatError: The content is longer or shorter than these values are in this coding.
    """
    number = len(rows)
    used_rows, place = np.unique(rows, return_inverse=True)
    scales_end = 2 * len(used_rows)
    lengths = {
        "exact": 4 * number,
        "float16": 2 * number,
        "int8": scales_end + number,
        "int4": scales_end + (number + 1) // 2,
    }
    if len(content) != lengths[coding]:
        raise FileFormatError(f"{number} values in {coding} take {lengths[coding]} bytes, found {len(content)}")
    if coding == "exact":
        return np.frombuffer(content, "<f4").astype(np.float32)
    if coding == "float16":
        return np.frombuffer(content, "<f2").astype(np.float32)
    scales = np.frombuffer(content[:scales_end], "<f2").astype(np.float32)
    packed = np.frombuffer(content[scales_end:], np.int8)
    steps = packed if coding == "int8" else _split_halves(packed, number)
    return steps.astype(np.float32) * scales[place]


def _join_halves(steps: NDArray[np.int8]) -> bytes:
    """Two numbers of 4 bits in a byte, the first in the low half; an odd last one has a zero above it."""
    halves = np.append(steps, np.zeros(len(steps) % 2, np.int8)) & 15
    return (halves[::2] | (halves[1::2] << 4)).astype(np.uint8).tobytes()


def _split_halves(packed: NDArray[np.int8], number: int) -> NDArray[np.int8]:
    pairs = packed.view(np.uint8)
    halves = np.stack([pairs & 15, pairs >> 4], 1).reshape(-1)[:number].astype(np.int8)
    return np.where(halves > 7, halves - 16, halves).astype(np.int8)  # two's complement in 4 bits
