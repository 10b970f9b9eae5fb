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
from ...recipe import Stage, TeacherSettings
from ...training import (
    Score,
    Teacher,
    build_optimizer,
    derive_seed,
    evaluate,
    find_layer_against_channels_last,
    learning_rate_at,
    set_learning_rate,
)
from .league import League

Batch = tuple[Tensor, Tensor]
"""Images, (batch, channels, height, width), as the network sees them; their classes, (batch,), or the share of each
class, (batch, classes), where labels are smoothed or images are mixed."""
Loss = Callable[[Batch, nn.Module], Tensor]
"""(batch, network) -> scalar to be minimized."""
AfterBackward = Callable[[int], Masks | None]
"""Step -> masks to keep from this step on, or None to keep the same; see `Arena.train`."""
AfterStep = Callable[[int, torch.optim.Optimizer], torch.optim.Optimizer]
"""Steps done, optimizer -> the optimizer to go on with; see `Arena.train`."""


def cross_entropy(batch: Batch, model: nn.Module) -> Tensor:
    """Mean over the batch, in float32."""
    return F.cross_entropy(model(batch[0]).float(), batch[1])


def do_nothing(step: int) -> None:
    """Leave gradients and masks as they are."""


def keep_optimizer(steps_done: int, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Go on with the same optimizer."""
    return optimizer


def distillation_loss(teacher: nn.Module, weight: float) -> Loss:
    """The cross entropy, joined by the distance from the outputs of `teacher`.

    Args:
        teacher: The network to learn from; it stays as it is.
        weight: The teacher's part of the loss.
    """
    joined = Teacher(teacher, TeacherSettings(weight=weight), torch.device("cpu"))

    def loss(batch: Batch, model: nn.Module) -> Tensor:
        images, labels = batch
        logits = model(images).float()
        return joined.join(F.cross_entropy(logits, labels), logits, images)

    return loss


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

    @cached_property
    def loss(self) -> Loss:
        """What rivals minimize: the cross entropy, joined by the dense start's outputs where the league wants it."""
        weight = self.league.teacher_weight
        return self.in_precision(distillation_loss(self.start, weight) if weight else cross_entropy)

    def in_precision(self, loss: Loss) -> Loss:
        """`loss` with networks that compute in the precision of the league."""
        if self.league.precision == "no":
            return loss

        def mixed_precision_loss(batch: Batch, model: nn.Module) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return loss(batch, model)

        return mixed_precision_loss

    @property
    def host_round_to(self) -> int | None:
        """The league's `round_to` as Torch-Pruning takes it: None where widths are not rounded."""
        return self.league.round_to if self.league.round_to > 1 else None

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
        inputs, labels = self._augment_batch(
            self.data.normalize(images), self.data.train.labels[rows], derive_seed(self.seed, "mix", step)
        )
        return inputs, labels

    def lay_out(self, batch: Batch, model: nn.Module) -> Batch:
        """Lay the images of a batch out as the league wants them for the training of `model`."""
        if not self.league.channels_last or find_layer_against_channels_last(model) is not None:
            return batch
        images, labels = batch
        return datasets.to_channels_last(images), labels

    @cached_property
    def _augment_batch(self) -> datasets.BatchAugmentation:
        return datasets.BatchAugmentation(self.league.data, self.data.num_classes)

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
        loss: Loss | None = None,
        after_backward: AfterBackward = do_nothing,
        after_step: AfterStep = keep_optimizer,
        masks: Masks | None = None,
    ) -> None:
        """Train a network in place from step `first` up to, but without, step `last`.

        Args:
            model: The network.
            stage: Optimizer and learning rate; the schedule of the rate runs its course between `first` and `last`.
            first: The first step.
            last: The step after the last one.
            optim: Optimizer to use instead of the one that `stage` describes.
            loss: What is minimized; None for the loss of the league.
            after_backward: Called with the step between the backward pass and the optimizer's step, to add gradients
                or to decide anew. Masks that it returns take the place of those that are kept.
            after_step: Called with the number of steps done and the optimizer at the end of every step, to make the
                network smaller. It returns the optimizer of the parameters that are left.
            masks: What stays removed from the first step on: after every step its weights are set to zero.
        """
        optim = build_optimizer(model, stage) if optim is None else optim
        loss = self.loss if loss is None else self.in_precision(loss)
        model.train()
        for step in range(first, last):
            batch = self.lay_out(self.batch(step), model)
            # Noise and dropout of a step depend on seed and step alone: what a rival draws in its own code between
            # two steps does not change what it, or another rival, sees afterwards.
            torch.default_generator.manual_seed(derive_seed(self.seed, "noise", step))
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
            optim = after_step(step + 1, optim)

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


def check_material(league: League, data: Path) -> None:
    """Open the weights and the data sets of a league, before a process of its own is started for anything.

    A trial reports what it raises as a fact about its rival. What no trial could have is no such fact.

    Args:
        league: The protocol.
        data: Folder of the data sets.

    Raises:
        DataError: The data sets are missing.
        FileFormatError: The checkpoint of the network is missing or damaged.
    """
    requirements = models.find_requirements(league.model.resolve_paths(data))
    datasets.load_data(league.data.resolve_paths(data), None, league.seeds[0], requirements, hold=False)


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
        ModelError: The weights of the network's checkpoint do not fit it.
        FileFormatError: The file of the dense start, or the checkpoint, is missing or damaged.
    """
    network = league.model.resolve_paths(data)
    requirements = models.find_requirements(network)
    datasets_of_seed = datasets.load_data(league.data.resolve_paths(data), None, seed, requirements)
    torch.manual_seed(seed)  # the initial weights are those of the seed
    model = models.create_model(
        network, datasets_of_seed.num_classes, datasets_of_seed.in_chans, datasets_of_seed.image_size
    )
    arena = Arena(league, seed, datasets_of_seed, model)
    path = start_file(folder, seed)
    if path.exists():
        model.load_state_dict(load_tensors(path)[0])
        return arena
    # The start counts its steps from the end of the rivals' steps, so that it sees other batches than they do.
    first = arena.steps
    # Nothing can teach it: it is the teacher of the others.
    arena.train(model, league.dense, first, first + league.dense.epochs * arena.per_epoch, loss=cross_entropy)
    save_tensors(model.state_dict(), path)
    return arena
