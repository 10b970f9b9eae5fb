"""Where a matrix is not zero, near its entropy: which rows and columns are in use, then the block that they span.

The bits are coded by the range coder (Martin 1979) of a library; docs/files.md gives a reader of a few lines.  Rows and
columns that hold nothing, which is what Sparse VD leaves of most neurons, cost a fraction of a bit each.
"""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import FileFormatError

Bits = NDArray[np.bool_]
ONE = 1 << 16
"""Probabilities are counted in parts of this."""
ALL = ONE - 1
"""Stands for bits that are all ones; 0 for bits that are all zeros."""
CHANCES = struct.Struct("<3H")


def encode_positions(kept: Bits) -> bytes:
    """`kept` has the shape (rows, columns): three probabilities of 16 bits, then the words of the range coder."""
    import constriction

    rows, columns = np.asarray(kept.any(1)), np.asarray(kept.any(0))
    parts = [rows, columns, kept[rows][:, columns].reshape(-1)]
    chances = [_chance(part) for part in parts]
    encoder = constriction.stream.queue.RangeEncoder()
    for part, chance in zip(parts, chances, strict=True):
        if 0 < chance < ALL:
            encoder.encode(part.astype(np.int32), _model(chance))
    words: bytes = encoder.get_compressed().astype("<u4").tobytes()
    return CHANCES.pack(*chances) + words


def decode_positions(content: bytes, shape: tuple[int, int]) -> Bits:
    """The inverse; raises `FileFormatError` for content that is too short or no code at all."""
    import constriction

    if len(content) < CHANCES.size or (len(content) - CHANCES.size) % 4:
        raise FileFormatError("positions are cut off")
    chances = CHANCES.unpack(content[: CHANCES.size])
    words = np.frombuffer(content[CHANCES.size :], "<u4").astype(np.uint32)
    decoder = constriction.stream.queue.RangeDecoder(words)

    def part(size: int, chance: int) -> Bits:
        if 0 < chance < ALL:
            return np.asarray(decoder.decode(_model(chance), size), dtype=bool)
        return np.full(size, chance == ALL)

    try:
        rows, columns = part(shape[0], chances[0]), part(shape[1], chances[1])
        block = part(int(rows.sum()) * int(columns.sum()), chances[2])
    except (ValueError, AssertionError, OverflowError) as error:
        raise FileFormatError(f"positions are no code: {error}") from None
    kept = np.zeros(shape, dtype=bool)
    kept[np.ix_(rows, columns)] = block.reshape(int(rows.sum()), int(columns.sum()))
    return kept


def _chance(bits: Bits) -> int:
    """Of a one, in parts of 2^16; where all bits are equal, nothing is coded."""
    ones = int(bits.sum())
    if ones in (0, bits.size):
        return ALL if ones else 0
    return min(max(round(ONE * ones / bits.size), 1), ALL - 1)


def _model(chance: int) -> Any:
    import constriction

    return constriction.stream.model.Bernoulli(chance / ONE, perfect=False)
