"""Augmentation: of a batch in memory, of single photos by timm's transforms, and of batches by mixing."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import get_worker_info

from ..preprocessing import Preprocessing
from ..recipe import DataSettings
from .photos import to_mode, to_tensor


def augment(images: Tensor, settings: DataSettings, generator: torch.Generator) -> Tensor:
    """Crop each image at random, after padding with zeros, and flip it at random.

    Args:
        images: Images, shape (count, channels, height, width).
        settings: Which augmentation, and how far crops move.
        generator: Source of the random numbers.

    Returns:
        Images in the shape and type of `images`; `images` itself without this augmentation.
    """
    if settings.augment in ("none", "timm"):
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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch for a while, and put them back as they were.

    Loader processes draw from nothing else, so theirs are not put back: that takes as long as reading a photo.
    """
    restores = get_worker_info() is None
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state()) if restores else None
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    # Not `torch.manual_seed`: it takes hundreds of times as long, to remember the seed for devices that are not there.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    try:
        yield
    finally:
        if states is not None:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])


@final
class PhotoAugmentation:
    """timm's augmentation of one photo: random resized crop, flips, colors, RandAugment and its relatives."""

    def __init__(self, settings: DataSettings, preprocessing: Preprocessing) -> None:
        """Build it.

        Args:
            settings: Which augmentation.
            preprocessing: Size of the images and how they are resized.
        """
        transform = create_transform(
            preprocessing.input_size,
            is_training=True,
            scale=settings.scale,
            ratio=settings.ratio,
            hflip=settings.hflip,
            vflip=settings.vflip,
            color_jitter=settings.color_jitter,
            auto_augment=settings.aa,
            interpolation=preprocessing.interpolation,
            # The color that rotations leave in the corners; augmentation works in color, of gray photos, too.
            mean=preprocessing.mean if len(preprocessing.mean) == 3 else preprocessing.mean[:1] * 3,
            use_prefetcher=True,
        )
        # The last step makes a tensor: gray photos lose their three equal channels before it.
        self._steps = transform.transforms[:-1]

    def __call__(self, photo: Image.Image, mode: str, seed: int) -> Tensor:
        """Augment a photo.

        Args:
            photo: In RGB.
            mode: L or RGB, of the image that is wanted.
            seed: Of the random numbers; nothing else decides the result.

        Returns:
            A uint8 image, shape (channels, height, width).
        """
        with seeded(seed):
            for step in self._steps:
                photo = step(photo)
        return to_tensor(to_mode(photo, mode))


@final
class BatchAugmentation:
    """What is done to normalized batches: random erasing, mixup, cutmix, label smoothing."""

    def __init__(self, settings: DataSettings, num_classes: int) -> None:
        """Build it.

        Args:
            settings: Which augmentation.
            num_classes: Classes of the data.
        """
        self._settings, self._num_classes = settings, num_classes
        self._mix = None
        if settings.mixup or settings.cutmix:
            self._mix = Mixup(
                settings.mixup, settings.cutmix, label_smoothing=settings.smoothing, num_classes=num_classes
            )

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            images: Normalized images, shape (count, channels, height, width); they may be changed.
            labels: Their classes, shape (count,).
            seed: Of the random numbers; nothing else decides the result.

        Returns:
            The images, and their classes, shape (count,), or the share of each class, shape (count, classes).
        """
        settings = self._settings
        with seeded(seed):
            if settings.re_prob:
                erase = RandomErasing(settings.re_prob, mode=settings.re_mode, max_count=1, device=str(images.device))
                images = erase(images)
            # A data set that is smaller than a batch may leave an odd number of images, and these mix in pairs.
            if self._mix is not None and len(images) % 2 == 0:
                return self._mix(images, labels)  # type: ignore[no-any-return]
        if self._mix is not None or settings.smoothing:
            return images, mixup_target(labels, self._num_classes, smoothing=settings.smoothing)
        return images, labels
