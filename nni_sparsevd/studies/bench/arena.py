"""The arena: what every rival gets, and no more: a dense start, batches in a fixed order, steps, a learning rate."""

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
Loss = Callable[[Batch, nn.Module], Tensor]
Between = Callable[[int], None]


def cross_entropy(batch: Batch, model: nn.Module) -> Tensor:
    """Mean over the batch."""
    return F.cross_entropy(model(batch[0]), batch[1])


@dataclass(frozen=True)
class Arena:
    """One seed of a league."""

    league: League
    seed: int
    data: datasets.DataSets
    start: nn.Module
    _orders: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)
    """The order of the epoch at hand."""

    def network(self) -> nn.Module:
        """A copy of the dense start, to do with as one likes."""
        return copy.deepcopy(self.start)

    @property
    def example(self) -> Tensor:
        """Two training images, as the network sees them."""
        return self.data.normalize(self.data.train.images[:2])

    @cached_property
    def dense_macs(self) -> int:
        """Multiply-accumulates of one image in the dense start."""
        return count_macs(self.start, self.example[:1])

    @cached_property
    def dense_error(self) -> float:
        """Test error in percent of the dense start."""
        return 100 * (1 - self.tested(self.start).accuracy)

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
        """Steps of everyone, fine-tuning included."""
        return self.league.epochs * self.per_epoch

    def batch(self, step: int) -> Batch:
        """Images and labels of one step: a function of seed and step alone, so the same for everyone."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = torch.randperm(len(self.data.train), generator=self._generator("order", epoch))
        rows = self._orders[epoch][place * self.league.data.batch_size :][: self.league.data.batch_size]
        images = datasets.augment(self.data.train.images[rows], self.league.data, self._generator("augment", step))
        laid = datasets.to_memory_format(self.data.normalize(images), self.league.channels_last)
        return laid, self.data.train.labels[rows]

    def _generator(self, *place: object) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, *place))

    def train(
        self,
        model: nn.Module,
        stage: Stage,
        first: int,
        last: int,
        *,
        optim: torch.optim.Optimizer | None = None,
        loss: Loss = cross_entropy,
        between: Between = lambda step: None,
        masks: Masks | None = None,
    ) -> None:
        """Train in place from step `first` up to `last`, over which the rate of `stage` runs its course.

        `between` is called between backward and the optimizer's step; what `masks` remove stays zero.
        """
        optim = build_optimizer(model, stage) if optim is None else optim
        model.train()
        for step in range(first, last):
            batch = self.batch(step)
            torch.manual_seed(derive_seed(self.seed, "noise", step))
            set_learning_rate(optim, learning_rate_at(stage, (step - first) / (last - first)))
            optim.zero_grad()
            loss(batch, model).backward()
            between(step)
            optim.step()
            if masks is not None:
                apply_masks_(model, masks)

    def held_out(self, model: nn.Module) -> Score:
        """Score on images that training did not see: what choices may rest on."""
        return evaluate(model, self.data, self.data.holdout)

    def tested(self, model: nn.Module) -> Score:
        """Score on the test images: for the table alone."""
        return evaluate(model, self.data, self.data.test)


def start_file(folder: Path, seed: int) -> Path:
    """Where the dense start of `seed` is."""
    return folder / f"start-{seed}.safetensors"


def classifier(model: nn.Module) -> nn.Linear:
    """The last linear layer, whose outputs nobody may prune."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def prepare_arena(chosen: League, seed: int, data: Path, folder: Path) -> Arena:
    """Read the data and the dense start of `seed`, which is trained where `folder` does not have it yet."""
    settings = chosen.data.resolve_paths(data)
    sets = datasets.load_data(settings, settings.image_size or models.find_image_size(chosen.model), seed)
    torch.manual_seed(seed)
    model = models.create_model(chosen.model, sets.num_classes, sets.in_chans, sets.image_size)
    made, path = Arena(chosen, seed, sets, model), start_file(folder, seed)
    if path.exists():
        model.load_state_dict(load_tensors(path)[0])
    else:
        # other batches than the rivals': steps count from their end
        begins = made.steps
        made.train(model, chosen.dense, begins, begins + chosen.dense.epochs * made.per_epoch)
        save_tensors(model.state_dict(), path)
    return made
