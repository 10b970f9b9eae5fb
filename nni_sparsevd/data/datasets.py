"""The data of a recipe: three splits, in memory where they fit and streamed otherwise, and how they are prepared."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from ..preprocessing import Preprocessing, Requirements
from ..recipe import DataSettings
from . import splits
from .augmentation import PhotoAugmentation
from .reading import Part, complete_channels, plan_preprocessing, read_part
from .sources import DecodedSource, Source, open_sources
from .splits import Split, StreamedSplit, count_workers, refuse_bad
from .statistics import measure_statistics


@dataclass(frozen=True)
class DataSets:
    """Three splits: training images, images held out from training, and test images.

    Attributes:
        train: Training images.
        holdout: Images held out from training.
        test: Test images.
        num_classes: Number of classes.
        preprocessing: How images become inputs, and the names of the classes.
        skipped: Photos that were passed over because they cannot be decoded, and why.
    """

    train: Split
    holdout: Split
    test: Split
    num_classes: int
    preprocessing: Preprocessing
    skipped: tuple[str, ...] = ()

    @property
    def in_chans(self) -> int:
        """Number of channels of an image."""
        return self.preprocessing.input_size[0]

    @property
    def image_size(self) -> int:
        """Side of the square images."""
        return self.preprocessing.input_size[-1]

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize images by the mean and the deviation that the network expects.

        Args:
            images: uint8 images, or floats in [0, 1], shape (count, channels, height, width).

        Returns:
            What the network sees, in the same shape.
        """
        mean, std = (
            torch.tensor(numbers, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
            for numbers in (self.preprocessing.mean, self.preprocessing.std)
        )
        # In place: each copy of a batch takes as long as decoding a photo.
        centered = images.float().div_(255).sub_(mean) if images.dtype == torch.uint8 else images - mean
        return centered.div_(std)

    def make_example_inputs(self, count: int = 2) -> Tensor:
        """Normalize the first training images, for what traces or tries a network."""
        return self.normalize(self.train.read(range(min(count, len(self.train)))))

    def batches(self, split: Split, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Walk over a split in order.

        Args:
            split: The split.
            size: Images in a batch; the last one may hold fewer.

        Yields:
            Normalized images and their classes.
        """
        ranges = splits.split_range(len(split), size)
        for places, images in zip(ranges, split.walk(ranges), strict=True):
            yield self.normalize(images), split.labels[places.start : places.stop]


def to_channels_last(images: Tensor) -> Tensor:
    """Lay images out channels last in memory; the outputs of convolutions then follow.

    The strides of gray images fit both formats, and torch then takes them for channels first. So the images are copied
    into memory with the strides of colored ones.

    Args:
        images: Images, shape (count, channels, height, width).

    Returns:
        The same images.
    """
    count, channels, height, width = images.shape
    return images.new_empty(count, height, width, channels).permute(0, 3, 1, 2).copy_(images)


def load_data(
    settings: DataSettings,
    image_size: int | None = None,
    seed: int = 0,
    requirements: Requirements | None = None,
    *,
    hold: bool = True,
) -> DataSets:
    """Read the data of a recipe: into memory where they fit, otherwise only their list.

    Images are colored where the network wants colored ones or where any of them has color, else gray.

    Args:
        settings: Which data, and how much of it.
        image_size: Side of the images, used where the settings name none.
        seed: Seed of the hold-out, which is cut from the training images.
        requirements: What the network asks of its images; None: nothing.
        hold: Hold images in memory where they fit; otherwise a photo is decoded when it is wanted, which is faster
            where few of them are.

    Returns:
        The three splits.

    Raises:
        DataError: Data is missing, empty, unreadable or too small, or a class stands in one split only.
    """
    requirements = requirements or Requirements()
    size = _choose_size(settings, image_size, requirements)
    sources = _open_digits(size) if settings.resolved_name == "digits" else open_sources(settings)
    parts = _cut(sources, settings, seed)
    _refuse_too_few(parts, settings)
    preprocessing = plan_preprocessing(settings, requirements, size, parts[0])
    channels_known = requirements.in_chans is not None
    in_chans = preprocessing.input_size[0] if channels_known else None
    read = _read_parts(parts, preprocessing, settings, in_chans, hold=hold)
    _refuse_too_few(read, settings)
    if not channels_known:
        has_color = any(part.colored for part in read)
        preprocessing = complete_channels(preprocessing, 3 if has_color else 1)
    train, holdout, test = (part.make_split(preprocessing, settings) for part in read)
    preprocessing = _complete_statistics(preprocessing, train)
    if settings.augment == "timm":
        train = _augment_photos(read[0], preprocessing, settings)
    # A class may have a name and no photo; what torchvision reads may have classes without names.
    num_classes = max(*(int(source.labels.max()) + 1 for source in sources), len(preprocessing.label_names))
    bad = [line for part in read for line in part.bad]
    return DataSets(train, holdout, test, num_classes, preprocessing, tuple(bad))


def _choose_size(settings: DataSettings, image_size: int | None, requirements: Requirements) -> int | None:
    """The side of the images: as the settings say, the caller, the network, or its pre-training; None: any of these."""
    wanted_size = settings.image_size or image_size or requirements.image_size
    if wanted_size:
        return wanted_size
    trained_size = requirements.trained.get("input_size")
    return int(trained_size[-1]) if trained_size else None


def _read_parts(
    parts: tuple[Part, Part, Part],
    preprocessing: Preprocessing,
    settings: DataSettings,
    in_chans: int | None,
    *,
    hold: bool,
) -> list[Part]:
    """Read the parts for training, hold-out and testing, into memory where `hold` says so and all of them fit."""
    pixels = int(np.prod(preprocessing.input_size))
    fits = hold and pixels * sum(len(part.rows) for part in parts) <= splits.MEMORY_LIMIT
    # Random crops of a photo are made from its file, not from the middle of it that would be held in memory.
    keeps = (fits and settings.augment != "timm", fits, fits)
    read = []
    for part, keep in zip(parts, keeps, strict=True):
        read.append(read_part(part, preprocessing, settings, keep=keep, in_chans=in_chans))
    if not settings.skip_bad:
        refuse_bad([line for part in read for line in part.bad])
    return read


@cache
def _read_digits() -> tuple[Tensor, NDArray[np.int64]]:
    """The digits as scikit-learn has them, uint8, shape (1797, 1, 8, 8), and their classes.

    They are a file of numbers, which takes longer to read than to enlarge; a process reads it once.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)
    return images[:, None], digits.target.astype(np.int64)


def _open_digits(size: int | None) -> tuple[Source, Source]:
    """scikit-learn's 1,797 digits of 8 by 8 pixels, enlarged on request; every fifth is for testing, always."""
    images, labels = _read_digits()
    if size is not None and size != 8:
        images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    names = tuple(str(name) for name in range(10))
    test = np.arange(len(labels)) % 5 == 0
    train_digits = DecodedSource(images[~test], labels[~test], names, "digits")
    return train_digits, DecodedSource(images[test], labels[test], names, "digits")


def _cut(sources: tuple[Source, Source], settings: DataSettings, seed: int) -> tuple[Part, Part, Part]:
    """Training, held-out and test photos; the first two are cut from the first source."""
    train, test = sources
    rows = np.arange(len(train))
    if settings.limit is not None and settings.resolved_name != "digits":
        rows = np.random.default_rng(seed).permutation(rows)[: settings.limit]
    labels = train.labels[rows]
    if settings.random_labels:
        labels = np.random.default_rng((seed, 1)).integers(int(labels.max()) + 1, size=len(labels))
    order = np.random.default_rng(seed).permutation(len(rows))[: settings.limit]
    held_out = max(round(settings.holdout * len(order)), 1)
    return (
        Part(train, rows[order[held_out:]], labels[order[held_out:]]),
        Part(train, rows[order[:held_out]], labels[order[:held_out]]),
        Part(test, np.arange(len(test)), test.labels),
    )


def _refuse_too_few(parts: Sequence[Part], settings: DataSettings) -> None:
    counts = [len(part.rows) for part in parts]
    if min(counts) < 1:
        found = f"{counts[0] + counts[1]} training and {counts[2]} test images"
        raise DataError(
            f"data {settings.resolved_name!r}: {found} are too few: 2 for training, of which 1 is held out, and 1 for "
            "testing are the least; data.limit may be too low"
        )


def _complete_statistics(preprocessing: Preprocessing, train: Split) -> Preprocessing:
    """Measure mean and deviation where neither settings nor pre-training say them; one number serves all channels."""
    mean, std = preprocessing.mean, preprocessing.std
    if not mean or not std:
        measured = measure_statistics(train)
        mean, std = mean or measured[0], std or measured[1]
    channels = preprocessing.input_size[0]
    for key, numbers in (("mean", mean), ("std", std)):
        if len(numbers) not in (1, channels):
            raise DataError(f"data.{key}: {len(numbers)} numbers for images of {channels} channels")
    mean, std = (numbers * channels if len(numbers) == 1 else numbers for numbers in (mean, std))
    return replace(preprocessing, mean=mean, std=std)


def _augment_photos(part: Part, preprocessing: Preprocessing, settings: DataSettings) -> Split:
    """The training photos, augmented from their files."""
    photos = part.make_photos(preprocessing, PhotoAugmentation(settings, preprocessing))
    return StreamedSplit(photos, part.labels, count_workers(settings.workers, len(part.rows)))
