"""The training batches of one process."""

from collections.abc import Generator
from typing import final

import torch
from torch import Tensor

from ..data import BatchAugmentation, Pick, augment
from ..recipe import Stage
from .run import Run
from .schedule import derive_seed


def count_batches(images: int, batch_size: int, processes: int) -> int:
    """Count the batches of an epoch: at least one; images that do not fill a batch of every process are left out."""
    return max(images // (batch_size * processes), 1)


def count_epoch_batches(run: Run) -> int:
    """Count the batches of an epoch in each process of a run."""
    return count_batches(len(run.data.train), run.recipe.data.batch_size, run.accelerator.num_processes)


def count_epoch_steps(stage: Stage, batches: int) -> int:
    """Count the steps of an epoch of `batches` batches; batches that do not make up a step are left out."""
    return batches // stage.accumulate


def count_stage_steps(stage: Stage, batches: int) -> int:
    """Count the steps of a whole stage, where an epoch has `batches` batches."""
    return stage.epochs * count_epoch_steps(stage, batches)


@final
class Batches:
    """Batches of a stage: each is a function of the recipe's seed, the stage, the step and the rank alone.

    Photos that are streamed are read some steps ahead. What is read is a function of the step, too: an iterator with a
    state would have to be put back in a resumed run.
    """

    def __init__(self, run: Run, stage: str) -> None:
        """Give each of the run's processes the same number of batches per epoch, and different images."""
        self._recipe, self._data, self._stage = run.recipe, run.data, stage
        self._split = run.data.train
        self._rank = run.accelerator.process_index
        self._world = run.accelerator.num_processes
        self._device = run.accelerator.device
        self._orders: dict[int, Tensor] = {}
        """The shuffled images of this epoch and, where they are read ahead, of the next one."""
        self._augment_batch = BatchAugmentation(run.recipe.data, run.data.num_classes)
        self._reading: Generator[Tensor] | None = None
        self._next_step = -1
        """The step whose images `_reading` gives next."""
        self.per_epoch = count_epoch_batches(run)
        """Batches in an epoch; images that do not fill one are left out."""

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """The inputs of the network at `step`, counted from 0, on the device of this process, and their labels.

        Labels are classes, shape (count,), or the share of each class, shape (count, classes), of mixed images.
        """
        if self._reading is None or step != self._next_step:
            self.close()
            self._reading = self._split.follow(self._pick, step)
        images = next(self._reading)
        self._next_step = step + 1
        generator = torch.Generator().manual_seed(derive_seed(*self._seed_parts(step), "augment"))
        images = augment(images, self._recipe.data, generator).to(self._device)
        labels = self._split.labels[self._find_rows(step)].to(self._device)
        seed = derive_seed(*self._seed_parts(step), "mix")
        return self._augment_batch(self._data.normalize(images), labels, seed)

    def close(self) -> None:
        """End the loader processes that read ahead, if there are any."""
        # Left to Python's garbage collector, the queue that tells them to end may be collected first. Python would then
        # wait for each of them in vain: for seconds, and again when the program ends.
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def seed_noise(self, step: int) -> None:
        """Seed torch's generators, from which dropout and the posteriors draw their noise at `step`."""
        seed = derive_seed(*self._seed_parts(step))
        if self._device.type == "cpu":
            # `torch.manual_seed` takes a millisecond to remember the seed for devices that are not there.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def _seed_parts(self, step: int) -> tuple[int, str, int, int]:
        return self._recipe.seed, self._stage, step, self._rank

    def _pick(self, step: int) -> list[Pick]:
        """The images of a step, each with the seed of its augmentation in this epoch."""
        epoch = step // self.per_epoch
        rows = self._find_rows(step).tolist()
        return [(row, derive_seed(self._recipe.seed, self._stage, epoch, row)) for row in rows]

    def _find_rows(self, step: int) -> Tensor:
        """The places of a step's images in the split."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch not in self._orders:
            neighbors = {key: order for key, order in self._orders.items() if abs(key - epoch) == 1}
            self._orders = {**neighbors, epoch: self._shuffle(epoch)}
        order = self._orders[epoch]
        # The ranks take turns at the shuffled images, and so do the steps of each rank.
        rows = order[place * self._world + self._rank :: self.per_epoch * self._world]
        return rows[: self._recipe.data.batch_size]

    def _shuffle(self, epoch: int) -> Tensor:
        """The same order of all images on every rank."""
        seed = derive_seed(self._recipe.seed, self._stage, "order", epoch)
        return torch.randperm(len(self._split), generator=torch.Generator().manual_seed(seed))
