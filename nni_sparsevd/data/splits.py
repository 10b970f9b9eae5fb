"""Splits: images and their classes, held in memory, or read and decoded when they are asked for."""

import atexit
import itertools
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from .augmentation import PhotoAugmentation
from .photos import Transform, decode_photo, to_mode, to_tensor
from .sources import Source, read_photo

MEMORY_LIMIT = 4 << 30
"""Bytes up to which decoded images stay in memory."""
MANY = 1000
"""Photos from which loader processes are worth their start."""
AT_ONCE = 64
"""Photos in a batch of a loader process, where all photos of a split are read."""
LISTED = 20
"""Bad photos that an error names."""
Pick = tuple[int, int | None]
"""Place in a split, and the seed of its augmentation; None: no augmentation."""
Plan = Callable[[int], Sequence[Pick]]
"""From a step to the images of its batch."""


class Split(ABC):
    """Images and their classes.

    Attributes:
        labels: int64, shape (count,).
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def images(self) -> Tensor:
        """All images in memory, uint8 or float, shape (count, channels, height, width); read for this if need be.

        Raises:
            DataError: They do not fit into memory.
        """

    @abstractmethod
    def follow(self, plan: Plan, first: int) -> Generator[Tensor]:
        """Read the batches of a plan from a step on, without end, some steps ahead; close it when done."""

    def read(self, rows: Iterable[int]) -> Tensor:
        """Read some images.

        Args:
            rows: Their places in the split.

        Returns:
            Images, uint8 or float, shape (count, channels, height, width).
        """
        return next(self.walk([[int(row) for row in rows]]))

    @abstractmethod
    def walk(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Read these batches of places, in this order."""


@final
class HeldSplit(Split):
    """Images in memory."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        """Hold images, shape (count, channels, height, width), and their classes, shape (count,)."""
        self._images, self.labels = images, labels

    @property
    def images(self) -> Tensor:
        return self._images

    def follow(self, plan: Plan, first: int) -> Generator[Tensor]:
        for step in itertools.count(first):
            yield self._images[torch.tensor([place for place, _ in plan(step)])]

    def walk(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        for batch in batches:
            yield self._images[torch.tensor(batch, dtype=torch.int64)]


@final
class StreamedSplit(Split):
    """Photos that are decoded when they are asked for, by loader processes."""

    def __init__(self, photos: "Photos", labels: NDArray[np.int64], workers: int) -> None:
        """Stream `photos` with their classes through so many loader processes; 0 decodes in this process."""
        self._photos, self._workers = photos, workers
        self.labels = torch.from_numpy(labels)

    @property
    def images(self) -> Tensor:
        first = self.read([0])
        if first.numel() * len(self) > MEMORY_LIMIT:
            raise DataError(f"data: {len(self)} images do not fit into memory; set data.limit or data.image_size")
        return torch.cat(list(self.walk(split_range(len(self), AT_ONCE))))

    def follow(self, plan: Plan, first: int) -> Generator[Tensor]:
        yield from self._load(map(plan, itertools.count(first)), self._workers)

    def walk(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        picks = [[(place, None) for place in batch] for batch in batches]
        yield from self._load(picks, self._workers if len(picks) > 1 else 0)

    def _load(self, batches: Iterable[Sequence[Pick]], workers: int) -> Iterator[Tensor]:
        for decoded in load(self._photos, batches, workers):
            refuse_bad(decoded.bad)
            yield decoded.images


def split_range(count: int, size: int) -> list[range]:
    """Split the places from 0 to count - 1 into ranges of `size` places; the last range may be shorter."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


@dataclass(frozen=True)
class Decoded:
    """What becomes of a batch in a loader process: the images that could be decoded, and why others could not.

    Attributes:
        images: uint8, shape (good images, channels, height, width).
        good: Their places in the batch.
        bad: What is wrong with the others, with their names.
        colored: Whether any of the images has color.
    """

    images: Tensor
    good: list[int]
    bad: list[str]
    colored: bool


@final
class Photos(Dataset[Decoded]):
    """Photos of a source, decoded batch by batch: what loader processes run."""

    def __init__(
        self,
        source: Source,
        rows: NDArray[np.int64],
        transform: Transform | None,
        in_chans: int | None,
        augmentation: PhotoAugmentation | None = None,
    ) -> None:
        """Describe how photos become images.

        Args:
            source: Where they come from.
            rows: Which of them.
            transform: To the input's size; None: the photos keep theirs.
            in_chans: 1 for gray images, 3 for colored ones; None: not known yet, colored.
            augmentation: For places with a seed.
        """
        self._source, self._rows = source, rows
        self._transform, self._augmentation = transform or to_tensor, augmentation
        self._mode = "L" if in_chans == 1 else "RGB"

    def __getitem__(self, batch: Sequence[Pick]) -> Decoded:
        self._source.reopen_in_new_process()
        images, good, bad, colored = [], [], [], False
        for place, (index, seed) in enumerate(batch):
            try:
                image, has_color = self._make(int(self._rows[index]), seed)
            except DataError as error:
                bad.append(str(error))
                continue
            images.append(image)
            good.append(place)
            colored |= has_color
        return Decoded(_stack(images), good, bad, colored)

    def _make(self, row: int, seed: int | None) -> tuple[Tensor, bool]:
        try:
            photo = decode_photo(read_photo(self._source, row))
        except DataError as error:
            raise DataError(f"{self._source.name(row)}: {error}") from error
        has_color = photo.mode != "L"
        if self._augmentation is not None and seed is not None:
            return self._augmentation(to_mode(photo, "RGB"), self._mode, seed), has_color
        return self._transform(to_mode(photo, self._mode)), has_color


def _stack(images: list[Tensor]) -> Tensor:
    """Images as one tensor, an empty one where there are none; raises `DataError` where they differ in size."""
    if not images:
        return torch.empty(0, 1, 0, 0, dtype=torch.uint8)
    sizes = {(image.shape[1], image.shape[2]) for image in images}
    if len(sizes) > 1:
        raise DataError(describe_sizes(sizes))
    return torch.stack(images)


def describe_sizes(sizes: set[tuple[int, int]]) -> str:
    """Say that images differ in size, and what to do; each size is (height, width)."""
    named = ", ".join(f"{width}x{height}" for height, width in sorted(sizes)[:3])
    return f"data: the images differ in size ({named}); set data.image_size"


@final
class _Batches:
    """A sampler: each of its elements is the list of picks that one loader process decodes."""

    def __init__(self, batches: Iterable[Sequence[Pick]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Sequence[Pick]]:
        return iter(self._batches)


def load(photos: Dataset[Any], batches: Iterable[Any], workers: int) -> Iterator[Any]:
    """Read batches in their order, some of them ahead.

    Args:
        photos: What loader processes run: `photos[batch]` is a decoded batch.
        batches: What to read; it may have no end.
        workers: Loader processes; 0 reads in this process.

    Returns:
        What `photos` makes of each batch.
    """
    if workers == 0:
        return map(photos.__getitem__, batches)
    reading = _read_ahead(photos, batches, workers)
    _OPEN.add(reading)
    return reading


def _read_ahead(photos: Dataset[Any], batches: Iterable[Any], workers: int) -> Generator[Any]:
    yield from DataLoader(
        photos,
        batch_size=None,
        sampler=_Batches(batches),  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=2,
        worker_init_fn=_ignore_signals,
        # Without a generator of its own the loader would draw from torch's, and change what the training draws.
        generator=torch.Generator(),
        collate_fn=_keep_batch,
        multiprocessing_context="fork" if hasattr(os, "fork") else None,
    )


_OPEN: WeakSet[Generator[Any]] = WeakSet()
"""Loaders that are not at their end."""


@atexit.register
def _close_loaders() -> None:
    """End the loader processes that are left: Python would wait for them, as they ignore the signal that it sends."""
    for reading in list(_OPEN):
        reading.close()


def _keep_batch(batch: Any) -> Any:
    """Leave a batch as it is; torch's own function would convert what is in it."""
    return batch


def _ignore_signals(worker: int) -> None:
    """Ignore Ctrl-C and the termination signal: the training process handles them, finishes its step and saves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def count_workers(wanted: int | None, photos: int) -> int:
    """Loader processes for so many photos: those that are wanted, or one for each core where there are many photos."""
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 16) if photos >= MANY else 0


def refuse_bad(bad: Sequence[str]) -> None:
    """Raise `DataError` that lists photos which cannot be decoded; nothing where there are none."""
    if not bad:
        return
    more = f"\n  and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
    listed = "".join(f"\n  {line}" for line in bad[:LISTED])
    raise DataError(
        f"data: {len(bad)} image{'s' if len(bad) > 1 else ''} cannot be decoded; delete or mend them, or go on without "
        f"them by data.skip_bad=true:{listed}{more}"
    )
