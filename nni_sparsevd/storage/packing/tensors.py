"""Tensors to bytes and back: a compressed table of contents, then each tensor's positions and values."""

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import FileFormatError
from .multiples import decode_multiples, encode_multiples, round_to_multiples
from .positions import decode_positions, encode_positions
from .values import CODINGS, Coding, decode_values, encode_values, fits_half

RAW_TYPES = (
    torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    torch.bool,
)  # fmt: skip
"""Types that are kept byte for byte; float32 is coded."""
RAW = {f"raw {str(dtype).removeprefix('torch.')}": dtype for dtype in RAW_TYPES}
HEADER_LIMIT = 1 << 26
"""Bytes of the table of contents, unpacked."""
EXPANSION = 1 << 12
"""Numbers that a byte may stand for, at most: a file that claims more is no network, but an attack on memory."""
MAX_DIMENSIONS = 8
MAX_SIZE = 1 << 40
"""Upper limit of any size and any length in the table of contents: their products stay far from overflow."""


@dataclass(frozen=True)
class _Row:
    """A row of the table of contents."""

    name: str
    shape: tuple[int, ...]
    kind: str
    """A coding, or "raw TYPE"."""
    position_bytes: int
    value_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.position_bytes + self.value_bytes


def pack(
    tensors: Mapping[str, Tensor],
    coding: Coding,
    extra: Mapping[str, Any],
    steps: Mapping[str, float] = MappingProxyType({}),
) -> bytes:
    """Write tensors in few bytes: only what is not zero.

    Weights, which have two dimensions or more, have their values in `coding`; if that is not exact, all other float32
    numbers are in half precision.  A tensor that holds what half precision cannot stays exact.  A negative zero becomes
    zero.

    Args:
        tensors: Name -> tensor.
        coding: How the values of weights are written.
        extra: What else the table of contents holds, as JSON can hold it.
        steps: With "posterior", name of a weight -> what its values are multiples of; weights without a step are in
            half precision.

    Returns:
        The bytes, in the form that docs/files.md describes.

    Raises:
        FileFormatError: The tensors hold so little that `unpack` would refuse the file, or are of another type.
    """
    table, contents = [], []
    for name, tensor in tensors.items():
        value = tensor.detach().cpu()
        kind, positions, values = _encode(value, coding, steps.get(name))
        table.append([name, list(value.shape), kind, len(positions), len(values)])
        contents += [positions, values]
    header = zlib.compress(json.dumps({**extra, "tensors": table}, separators=(",", ":")).encode(), 9)
    content = b"".join([struct.pack("<I", len(header)), header, *contents])
    if sum(tensor.numel() for tensor in tensors.values()) > EXPANSION * len(content):
        raise FileFormatError(f"{len(content)} bytes would stand for over {EXPANSION} numbers each; shrink it first")
    return content


def unpack(content: memoryview) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """Read what `pack` has written.

    Args:
        content: The bytes.

    Returns:
        What `pack` was given as `extra`, and the names and tensors, made one after the other.

    Raises:
        FileFormatError: `pack` has not written this.  For a tensor that is damaged, when its turn comes.
    """
    # A file from somewhere may have been made to do harm, so nothing in it is believed that could cost memory:
    #
    # 1. The table of contents is unpacked up to a limit.  A kilobyte of zlib can stand for a megabyte of zeros.
    # 2. What it claims is added up before the first tensor is made, and compared with the length of the file.
    # 3. Lengths have to fill the file exactly, and names are unique: no byte is read twice, and none is left over.
    header, start = _read_header(content)
    table = header.pop("tensors", None)
    if not isinstance(table, list):
        raise FileFormatError("the table of contents lists no tensors")
    rows = [_read_row(row) for row in table]
    if sum(math.prod(row.shape) for row in rows) > EXPANSION * len(content):
        raise FileFormatError(f"claims to hold more than {EXPANSION} numbers a byte")
    names = {row.name for row in rows}
    if start + sum(row.total_bytes for row in rows) != len(content) or len(names) != len(rows):
        raise FileFormatError("the table of contents does not fit the file")
    return header, _read_tensors(rows, content[start:])


def _read_tensors(rows: list[_Row], content: memoryview) -> Iterator[tuple[str, Tensor]]:
    for row in rows:
        positions, values = content[: row.position_bytes], content[row.position_bytes : row.total_bytes]
        try:
            yield row.name, _decode(bytes(positions), bytes(values), row.shape, row.kind)
        except FileFormatError as error:
            raise FileFormatError(f"{row.name}: {error}") from None
        content = content[row.total_bytes :]


def _read_header(content: memoryview) -> tuple[dict[str, Any], int]:
    """The table of contents, and where it ends."""
    if len(content) < 4:
        raise FileFormatError("is cut off")
    (length,) = struct.unpack("<I", content[:4])
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(bytes(content[4 : 4 + length]), HEADER_LIMIT)
        header = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise FileFormatError(f"its table of contents is damaged: {error}") from None
    if not reader.eof or not isinstance(header, dict):
        raise FileFormatError("its table of contents is cut off")
    return header, 4 + length


def _read_row(row: Any) -> _Row:
    match row:
        case [str(name), list(shape), str(kind), position_bytes, value_bytes] if len(shape) <= MAX_DIMENSIONS:
            if all(_is_size(size) for size in (*shape, position_bytes, value_bytes)):
                return _Row(name, tuple(shape), kind, position_bytes, value_bytes)
    raise FileFormatError(f"the table of contents has the row {str(row)[:80]}")


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_SIZE


def _encode(value: Tensor, coding: Coding, step: float | None) -> tuple[str, bytes, bytes]:
    """(kind, positions, values) of one tensor."""
    if value.dtype != torch.float32:
        kind = f"raw {str(value.dtype).removeprefix('torch.')}"
        if kind not in RAW:
            raise FileFormatError(f"tensors of {value.dtype} cannot be packed")
        return kind, b"", value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    matrix = value.contiguous().numpy().reshape(_rows_and_columns(tuple(value.shape)))
    if coding == "posterior" and step is not None and np.isfinite(matrix).all():
        multiples, used_step = round_to_multiples(matrix, step)
        kept = multiples != 0
        return coding, encode_positions(kept), encode_multiples(multiples[kept], used_step)
    kept = matrix != 0
    values, rows = matrix[kept], np.nonzero(kept)[0]
    # Biases and norms are few.  A step of their largest value would cost accuracy, and half precision hardly any bytes.
    has_own_coding = (value.dim() > 1 and coding != "posterior") or coding == "exact"
    chosen = coding if has_own_coding else "float16"
    if not fits_half(values):
        chosen = "exact"
    return chosen, encode_positions(kept), encode_values(values, rows, chosen)


def _decode(positions: bytes, values: bytes, shape: tuple[int, ...], kind: str) -> Tensor:
    if kind in RAW:
        number = math.prod(shape)
        if positions or len(values) != number * RAW[kind].itemsize:
            raise FileFormatError(f"{number} numbers, {kind}, do not take {len(positions)} and {len(values)} bytes")
        return torch.tensor(np.frombuffer(values, np.uint8)).view(RAW[kind]).reshape(shape)
    if kind not in CODINGS:
        raise FileFormatError(f"is coded as {kind!r}, which this release does not know")
    matrix = np.zeros(_rows_and_columns(shape), np.float32)
    kept = decode_positions(positions, matrix.shape)
    if kind == "posterior":
        matrix[kept] = decode_multiples(values, int(kept.sum()))
    else:
        matrix[kept] = decode_values(values, np.nonzero(kept)[0], kind)
    return torch.from_numpy(matrix).reshape(shape)


def _rows_and_columns(shape: tuple[int, ...]) -> tuple[int, int]:
    """The first dimension, or one row for a vector, and all others."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
