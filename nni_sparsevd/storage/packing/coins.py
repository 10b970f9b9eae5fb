"""Strings of bits in a range coder, each with one probability of a one: what positions and multiples are made of.

The range coder (Martin 1979) is that of a library; docs/files.md gives a reader of a few lines.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.bool_]
SCALE = 1 << 16
"""Probabilities are counted in parts of this."""
ALL_ONES = SCALE - 1
"""Stands for bits that are all ones; 0 stands for bits that are all zeros.  Neither is coded: the number tells it."""


def count_probability(bits: Bits) -> int:
    """The share of ones, in parts of 2^16; the two ends are for bits that are all equal."""
    ones = int(bits.sum())
    if ones == 0:
        return 0
    if ones == bits.size:
        return ALL_ONES
    return min(max(round(SCALE * ones / bits.size), 1), ALL_ONES - 1)


def encode_strings(strings: list[Bits]) -> tuple[list[int], bytes]:
    """Code strings of bits one after the other.

    Returns:
        The probability of each, and the 32-bit words of the range coder, little-endian.
    """
    import constriction

    probabilities = [count_probability(string) for string in strings]
    encoder = constriction.stream.queue.RangeEncoder()
    for string, probability in zip(strings, probabilities, strict=True):
        if 0 < probability < ALL_ONES:
            encoder.encode(string.astype(np.int32), _make_coin(probability))
    words: bytes = encoder.get_compressed().astype("<u4").tobytes()
    return probabilities, words


def make_decoder(words: bytes) -> Any:
    """Make a range decoder of little-endian 32-bit words."""
    import constriction

    return constriction.stream.queue.RangeDecoder(np.frombuffer(words, "<u4").astype(np.uint32))


def decode_bits(decoder: Any, number: int, probability: int) -> Bits:
    """The next string of a decoder.

    Raises:
        ValueError, AssertionError, OverflowError: What the library says to words that are no code.
    """
    if 0 < probability < ALL_ONES:
        return np.asarray(decoder.decode(_make_coin(probability), number), dtype=bool)
    return np.full(number, probability == ALL_ONES)


def _make_coin(probability: int) -> Any:
    import constriction

    return constriction.stream.model.Bernoulli(probability / SCALE, perfect=False)
