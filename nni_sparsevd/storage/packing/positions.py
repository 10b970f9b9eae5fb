"""Where a matrix is not zero, near its entropy: which rows and columns are in use, then the block that they span.

The bits are coded by the range coder (Martin 1979) of a library; docs/files.md gives a reader of a few lines.
"""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import FileFormatError

Bits = NDArray[np.bool_]
SCALE = 1 << 16
"""Probabilities are counted in parts of this."""
ALL_ONES = SCALE - 1
"""Stands for bits that are all ones; 0 stands for bits that are all zeros."""
PROBABILITIES = struct.Struct("<3H")


# Why rows, columns and the block are coded one after the other, each with a probability of its own:
#
# 1. An ideal coder spends -log2 p bits on a one and -log2 (1 - p) on a zero, where p is the share of ones.  With one
#    share for the whole matrix, each zero of an empty row would cost as much as a zero between two ones.
# 2. Sparse VD leaves most neurons without any weight.  Telling first which rows and columns hold anything makes an
#    empty row cost a fraction of one bit, and leaves a block in which ones are more frequent.
# 3. The reader learns the size of the block from the rows and columns, so nothing else has to be written.
# 4. A string of bits that are all equal has no entropy, and is not coded at all: its "probability" tells it.


def encode_positions(kept: Bits) -> bytes:
    """Code which entries of a matrix are not zero.

    Args:
        kept: One flag for each entry, shape (rows, columns).

    Returns:
        Three probabilities of 16 bits, then the 32-bit words of the range coder, little-endian.
    """
    import constriction

    rows, columns = np.asarray(kept.any(1)), np.asarray(kept.any(0))
    strings = [rows, columns, kept[rows][:, columns].reshape(-1)]
    probabilities = [_count_probability(string) for string in strings]
    encoder = constriction.stream.queue.RangeEncoder()
    for string, probability in zip(strings, probabilities, strict=True):
        if 0 < probability < ALL_ONES:
            encoder.encode(string.astype(np.int32), _make_coin(probability))
    coded: bytes = encoder.get_compressed().astype("<u4").tobytes()
    return PROBABILITIES.pack(*probabilities) + coded


def decode_positions(content: bytes, shape: tuple[int, int]) -> Bits:
    """The inverse of `encode_positions`, for a matrix of this shape.

    Raises:
        FileFormatError: The content is too short, or is no code at all.
    """
    import constriction

    if len(content) < PROBABILITIES.size or (len(content) - PROBABILITIES.size) % 4:
        raise FileFormatError("positions are cut off")
    for_rows, for_columns, for_block = PROBABILITIES.unpack(content[: PROBABILITIES.size])
    coded = np.frombuffer(content[PROBABILITIES.size :], "<u4").astype(np.uint32)
    decoder = constriction.stream.queue.RangeDecoder(coded)
    try:
        rows = _decode_bits(decoder, shape[0], for_rows)
        columns = _decode_bits(decoder, shape[1], for_columns)
        height, width = int(rows.sum()), int(columns.sum())
        block = _decode_bits(decoder, height * width, for_block)
    except (ValueError, AssertionError, OverflowError) as error:  # what the library says to words that are no code
        raise FileFormatError(f"positions are no code: {error}") from None
    kept = np.zeros(shape, dtype=bool)
    kept[np.ix_(rows, columns)] = block.reshape(height, width)
    return kept


def _decode_bits(decoder: Any, number: int, probability: int) -> Bits:
    if 0 < probability < ALL_ONES:
        return np.asarray(decoder.decode(_make_coin(probability), number), dtype=bool)
    return np.full(number, probability == ALL_ONES)


def _count_probability(bits: Bits) -> int:
    """The share of ones, in parts of 2^16; the two ends are for bits that are all equal."""
    ones = int(bits.sum())
    if ones == 0:
        return 0
    if ones == bits.size:
        return ALL_ONES
    return min(max(round(SCALE * ones / bits.size), 1), ALL_ONES - 1)


def _make_coin(probability: int) -> Any:
    import constriction

    return constriction.stream.model.Bernoulli(probability / SCALE, perfect=False)
