"""Values as whole multiples of one step, near their entropy: the coding "posterior", whose steps follow sigma.

A multiple is coded as its sign and its size, and a size as the number of its binary digits and the digits below the
first.  Signs, further digits and the digits of each place are strings of bits with a probability of their own.
"""

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import FileFormatError
from .coins import Bits, decode_bits, encode_strings, make_decoder

MAX_DIGITS = 24
"""Binary digits of a multiple, at most: a float32 has no more."""
HEAD = struct.Struct("<fB")
"""The step in float32, and how many binary digits the largest multiple has."""
Values = NDArray[np.float32]
Multiples = NDArray[np.int64]


def round_to_multiples(values: Values, step: float) -> tuple[Multiples, np.float32]:
    """Round values to multiples of a step.

    Args:
        values: Finite numbers, any shape.
        step: The step; larger where the multiples would otherwise have more than `MAX_DIGITS` digits.

    Returns:
        The multiples, in the shape of `values`, and the step in float32.
    """
    smallest = float(np.abs(values).max(initial=0.0)) / (2**MAX_DIGITS - 1)
    # The next number up, so that rounding the step to float32 makes no multiple too large.
    used = np.nextafter(np.float32(max(step, smallest)), np.float32(math.inf))
    return np.rint(values.astype(np.float64) / float(used)).astype(np.int64), used


def encode_multiples(multiples: Multiples, step: np.float32) -> bytes:
    """Code multiples of a step.

    Args:
        multiples: Whole numbers that are not zero, shape (kept,).
        step: The step.

    Returns:
        Step, number of digits and probabilities, then the words of the range coder, little-endian.
    """
    sizes = np.abs(multiples)
    # The exponent of a whole number as a float is how many binary digits it has.
    digits = np.frexp(sizes.astype(np.float64))[1]
    largest = int(digits.max(initial=1))
    strings: list[Bits] = [multiples < 0]
    strings += [digits[digits >= count] > count for count in range(1, largest)]
    strings += [(sizes[digits > place + 1] >> place & 1).astype(bool) for place in reversed(range(largest - 1))]
    probabilities, words = encode_strings(strings)
    return HEAD.pack(step, largest) + struct.pack(f"<{len(probabilities)}H", *probabilities) + words


def decode_multiples(content: bytes, number: int) -> Values:
    """The inverse of `encode_multiples`, times the step.

    Args:
        content: What `encode_multiples` has given.
        number: How many values there are.

    Returns:
        The values, shape (number,).

    Raises:
        FileFormatError: The content is too short, or is no code at all.
    """
    if len(content) < HEAD.size:
        raise FileFormatError("multiples are cut off")
    step, largest = HEAD.unpack(content[: HEAD.size])
    end = HEAD.size + 2 * (2 * largest - 1)
    if not 1 <= largest <= MAX_DIGITS or not 0 < step < math.inf or len(content) < end or (len(content) - end) % 4:
        raise FileFormatError(f"multiples of {step:g} with {largest} digits do not take {len(content)} bytes")
    probabilities = iter(struct.unpack(f"<{2 * largest - 1}H", content[HEAD.size : end]))
    decoder = make_decoder(content[end:])
    try:
        signs, sizes = _decode_strings(lambda count: decode_bits(decoder, count, next(probabilities)), number, largest)
    except (ValueError, AssertionError, OverflowError) as error:  # what the library says to words that are no code
        raise FileFormatError(f"multiples are no code: {error}") from None
    return np.where(signs, -sizes, sizes).astype(np.float32) * np.float32(step)


def _decode_strings(read: Callable[[int], Bits], number: int, largest: int) -> tuple[Bits, NDArray[Any]]:
    """Signs and sizes, from a function that reads the next string of so many bits."""
    signs = read(number)
    digits = np.ones(number, np.int64)
    for count in range(1, largest):
        at_least = np.flatnonzero(digits == count)
        digits[at_least] += read(len(at_least))
    sizes = np.int64(1) << (digits - 1)
    for place in reversed(range(largest - 1)):
        longer = np.flatnonzero(digits > place + 1)
        sizes[longer] |= read(len(longer)).astype(np.int64) << place
    return signs, sizes
