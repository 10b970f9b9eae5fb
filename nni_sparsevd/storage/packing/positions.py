"""Where a matrix is not zero, near its entropy: which rows and columns are in use, then the block that they span."""

import struct

import numpy as np

from ...errors import FileFormatError
from .coins import Bits, decode_bits, encode_strings, make_decoder

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
    rows, columns = np.asarray(kept.any(1)), np.asarray(kept.any(0))
    probabilities, words = encode_strings([rows, columns, kept[rows][:, columns].reshape(-1)])
    return PROBABILITIES.pack(*probabilities) + words


def decode_positions(content: bytes, shape: tuple[int, int]) -> Bits:
    """The inverse of `encode_positions`, for a matrix of this shape.

    Raises:
        FileFormatError: The content is too short, or is no code at all.
    """
    if len(content) < PROBABILITIES.size or (len(content) - PROBABILITIES.size) % 4:
        raise FileFormatError("positions are cut off")
    for_rows, for_columns, for_block = PROBABILITIES.unpack(content[: PROBABILITIES.size])
    decoder = make_decoder(content[PROBABILITIES.size :])
    try:
        rows = decode_bits(decoder, shape[0], for_rows)
        columns = decode_bits(decoder, shape[1], for_columns)
        height, width = int(rows.sum()), int(columns.sum())
        block = decode_bits(decoder, height * width, for_block)
    except (ValueError, AssertionError, OverflowError) as error:  # what the library says to words that are no code
        raise FileFormatError(f"positions are no code: {error}") from None
    kept = np.zeros(shape, dtype=bool)
    kept[np.ix_(rows, columns)] = block.reshape(height, width)
    return kept
