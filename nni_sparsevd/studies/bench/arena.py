"""The arena: what every rival gets, and no more.

That is a dense start, batches in a fixed order, a number of steps and a schedule of learning rates.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import data as datasets
from ... import models
from ...files import load_tensors, save_tensors
from ...masks import Masks, apply_masks_
from ...measure import count_macs
from ...recipe import Stage
from ...training import Score, build_optimizer, derive_seed, evaluate, learning_rate_at, set_learning_rate
from .league import League

Batch = tuple[Tensor, Tensor]
"""Images, (batch, channels, height, width), as the network sees them; labels, (batch,)."""
Loss = Callable[[Batch, nn.Module], Tensor]
"""(batch, network) -> scalar to be minimized."""
AfterBackward = Callable[[int], Masks | None]
"""Step -> masks to keep from this step on, or None to keep the same; see `Arena.train`."""


def cross_entropy(batch: Batch, model: nn.Module) -> Tensor:
    """Mean over the batch."""
    return F.cross_entropy(model(batch[0]), batch[1])


def do_nothing(step: int) -> None:
    """Leave gradients and masks as they are."""


@dataclass(frozen=True)
class Arena:
    """One seed of a league."""

    league: League
    """The protocol."""
    seed: int
    """Seed of the start, of the order of the batches, of the hold-out and of the noise."""
    data: datasets.DataSets
    """Images to train on, to choose by (the hold-out) and to test on."""
    start: nn.Module
    """The trained dense network; nobody changes it."""
    _orders: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)
    """Epoch -> order of the training images; holds the latest epoch alone."""

    def network(self) -> nn.Module:
        """Copy the dense start; the copy may be changed."""
        return copy.deepcopy(self.start)

    @property
    def example(self) -> Tensor:
        """Two training images, (2, channels, height, width), as the network sees them."""
        return self.data.make_example_inputs()

    @cached_property
    def dense_macs(self) -> int:
        """Multiply-accumulates of one image in the dense start."""
        return count_macs(self.start, self.example[:1])

    @cached_property
    def dense_error(self) -> float:
        """Test error of the dense start, in percent."""
        return 100 * (1 - self.score_test(self.start).accuracy)

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return max(len(self.data.train) // self.league.data.batch_size, 1)

    @property
    def prune_steps(self) -> int:
        """Steps that a rival may take to decide."""
        return self.league.prune_epochs * self.per_epoch

    @property
    def steps(self) -> int:
        """Steps that every rival has, fine-tuning included."""
        return self.league.epochs * self.per_epoch

    def batch(self, step: int) -> Batch:
        """Images and labels of one step: a function of seed and step alone, so the same for every rival."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch not in self._orders:
            self._orders.clear()  # steps come in order, so earlier epochs are not asked for again
            self._orders[epoch] = torch.randperm(len(self.data.train), generator=self._generator("order", epoch))
        size = self.league.data.batch_size
        rows = self._orders[epoch][place * size :][:size]
        images = datasets.augment(self.data.train.images[rows], self.league.data, self._generator("augment", step))
        inputs = datasets.to_memory_format(self.data.normalize(images), self.league.channels_last)
        return inputs, self.data.train.labels[rows]

    def _generator(self, *purpose: object) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, *purpose))

    def train(
        self,
        model: nn.Module,
        stage: Stage,
        first: int,
        last: int,
        *,
        optim: torch.optim.Optimizer | None = None,
        loss: Loss = cross_entropy,
        after_backward: AfterBackward = do_nothing,
        masks: Masks | None = None,
    ) -> None:
        """Train a network in place from step `first` up to, but without, step `last`.

        Args:
            model: The network.
            stage: Optimizer and learning rate; the schedule of the rate runs its course between `first` and `last`.
            first: The first step.
            last: The step after the last one.
            optim: Optimizer to use instead of the one that `stage` describes.
            loss: What is minimized.
            after_backward: Called with the step between the backward pass and the optimizer's step, to add gradients
                or to decide anew. Masks that it returns take the place of those that are kept.
            masks: What stays removed from the first step on: after every step its weights are set to zero.
        """
        optim = build_optimizer(model, stage) if optim is None else optim
        model.train()
        for step in range(first, last):
            batch = self.batch(step)
            # Noise and dropout of a step depend on seed and step alone: what a rival draws in its own code between
            # two steps does not change what it, or another rival, sees afterwards.
            torch.manual_seed(derive_seed(self.seed, "noise", step))
            set_learning_rate(optim, learning_rate_at(stage, (step - first) / (last - first)))
            optim.zero_grad()
            loss(batch, model).backward()
            changed_masks = after_backward(step)
            if changed_masks is not None:
                masks = changed_masks
            optim.step()
            # Gradient and momentum move removed weights as they move all others.
            if masks is not None:
                apply_masks_(model, masks)

    def score_holdout(self, model: nn.Module) -> Score:
        """Score a network on images that training did not see; choices may rest on it."""
        return evaluate(model, self.data, self.data.holdout)

    def score_test(self, model: nn.Module) -> Score:
        """Score a network on the test images; only tables may use it."""
        return evaluate(model, self.data, self.data.test)


def start_file(folder: Path, seed: int) -> Path:
    """Path of the dense start of `seed`."""
    return folder / f"start-{seed}.safetensors"


def find_classifier(model: nn.Module) -> nn.Linear:
    """The last linear layer, whose outputs are the classes and may not be pruned."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def prepare_arena(league: League, seed: int, data: Path, folder: Path) -> Arena:
    """Read the data and the dense start of a seed; train the start first where `folder` does not have it.

    Args:
        league: The protocol.
        seed: Which of its seeds.
        data: Folder of the data sets.
        folder: Folder of the league, where the dense starts are kept.

    Returns:
        The arena of this seed.

    Raises:
        DataError: The data sets are missing or do not fit the network.
        FileFormatError: The file of the dense start is damaged.
    """
    settings = league.data.resolve_paths(data)
    image_size = settings.image_size or models.find_image_size(league.model)
    datasets_of_seed = datasets.load_data(settings, image_size, seed)
    torch.manual_seed(seed)  # the initial weights are those of the seed
    model = models.create_model(
        league.model, datasets_of_seed.num_classes, datasets_of_seed.in_chans, datasets_of_seed.image_size
    )
    arena = Arena(league, seed, datasets_of_seed, model)
    path = start_file(folder, seed)
    if path.exists():
        model.load_state_dict(load_tensors(path)[0])
        return arena
    # The start counts its steps from the end of the rivals' steps, so that it sees other batches than they do.
    first = arena.steps
    arena.train(model, league.dense, first, first + league.dense.epochs * arena.per_epoch)
    save_tensors(model.state_dict(), path)
    return arena
