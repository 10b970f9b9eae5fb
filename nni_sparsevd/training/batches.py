"""The training batches of one process."""

from typing import final

import torch
from torch import Tensor

from ..data import augment
from .run import Run
from .schedule import derive_seed


@final
class Batches:
    """Batches of a stage: each is a function of the recipe's seed, the stage, the step and the rank alone.

    An iterator would have a state, and a resumed run would have to put it back.
    """

    def __init__(self, run: Run, stage: str) -> None:
        """Give each of the run's processes the same number of batches per epoch, and different images."""
        self._recipe, self._data, self._stage = run.recipe, run.data, stage
        self._split = run.data.train
        self._rank = run.accelerator.process_index
        self._world = run.accelerator.num_processes
        self._device = run.accelerator.device
        self._epoch = -1
        self._order = torch.empty(0)
        self.per_epoch = max(len(self._split) // (run.recipe.data.batch_size * self._world), 1)
        """Steps in an epoch; images that do not fill a batch are left out."""

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """The inputs of the network and the labels at `step`, counted from 0, on the device of this process."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        # The ranks take turns at the shuffled images, and so do the steps of each rank.
        rows = self._order[place * self._world + self._rank :: self.per_epoch * self._world]
        rows = rows[: self._recipe.data.batch_size]
        generator = torch.Generator().manual_seed(derive_seed(*self._seed_parts(step), "augment"))
        images = augment(self._split.images[rows], self._recipe.data, generator)
        return self._data.normalize(images.to(self._device)), self._split.labels[rows].to(self._device)

    def seed_noise(self, step: int) -> None:
        """Seed torch's generators, from which dropout and the posteriors draw their noise at `step`."""
        torch.manual_seed(derive_seed(*self._seed_parts(step)))

    def _seed_parts(self, step: int) -> tuple[int, str, int, int]:
        return self._recipe.seed, self._stage, step, self._rank

    def _shuffle(self, epoch: int) -> Tensor:
        """The same order of all images on every rank."""
        seed = derive_seed(self._recipe.seed, self._stage, "order", epoch)
        return torch.randperm(len(self._split), generator=torch.Generator().manual_seed(seed))
