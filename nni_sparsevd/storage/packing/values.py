"""The values that are kept: exact, in half precision, or in 8 or 4 bits with a scale for each row."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...errors import FileFormatError

Coding = Literal["exact", "float16", "int8", "int4"]
CODINGS: tuple[Coding, ...] = get_args(Coding)
LARGEST = {"int8": 127, "int4": 7}
HALF_MAX = 65504.0
Values = NDArray[np.float32]
Rows = NDArray[np.intp]


def fits_half(values: Values) -> bool:
    """Whether half precision holds them: finite, and none too large."""
    return bool(np.isfinite(values).all() and (np.abs(values) <= HALF_MAX).all())


def encode_values(values: Values, rows: Rows, coding: Coding) -> bytes:
    """`values` of the kept entries and the row of each, both of the shape (kept,), rows ascending.

    With a scale a row: first the scales in half precision, one for each row that has a value, then the values as whole
    multiples of them; two a byte with 4 bits, the first in the low half.
    """
    if coding == "exact":
        return values.astype("<f4").tobytes()
    if coding == "float16":
        return values.astype("<f2").tobytes()
    used, place = np.unique(rows, return_inverse=True)
    largest, limit = np.zeros(len(used), np.float32), LARGEST[coding]
    np.maximum.at(largest, place, np.abs(values))
    scales = np.maximum(largest / limit, 2.0**-24).astype("<f2")  # the smallest number of half precision
    steps = np.clip(np.rint(values / scales.astype(np.float32)[place]), -limit, limit).astype(np.int8)
    return scales.tobytes() + (steps.tobytes() if coding == "int8" else _pairs(steps))


def decode_values(content: bytes, rows: Rows, coding: Coding) -> Values:
    """The inverse, less what the coding loses; raises `FileFormatError` for another length than it must have."""
    count, (found, place) = len(rows), np.unique(rows, return_inverse=True)
    used = len(found)
    expected = {"exact": 4 * count, "float16": 2 * count, "int8": 2 * used + count, "int4": 2 * used + -(-count // 2)}
    if len(content) != expected[coding]:
        raise FileFormatError(f"{count} values in {coding} take {expected[coding]} bytes, found {len(content)}")
    if coding == "exact":
        return np.frombuffer(content, "<f4").astype(np.float32)
    if coding == "float16":
        return np.frombuffer(content, "<f2").astype(np.float32)
    scales = np.frombuffer(content[: 2 * used], "<f2").astype(np.float32)
    packed = np.frombuffer(content[2 * used :], np.int8)
    steps = packed if coding == "int8" else _apart(packed, count)
    return steps.astype(np.float32) * scales[place]


def _pairs(steps: NDArray[np.int8]) -> bytes:
    halves = np.append(steps, np.zeros(len(steps) % 2, np.int8)) & 15
    return (halves[::2] | (halves[1::2] << 4)).astype(np.uint8).tobytes()


def _apart(packed: NDArray[np.int8], count: int) -> NDArray[np.int8]:
    bytes_ = packed.view(np.uint8)
    halves = np.stack([bytes_ & 15, bytes_ >> 4], 1).reshape(-1)[:count].astype(np.int8)
    return np.where(halves > 7, halves - 16, halves).astype(np.int8)
