"""Tensors to bytes and back: a compressed table of contents, then each tensor's positions and values."""

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import FileFormatError
from .positions import decode_positions, encode_positions
from .values import CODINGS, Coding, decode_values, encode_values, fits_half

RAW = {f"raw {str(kind).removeprefix('torch.')}": kind
       for kind in (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
                    torch.uint8, torch.bool)}  # fmt: skip
"""Types that are kept byte for byte; float32 is coded."""
HEADER_LIMIT = 1 << 26
"""Bytes of the table of contents, unpacked."""
EXPANSION = 1 << 12
"""Numbers that a byte may stand for, at most: a file that claims more is no network, but an attack on memory."""


@dataclass(frozen=True)
class _Row:
    """Of the table of contents."""

    name: str
    shape: tuple[int, ...]
    kind: str
    lengths: tuple[int, int]
    """Bytes of positions and of values."""


def pack(tensors: Mapping[str, Tensor], coding: Coding, extra: Mapping[str, Any]) -> bytes:
    """Write `tensors`, and `extra`, which JSON can hold.

    Weights, of two dimensions and more, have their values in `coding`; where that is not exact, the other numbers are
    in half precision.  What that cannot hold stays exact.  A negative zero becomes zero.

    Raises `FileFormatError` for so little in so much that `unpack` would refuse it.
    """
    table, contents = [], []
    for name, tensor in tensors.items():
        value = tensor.detach().cpu()
        kind, positions, values = _encode(value, coding)
        table.append([name, list(value.shape), kind, len(positions), len(values)])
        contents += [positions, values]
    header = zlib.compress(json.dumps({**extra, "tensors": table}, separators=(",", ":")).encode(), 9)
    content = b"".join([struct.pack("<I", len(header)), header, *contents])
    if sum(tensor.numel() for tensor in tensors.values()) > EXPANSION * len(content):
        raise FileFormatError(f"{len(content)} bytes would stand for over {EXPANSION} numbers each; shrink it first")
    return content


def unpack(content: memoryview) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """(what `pack` was given as `extra`, the tensors one after the other).

    Raises `FileFormatError` for anything that `pack` has not written; nothing is believed that could cost more memory
    than `EXPANSION` numbers a byte.
    """
    header, start = _header(content)
    table = header.pop("tensors", None)
    if not isinstance(table, list):
        raise FileFormatError("the table of contents lists no tensors")
    rows = [_row(row) for row in table]
    if sum(math.prod(row.shape) for row in rows) > EXPANSION * len(content):
        raise FileFormatError(f"claims to hold more than {EXPANSION} numbers a byte")
    if start + sum(sum(row.lengths) for row in rows) != len(content) or len({row.name for row in rows}) != len(rows):
        raise FileFormatError("the table of contents does not fit the file")
    return header, _tensors(rows, content[start:])


def _tensors(rows: list[_Row], content: memoryview) -> Iterator[tuple[str, Tensor]]:
    for row in rows:
        positions, values = content[: row.lengths[0]], content[row.lengths[0] : sum(row.lengths)]
        try:
            yield row.name, _decode(bytes(positions), bytes(values), row.shape, row.kind)
        except FileFormatError as error:
            raise FileFormatError(f"{row.name}: {error}") from None
        content = content[sum(row.lengths) :]


def _header(content: memoryview) -> tuple[dict[str, Any], int]:
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


def _row(row: Any) -> _Row:
    match row:
        case [str(name), list(shape), str(kind), *lengths] if len(shape) < 9 and len(lengths) == 2:
            if all(type(size) is int and 0 <= size < 1 << 40 for size in (*shape, *lengths)):
                return _Row(name, tuple(shape), kind, (lengths[0], lengths[1]))
    raise FileFormatError(f"the table of contents has the row {str(row)[:80]}")


def _encode(value: Tensor, coding: Coding) -> tuple[str, bytes, bytes]:
    """(kind, positions, values)."""
    if value.dtype != torch.float32:
        kind = f"raw {str(value.dtype).removeprefix('torch.')}"
        if kind not in RAW:
            raise FileFormatError(f"tensors of {value.dtype} cannot be packed")
        return kind, b"", value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    matrix = value.contiguous().numpy().reshape(_rows_and_columns(tuple(value.shape)))
    kept = matrix != 0
    values, rows = matrix[kept], np.nonzero(kept)[0]
    chosen = coding if value.dim() > 1 or coding == "exact" else "float16"
    chosen = chosen if fits_half(values) else "exact"
    return chosen, encode_positions(kept), encode_values(values, rows, chosen)


def _decode(positions: bytes, values: bytes, shape: tuple[int, ...], kind: str) -> Tensor:
    if kind in RAW:
        count = math.prod(shape)
        if positions or len(values) != count * RAW[kind].itemsize:
            raise FileFormatError(f"{count} numbers, {kind}, do not take {len(positions)} and {len(values)} bytes")
        return torch.tensor(np.frombuffer(values, np.uint8)).view(RAW[kind]).reshape(shape)
    coding = next((one for one in CODINGS if one == kind), None)
    if coding is None:
        raise FileFormatError(f"is coded as {kind!r}, which this release does not know")
    matrix = np.zeros(_rows_and_columns(shape), np.float32)
    kept = decode_positions(positions, matrix.shape)
    matrix[kept] = decode_values(values, np.nonzero(kept)[0], coding)
    return torch.from_numpy(matrix).reshape(shape)


def _rows_and_columns(shape: tuple[int, ...]) -> tuple[int, int]:
    """The first dimension, or one row for a vector, and all others."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
