"""Files that are whole or absent: written under another name, then renamed.  Tensors as safetensors, never pickled."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import FileFormatError, describe_error

PARTIAL_SUFFIX = ".part"
"""Suffix of temporary files, and of folders for them, while something is written."""
DIGEST = "nni_sparsevd.digest"
"""Metadata key of the digest of all tensors: safetensors checks its header, but no byte inside a tensor."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: to a temporary file in the same folder, flushed to disk, then renamed.

    Args:
        path: The file; its folder is made where it is missing.
        content: What to write.

    Raises:
        FileFormatError: The disk is full, or the folder cannot be written. The file is then what it was.
    """
    temporary = None
    try:
        with _name_unwritable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL_SUFFIX)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # temporary files are born private
            os.replace(temporary, path)
    finally:  # a second Ctrl-C while writing must not leave the temporary file, either
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def replace_when_whole(path: Path) -> Iterator[Path]:
    """Have a file or folder made by others, whole or not at all.

    Args:
        path: The file or folder; the folder that it stands in is made where it is missing.

    Yields:
        A place beside `path` under its own name, where nothing is yet; it is moved to `path` when all went well.

    Raises:
        FileFormatError: It cannot be written there. What was there before is then intact.
    """
    # Beside its place, as only a move within a file system is done at once; and in a temporary folder of its own, so
    # that there is something left to clean up when it has moved.
    with contextlib.ExitStack() as stack:
        with _name_unwritable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            place = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL_SUFFIX)
            folder = stack.enter_context(place)
        unfinished = Path(folder) / path.name
        yield unfinished
        with _name_unwritable(path):
            os.replace(unfinished, path)


@contextlib.contextmanager
def _name_unwritable(path: Path) -> Iterator[None]:
    """Turn what the system says into an error that names the file or folder which cannot be written."""
    try:
        yield
    except OSError as error:
        raise FileFormatError(
            f"{path}: cannot be written ({error.strerror or error}); what was there before is intact"
        ) from error


def delete_partial_files(folder: Path) -> None:
    """Delete what a kill in the middle of writing has left in a folder and those below: temporary files and folders."""
    # A list, because what lies in a temporary folder goes with it, before a walk would come there.
    for path in list(folder.rglob(f".*{PARTIAL_SUFFIX}")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, whole or not at all.

    Args:
        path: The file.
        value: What `json` can write.

    Raises:
        FileFormatError: The file cannot be written.
    """
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        What the file holds.

    Raises:
        FileFormatError: The file is missing or is not JSON.
    """
    return _read_or_raise(path, lambda: json.loads(path.read_text()))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a metrics file, one JSON object per line.

    Args:
        path: The file.

    Returns:
        The rows; none where there is no file. A last line that a kill has cut off is left out.

    Raises:
        FileFormatError: Another line is not JSON, or the file cannot be read.
    """
    if not path.exists():
        return []
    rows = []
    lines = _read_or_raise(path, path.read_bytes).split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise FileFormatError(f"{path}: line {number} is not JSON ({error})") from None
    return rows


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all.

    Args:
        tensors: Name -> tensor. Tensors that share memory are written under each name; a negative zero becomes zero.
        path: The file.
        metadata: Key -> text, for the header of the file.

    Raises:
        FileFormatError: The file cannot be written.
    """
    clean = {name: _clean(tensor) for name, tensor in tensors.items()}
    write_bytes(path, save(clean, {**(metadata or {}), DIGEST: _compute_digest(clean)}))


def _compute_digest(tensors: Mapping[str, Tensor]) -> str:
    digest = blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        content: Any = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


def _clean(tensor: Tensor) -> Tensor:
    """A copy on the CPU, in memory of its own, without negative zeros."""
    value = tensor.detach().cpu().contiguous().clone()
    return value + 0 if value.is_floating_point() else value


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a safetensors file.

    Args:
        path: The file.

    Returns:
        Name -> tensor, and the metadata of the header.

    Raises:
        FileFormatError: The file is missing, truncated or of another format (a pickle, say), or a byte of a tensor has
            changed since `save_tensors` wrote it.
    """

    def read() -> tuple[dict[str, Tensor], dict[str, str]]:
        with safe_open(path, "pt") as file:
            # Cloned, because tensors of a mapped file lie at odd addresses, where some kernels round differently.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})

    tensors, metadata = _read_or_raise(path, read)
    expected = metadata.pop(DIGEST, None)
    if expected is not None and expected != _compute_digest(tensors):
        raise FileFormatError(f"{path}: altered since it was written: its tensors do not match their digest")
    return tensors, metadata


def load_pickled_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file of `torch.save`; anything else in it is refused, and no code of it is run.

    Args:
        path: The file: a state dict, or one under "state_dict" or "model".

    Returns:
        Name -> tensor, without the "module." of a wrapper for several devices.

    Raises:
        FileFormatError: The file is missing, damaged, or holds more than tensors, numbers and texts.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileFormatError(f"{path}: no such file") from None
    except Exception as error:  # the unpickler raises errors of many types
        raise FileFormatError(
            f"{path}: not a file of tensors only, and nothing else is unpickled ({describe_error(error)}); save "
            "model.state_dict() as .safetensors"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise FileFormatError(f"{path}: holds no state dict, and none under 'state_dict' or 'model'")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


T = TypeVar("T")


def _read_or_raise(path: Path, read: Callable[[], T]) -> T:
    """Call `read`; whatever it raises becomes a `FileFormatError` that names the file."""
    try:
        return read()
    except FileNotFoundError:
        raise FileFormatError(f"{path}: no such file") from None
    except SafetensorError as error:
        hint = "; a pickled file is never read: save it as safetensors" if _is_pickle(path) else ""
        raise FileFormatError(f"{path}: not a whole safetensors file ({error}){hint}") from None
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: not a whole JSON file ({error})") from None
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror or error}") from None


def _is_pickle(path: Path) -> bool:
    """Whether a file is pickled: torch.save writes a zip archive, its older versions and pickle a protocol byte."""
    with open(path, "rb") as file:
        start = file.read(2)
    return start == b"PK" or start[:1] == b"\x80"
