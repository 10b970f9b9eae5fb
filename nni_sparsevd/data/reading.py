"""Photos are read: decoded into memory, or checked and left where they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError
from ..preprocessing import Preprocessing, Requirements
from ..recipe import DataSettings
from .augmentation import PhotoAugmentation
from .photos import GRAY, check_photo, has_input_size, make_transform
from .sources import Source, read_photo
from .splits import (
    AT_ONCE,
    Decoded,
    HeldSplit,
    Photos,
    Split,
    StreamedSplit,
    count_workers,
    describe_sizes,
    load,
    refuse_bad,
    split_range,
)

PROBED = 100
"""Photos whose size is looked at before all are decoded."""


@dataclass(frozen=True)
class Part:
    """Some photos of a source.

    Attributes:
        source: Where they come from.
        rows: Their places in the source.
        labels: Their classes.
        images: The photos, decoded and resized; None where they are streamed.
        bad: What is wrong with those that cannot be decoded, and are left out.
        colored: Whether any of them has color.
    """

    source: Source
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    images: Tensor | None = None
    bad: tuple[str, ...] = ()
    colored: bool = False

    def make_photos(self, preprocessing: Preprocessing, augmentation: PhotoAugmentation | None = None) -> Photos:
        """Describe to loader processes how the photos become images."""
        transform = make_transform(preprocessing)
        return Photos(self.source, self.rows, transform, preprocessing.input_size[0], augmentation)

    def make_split(self, preprocessing: Preprocessing, settings: DataSettings) -> Split:
        """Make a split of them, in memory where they are decoded."""
        if self.images is None:
            photos = self.make_photos(preprocessing)
            return StreamedSplit(photos, self.labels, count_workers(settings.workers, len(self.rows)))
        channels = preprocessing.input_size[0]
        return HeldSplit(self.images[:, :channels].contiguous(), torch.from_numpy(self.labels))


def plan_preprocessing(
    settings: DataSettings, requirements: Requirements, size: int | None, train: Part
) -> Preprocessing:
    """Decide how photos become inputs: as the settings say, else as in the pre-training, else as the photos are.

    Args:
        settings: Of the data.
        requirements: Of the network.
        size: Side of the inputs, where it is known.
        train: The training photos.

    Returns:
        All but what only the decoded photos tell: mean and deviation are empty where they are to be measured, and the
        channels are 3 where they are not known.

    Raises:
        DataError: The size of the inputs is not known, and the photos differ in size.
    """
    trained = requirements.trained
    height, width = (size, size) if size else _probe_size(train, requirements.usual_size)
    return Preprocessing(
        input_size=(requirements.in_chans or 3, height, width),
        mean=settings.mean or tuple(trained.get("mean", ())),
        std=settings.std or tuple(trained.get("std", ())),
        interpolation=settings.interpolation or trained.get("interpolation", "bicubic"),
        crop_pct=settings.crop_pct or trained.get("crop_pct", 1.0),
        crop_mode=trained.get("crop_mode", "center"),
        label_names=train.source.class_names,
    )


def complete_channels(preprocessing: Preprocessing, channels: int) -> Preprocessing:
    """Put in the number of channels."""
    return replace(preprocessing, input_size=(channels, *preprocessing.input_size[1:]))


def _probe_size(part: Part, usual_size: int | None) -> tuple[int, int]:
    """(height, width) of photos that are all alike, as far as some of them tell; else the network's usual side."""
    photos = Photos(part.source, part.rows, None, None)
    places = np.linspace(0, len(part.rows) - 1, min(PROBED, len(part.rows))).astype(np.int64)
    sizes: set[tuple[int, int]] = set()
    bad: list[str] = []
    for place in places.tolist():
        decoded = photos[[(place, None)]]
        bad += decoded.bad
        if decoded.good:
            sizes.add((decoded.images.shape[2], decoded.images.shape[3]))
    if not sizes:
        refuse_bad(bad)
    if len(sizes) == 1:
        height, width = sizes.pop()
        return height, width
    if usual_size is None:
        raise DataError(describe_sizes(sizes))
    return usual_size, usual_size


def read_part(
    part: Part, preprocessing: Preprocessing, settings: DataSettings, *, keep: bool, in_chans: int | None
) -> Part:
    """Decode photos, or check them where they are not kept in memory; bad ones are left out and named.

    Args:
        part: The photos.
        preprocessing: How they become images.
        settings: Of the data.
        keep: Whether to keep the images in memory.
        in_chans: Channels of an image; None: not known yet, so three are kept.

    Returns:
        The photos that can be decoded, with their images where these are kept.

    Raises:
        DataError: The photos differ in size, and there is no size to bring them to.
    """
    held = part.source.held
    if keep and held is not None and _are_inputs(held, preprocessing):
        images = held[part.rows].expand(-1, preprocessing.input_size[0], -1, -1)
        return replace(part, images=images, colored=held.shape[1] == 3)
    photos = Photos(part.source, part.rows, make_transform(preprocessing), in_chans)
    # What is streamed with `skip_bad` is decoded once before, so that no photo fails in the middle of the training.
    reader: Dataset[Decoded] = photos if keep or settings.skip_bad else Headers(part)
    count = len(part.rows)
    images = torch.empty(count if keep else 0, *preprocessing.input_size, dtype=torch.uint8)
    good, bad, colored = list[int](), list[str](), False
    # What is in memory already is read faster than a process starts.
    workers = 0 if held is not None and settings.workers is None else count_workers(settings.workers, count)
    ranges = split_range(count, AT_ONCE)
    batches = [[(place, None) for place in places] for places in ranges]
    for places, decoded in zip(ranges, load(reader, batches, workers), strict=True):
        if keep and decoded.good:
            _refuse_other_size(decoded.images, images)
            images[len(good) : len(good) + len(decoded.good)] = decoded.images
        good += [places[place] for place in decoded.good]
        bad += decoded.bad
        colored |= decoded.colored
    kept = images[: len(good)] if keep else None
    return Part(part.source, part.rows[good], part.labels[good], kept, tuple(bad), colored)


def _are_inputs(images: Tensor, preprocessing: Preprocessing) -> bool:
    """Whether images in memory are inputs as they are; gray ones serve as colored ones, with their channel repeated."""
    channels, height, width = images.shape[1:]
    return channels in (1, preprocessing.input_size[0]) and has_input_size((width, height), preprocessing)


def _refuse_other_size(batch: Tensor, images: Tensor) -> None:
    height, width = batch.shape[2:]
    if batch.shape[2:] != images.shape[2:]:
        expected = f"{images.shape[3]}x{images.shape[2]}"
        raise DataError(f"data: images of {width}x{height} beside images of {expected}; set data.image_size")


class Headers(Dataset[Decoded]):
    """Looks at header and end of photos, batch by batch, in loader processes; it gives no images."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def __getitem__(self, batch: Sequence[Any]) -> Decoded:
        source = self._part.source
        source.reopen_in_new_process()
        good, bad, colored = [], [], False
        for place, (index, _) in enumerate(batch):
            row = int(self._part.rows[index])
            try:
                content = read_photo(source, row)
                mode = check_photo(content) if isinstance(content, bytes) else content.mode
            except DataError as error:
                bad.append(f"{source.name(row)}: {error}")
                continue
            good.append(place)
            colored |= mode not in GRAY
        return Decoded(torch.empty(0), good, bad, colored)
