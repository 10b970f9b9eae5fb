"""Files that are whole or absent: written beside their place and renamed.  Tensors as safetensors, never pickled."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import FileFormatError

PARTIAL_SUFFIX = ".part"
"""How the names of files end that are being written."""
DIGEST = "nni_sparsevd.digest"
"""Metadata key of the tensors' digest: safetensors checks its header, not a byte that flips inside a tensor."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file in the same folder, flush it to disk, rename it to `path`.

    Raises `FileFormatError` where the disk is full or the folder cannot be written; `path` is then what it was.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL_SUFFIX)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # temporary files are born private
        os.replace(temporary, path)
    except OSError as error:
        raise FileFormatError(
            f"{path}: cannot be written ({error.strerror}); what was there before is intact"
        ) from error
    finally:  # also when a second Ctrl-C comes while writing
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def delete_partial_files(folder: Path) -> None:
    """Delete what a kill in the middle of `write_bytes` has left in `folder`."""
    for path in folder.glob(f".*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON."""
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON; raises `FileFormatError` naming the file when it is missing or not JSON."""
    return _reading(path, lambda: json.loads(path.read_text()))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file, [] where there is none; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    lines = path.read_text().split("\n")
    for number, line in enumerate(lines):
        try:
            if line:
                rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines) - 1:
                raise FileFormatError(f"{path}: line {number + 1} is not JSON ({error})") from None
    return rows


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors.  Shared memory is written once a name; a negative zero becomes zero."""
    clean = {name: _clean(tensor) for name, tensor in tensors.items()}
    write_bytes(path, save(clean, {**(metadata or {}), DIGEST: _digest(clean)}))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        content: Any = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


def _clean(tensor: Tensor) -> Tensor:
    value = tensor.detach().cpu().contiguous().clone()
    return value + 0 if value.is_floating_point() else value


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a safetensors file.

    Raises `FileFormatError` for a file that is missing, truncated, of another format (a pickle, say), or, where
    `save_tensors` wrote it, altered in any byte of a tensor.
    """

    def read() -> tuple[dict[str, Tensor], dict[str, str]]:
        with safe_open(path, "pt") as file:
            # cloned: tensors of a mapped file lie at odd addresses, where some kernels round differently
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})

    tensors, metadata = _reading(path, read)
    expected = metadata.pop(DIGEST, None)
    if expected is not None and expected != _digest(tensors):
        raise FileFormatError(f"{path}: altered since it was written: its tensors do not match their digest")
    return tensors, metadata


T = TypeVar("T")


def _reading(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except FileNotFoundError:
        raise FileFormatError(f"{path}: no such file") from None
    except SafetensorError as error:
        hint = "; a pickled file is never read: save it as safetensors" if _is_pickle(path) else ""
        raise FileFormatError(f"{path}: not a whole safetensors file ({error}){hint}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path}: not a whole JSON file ({error})") from None
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror or error}") from None


def _is_pickle(path: Path) -> bool:
    """torch.save writes a zip archive, older versions and pickle itself a protocol byte."""
    with open(path, "rb") as file:
        start = file.read(2)
    return start in (b"PK",) or start[:1] == b"\x80"
