"""Data sets through `timm.data`, held in memory where they fit, normalized by their own statistics."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from timm.data.dataset_factory import create_dataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from ..recipe import DataSettings

MEMORY_LIMIT = 4 << 30
"""Bytes up to which decoded images stay in memory."""


@dataclass(frozen=True)
class Split:
    """Images, uint8 or float, shape (count, channels, height, width), and their classes, shape (count,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSets:
    """Three splits: training images, images held out from training, and test images."""

    train: Split
    holdout: Split
    test: Split
    num_classes: int
    mean: Tensor  # shape: (channels,), of the training images in [0, 1]
    std: Tensor

    @property
    def in_chans(self) -> int:
        """Number of channels of an image."""
        return int(self.train.images.shape[1])

    @property
    def image_size(self) -> int:
        """Side of the square images."""
        return int(self.train.images.shape[-1])

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize images by mean and deviation of the training images.

        Args:
            images: uint8 images, or floats in [0, 1], shape (count, channels, height, width).

        Returns:
            What the network sees, in the same shape.
        """
        shape = (1, -1, 1, 1)
        values = images.float() / 255 if images.dtype == torch.uint8 else images
        mean, std = (value.to(images.device).view(shape) for value in (self.mean, self.std))
        return (values - mean) / std

    def make_example_inputs(self, count: int = 2) -> Tensor:
        """Normalize the first training images, for what traces or tries a network."""
        return self.normalize(self.train.images[:count])

    def batches(self, split: Split, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Walk over a split in order.

        Args:
            split: The split.
            size: Images in a batch; the last one may hold fewer.

        Yields:
            Normalized images and their classes.
        """
        for start in range(0, len(split), size):
            rows = slice(start, start + size)
            yield self.normalize(split.images[rows]), split.labels[rows]


def augment(images: Tensor, settings: DataSettings, generator: torch.Generator) -> Tensor:
    """Crop each image at random, after padding with zeros, and flip it at random.

    Args:
        images: Images, shape (count, channels, height, width).
        settings: Which augmentation, and how far crops move.
        generator: Source of the random numbers.

    Returns:
        Images in the shape and type of `images`; `images` itself without augmentation.
    """
    if settings.augment == "none":
        return images
    count, _, height, width = images.shape
    margin = settings.margin or max(height // 8, 1)
    padded = F.pad(images, [margin] * 4)
    top, left = torch.randint(2 * margin + 1, (2, count), generator=generator)
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    if settings.augment == "crop_flip":
        flipped = torch.rand(count, generator=generator) < 0.5
        columns = torch.where(flipped[:, None], columns.flip(1), columns)
    picks = torch.arange(count)[:, None, None]
    return padded[picks, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def to_memory_format(images: Tensor, channels_last: bool) -> Tensor:
    """Lay images out channels last in memory, if wanted; the outputs of convolutions then follow.

    The strides of gray images fit both formats, and torch then takes them for channels first. So the images are copied
    into memory with the strides of colored ones.

    Args:
        images: Images, shape (count, channels, height, width).
        channels_last: Whether to change the layout.

    Returns:
        The same images.
    """
    if not channels_last:
        return images
    count, channels, height, width = images.shape
    return images.new_empty(count, height, width, channels).permute(0, 3, 1, 2).copy_(images)


def load_data(settings: DataSettings, image_size: int | None = None, seed: int = 0) -> DataSets:
    """Read the data of a recipe into memory.

    Args:
        settings: Which data, and how much of it.
        image_size: Side of the images that the network is built for, used where the settings name none.
        seed: Seed of the hold-out, which is cut from the training images.

    Returns:
        The three splits.

    Raises:
        DataError: Data is missing, empty, unreadable or too large for memory, or a class stands in one split only.
    """
    train, test = (
        _digits(settings.image_size or image_size) if settings.name == "digits" else _images(settings, image_size, seed)
    )
    if settings.random_labels:
        drawn = np.random.default_rng((seed, 1)).integers(int(train.labels.max()) + 1, size=len(train))
        train = Split(train.images, torch.from_numpy(drawn))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(train)))
    if settings.limit is not None:
        order = order[: settings.limit]
    held = max(round(settings.holdout * len(order)), 1)
    if len(order) - held < 1 or len(test) < 1:
        raise DataError(f"data {settings.name!r}: {len(order)} training and {len(test)} test images are too few")
    holdout, train = _take(train, order[:held]), _take(train, order[held:])
    pixels = train.images[:10000].float() / (255 if train.images.dtype == torch.uint8 else 1)
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(1e-6)
    return DataSets(train, holdout, test, int(max(train.labels.max(), test.labels.max())) + 1, mean, std)


def _take(split: Split, rows: Tensor) -> Split:
    return Split(split.images[rows].contiguous(), split.labels[rows])


def _digits(size: int | None) -> tuple[Split, Split]:
    """scikit-learn's 1,797 digits of 8 by 8 pixels, enlarged on request; every fifth is for testing, always."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]
    if size is not None and size != 8:
        images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    labels = torch.from_numpy(digits.target).long()
    test = torch.arange(len(labels)) % 5 == 0
    return Split(images[~test], labels[~test]), Split(images[test], labels[test])


def _images(settings: DataSettings, image_size: int | None, seed: int) -> tuple[Split, Split]:
    if settings.train is None:
        raise DataError(f"data.train: {settings.name or 'a folder of images'!r} needs a folder or tar to read from")
    size = settings.image_size or image_size
    named = bool(settings.name)
    roots = (settings.train, settings.test or settings.train)
    opened: list[Dataset[Any]] = []
    for root, split in zip(roots, ("train", "validation"), strict=True):
        if not named and settings.test is None:
            raise DataError("data.test: images from a folder or tar need a test folder or tar of their own")
        if not Path(root).exists():
            raise DataError(f"data.{'test' if opened else 'train'}: {root} does not exist")
        opened.append(_open(settings.name, Path(root), split))
    classes, others = (_classes(each) for each in opened)
    if classes != others:
        differ = ", ".join(sorted(str(name) for name in set(classes) ^ set(others)))
        raise DataError(f"data.test: the classes of {settings.test} are not those of {settings.train}: {differ}")
    rows = [np.arange(len(each)) for each in opened]  # type: ignore[arg-type]
    if settings.limit is not None:  # before decoding: the rest may not fit into memory
        rows[0] = np.random.default_rng(seed).permutation(rows[0])[: settings.limit]
    splits = [
        _decode(_Decoded(each, which, size), settings.workers, root)
        for each, which, root in zip(opened, rows, roots, strict=True)
    ]
    if splits[0].images.shape[1:] != splits[1].images.shape[1:]:
        raise DataError(f"data: training images are {tuple(splits[0].images.shape[1:])}, test images differ")
    return splits[0], splits[1]


def _open(name: str, root: Path, split: str) -> Dataset[Any]:
    try:
        # bytes: timm makes gray images colored, and puts the next image in the place of one that it cannot decode
        found: Dataset[Any] = create_dataset(name, root=str(root), split=split, download=False, load_bytes=True)
        count = len(found)  # type: ignore[arg-type]
    except Exception as error:  # whatever the reader raises
        raise DataError(f"data {name!r} cannot be read from {root}: {error}") from error
    if count == 0:
        raise DataError(f"data {name!r}: no images in {root}")
    return found


def _classes(images: Dataset[Any]) -> dict[str, int]:
    """Class names of a folder or tar, as timm's reader or torchvision numbered them; {} where there are none."""
    holder = getattr(images, "reader", images)
    return dict(getattr(holder, "class_to_idx", None) or getattr(holder, "class_name_to_idx", None) or {})


class _Decoded(Dataset[Any]):
    """Images of a timm data set as uint8 tensors of one size; gray ones keep one channel."""

    def __init__(self, images: Dataset[Any], rows: NDArray[np.int64], size: int | None) -> None:
        self.images, self.rows, self.size = images, rows, size
        self.gray = self._open(0)[0].mode in ("L", "1", "I;16")

    def __len__(self) -> int:
        return len(self.rows)

    def _open(self, index: int) -> tuple[Image.Image, int]:
        row = int(self.rows[index])
        content, label = self.images[row]
        try:
            image = Image.open(io.BytesIO(content)) if isinstance(content, bytes) else content
            image.load()
        except (OSError, ValueError, SyntaxError) as error:
            names = getattr(self.images, "filename", str)
            raise DataError(f"data: the image {names(row)} cannot be decoded: {error}") from error
        return image, int(label)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self._open(index)
        image = image.convert("L" if self.gray else "RGB")
        if self.size is not None and image.size != (self.size, self.size):
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.resize((self.size, self.size), box=(left, top, left + side, top + side), resample=3)
        pixels = torch.from_numpy(np.array(image))
        return (pixels[None] if self.gray else pixels.permute(2, 0, 1)).contiguous(), label


def _decode(images: _Decoded, workers: int, root: Path) -> Split:
    need = images[0][0].numel() * len(images)
    if need > MEMORY_LIMIT:
        raise DataError(f"data: {len(images)} images of {root} take {need >> 20} MiB in memory; set data.limit")
    try:
        batches = list(DataLoader(images, batch_size=512, num_workers=workers))
    except RuntimeError as error:  # images that do not stack
        raise DataError(f"data: the images of {root} differ in size; set data.image_size ({error})") from error
    return Split(torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches]))
