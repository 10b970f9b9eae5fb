"""Where photos come from: a folder, a tar, a data set by timm's name. Listed at once, read one by one, not decoded."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.dataset_factory import create_dataset
from timm.data.readers import get_img_extensions, set_img_extensions
from torch import Tensor
from torch.utils.data import IterableDataset
from torchvision.datasets import CIFAR10, MNIST

from ..errors import DataError, describe_error
from ..recipe import DataSettings
from .photos import Encoded

TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("val", "valid", "validation", "eval", "evaluation", "test")
"""Names of the two parts below one root."""
NEEDS_NO_ROOT = ("hfds/", "hfids/", "wds/", "tfds/")
"""Prefixes of timm for libraries that have a place of their own, or read from an address."""
PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".heic", ".heif", ".bmp", ".gif", ".tif", ".tiff")
"""Files that are photos: those that Pillow cannot decode here are reported, not passed over."""


class Source(ABC):
    """Photos that can be read one by one, in any order, by any process.

    Attributes:
        labels: Class of each photo, int64, shape (count,).
        class_names: Names of the classes in their order; empty where they have none.
        held: All photos, uint8, shape (count, channels, height, width), where they are decoded in memory.
    """

    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    held: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, row: int) -> Encoded:
        """Read a photo: the bytes of its file, or what the library of the data set has decoded."""

    @abstractmethod
    def name(self, row: int) -> str:
        """Name a photo so that a person finds it."""

    @abstractmethod
    def reopen_in_new_process(self) -> None:
        """Forget files that another process has opened: two processes that share one would share the position in it."""


@final
class FileSource(Source):
    """The files of a folder or a tar, or the rows of a Hugging Face data set, through timm's reader."""

    def __init__(self, reader: Any, root: Path | None) -> None:
        """Read through a reader of timm.

        Args:
            reader: The reader.
            root: Where it reads, for the names of photos.
        """
        self._reader, self._root, self._process = reader, root, os.getpid()
        self.labels = _list_labels(reader)
        self.class_names = _list_class_names(reader)

    def read(self, row: int) -> bytes:
        # Not through timm's data set, which puts the next photo in the place of one that it cannot open.
        with self._reader[row][0] as file:
            return bytes(file.read())

    def name(self, row: int) -> str:
        return str(Path(self._root or "", str(self._reader.filename(row))))

    def reopen_in_new_process(self) -> None:
        if self._process == os.getpid():
            return
        self._process = os.getpid()
        # Only timm's reader of tars keeps files open.
        state = getattr(self._reader, "tar_state", None)
        for tar in state.values() if isinstance(state, dict) else [state]:
            if tar is not None:
                tar.tf = None
                for child in tar.children.values():
                    child.tf = None


@final
class DecodedSource(Source):
    """Photos that are in memory, or that a library decodes itself."""

    def __init__(self, images: Any, labels: NDArray[np.int64], class_names: tuple[str, ...], name: str) -> None:
        """Read from photos that are decoded, or that decode themselves.

        Args:
            images: `images[row]` is a photo, a uint8 image of shape (channels, height, width), or a tuple that begins
                with a photo.
            labels: Class of each photo.
            class_names: Names of the classes.
            name: What a person calls the data set.
        """
        self._images, self._name = images, name
        self.labels, self.class_names = labels, class_names
        self.held = images if isinstance(images, Tensor) else None

    def read(self, row: int) -> Image.Image:
        image = self._images[row]
        if isinstance(image, Tensor):
            pixels = image.permute(1, 2, 0).numpy()
            return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        photo: Image.Image = image[0] if isinstance(image, tuple) else image
        return photo

    def name(self, row: int) -> str:
        return f"{self._name}, image {row}"

    def reopen_in_new_process(self) -> None:
        return None


def read_photo(source: Source, row: int) -> Encoded:
    """Read a photo of a source.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return source.read(row)
    except Exception as error:  # whatever the reader raises
        raise DataError(describe_error(error)) from error


def open_sources(settings: DataSettings) -> tuple[Source, Source]:
    """List the training and the test photos of a recipe; nothing is decoded, unless their library does it.

    Args:
        settings: Which data.

    Returns:
        The training photos and the test photos, with the same classes.

    Raises:
        DataError: A root is missing or empty, cannot be read, or holds other classes than the other one.
    """
    train_root, test_root = _find_roots(settings)
    train = _open(settings.resolved_name, train_root, settings.train_split)
    test = _open(settings.resolved_name, test_root, settings.test_split)
    if train.class_names != test.class_names:
        differ = ", ".join(sorted(set(train.class_names) ^ set(test.class_names))) or "they have another order"
        # A library that needs no root has splits instead.
        train_place, test_place = train_root or settings.train_split, test_root or settings.test_split
        raise DataError(f"data.test: the classes of {test_place} are not those of {train_place}: {differ}")
    return train, test


def _find_roots(settings: DataSettings) -> tuple[Path | None, Path | None]:
    """The roots of the training and of the test photos."""
    name, root = settings.resolved_name, settings.train
    if root is None:
        if name.startswith(NEEDS_NO_ROOT):
            return None, settings.test
        raise DataError(f"data.train: {name or 'a folder of images'!r} needs a folder or tar to read from")
    if not name.startswith(NEEDS_NO_ROOT):
        for key, path in (("train", root), ("test", settings.test or root)):
            if not path.exists():
                raise DataError(f"data.{key}: {path} does not exist")
    if name:
        return root, settings.test or root
    return _find_folders(root, settings.test)


def _find_folders(root: Path, test: Path | None) -> tuple[Path, Path]:
    """Where the training and the test photos are: in two parts of one root, or of a root each, or in two roots."""
    parts = _find_parts(root)
    if test is None:
        if parts is None:
            raise DataError(
                f"data.test: images from a folder or tar need a test folder or tar of their own; {root} does not hold "
                f"both a folder {' or '.join(TRAIN_FOLDERS)} and one of {', '.join(TEST_FOLDERS)}"
            )
        return parts
    test_parts = _find_parts(test)
    return (parts[0] if parts else root), (test_parts[1] if test_parts else test)


def _find_parts(root: Path) -> tuple[Path, Path] | None:
    """The training and the test part of a root; None for a root that lacks one, as a class may be called train."""
    train, test = _find_child(root, TRAIN_FOLDERS), _find_child(root, TEST_FOLDERS)
    return None if train is None or test is None else (train, test)


def _find_child(root: Path, names: Iterable[str]) -> Path | None:
    """The first of these folders or tars that lies in the root."""
    for name in names:
        for child in (root / name, root / f"{name}.tar"):
            if child.exists():
                return child
    return None


def _open(name: str, root: Path | None, split: str) -> Source:
    place = "" if root is None else f" from {root}"
    try:
        with _list_all_photos():
            images: Any = create_dataset(
                name, root=None if root is None else str(root), split=split, search_split=bool(name), download=False
            )
        source = _make_source(images, name, root)
    except DataError:
        raise
    except Exception as error:  # whatever the reader raises
        raise DataError(f"data {name!r} cannot be read{place}: {describe_error(error)}") from error
    if len(source) == 0:
        raise DataError(f"data {name!r}: no images{place}")
    return source


@contextmanager
def _list_all_photos() -> Iterator[None]:
    """Let timm find photos of all kinds; by itself it passes over everything but PNG and JPEG, and says nothing."""
    before = get_img_extensions()
    set_img_extensions((*before, *PHOTO_SUFFIXES))
    try:
        yield
    finally:
        set_img_extensions(before)


def _make_source(images: Any, name: str, root: Path | None) -> Source:
    reader = getattr(images, "reader", None)
    if isinstance(images, IterableDataset):
        # These libraries read in one order only, so all photos are taken once; `limit` cannot spare any.
        pairs = list(images)
        labels = np.array([label for _, label in pairs], dtype=np.int64)
        return DecodedSource([photo for photo, _ in pairs], labels, _list_class_names(reader), name)
    if reader is not None:
        return FileSource(reader, root)
    return DecodedSource(_take_pixels(images), _list_labels(images), _list_class_names(images), name)


def _take_pixels(images: Any) -> Any:
    """The pixels of a data set of torchvision that holds them; else the data set, which gives photo by photo."""
    if isinstance(images, MNIST):
        return images.data[:, None]
    if isinstance(images, CIFAR10):
        return torch.from_numpy(images.data).permute(0, 3, 1, 2)
    return images


def _list_labels(holder: Any) -> NDArray[np.int64]:
    """The class of every photo, from the list of a reader of timm or a data set of torchvision where it has one."""
    targets = getattr(holder, "targets", None)
    if targets is None and hasattr(holder, "iter_targets"):
        targets = list(holder.iter_targets())
    if targets is None and hasattr(holder, "samples"):
        targets = [label for _, label in holder.samples]
    if targets is None:
        targets = [holder[row][1] for row in range(len(holder))]
    return np.array([int(label) for label in targets], dtype=np.int64)


def _list_class_names(holder: Any) -> tuple[str, ...]:
    """Class names as timm's reader or torchvision numbered them; none where there are none."""
    numbered: Mapping[Any, int] = (
        getattr(holder, "class_to_idx", None) or getattr(holder, "class_name_to_idx", None) or {}
    )
    return tuple(str(name) for name in sorted(numbered, key=lambda name: numbered[name]))
