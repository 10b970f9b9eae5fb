"""The training loop: one stage of optimization that can be stopped at any step and goes on as if it had not been."""

import math
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import TrainingError
from ..masks import Masks
from ..nn import kl, regularize_
from ..recipe import QuantizeStage, SparseStage, Stage
from ..regularize import GradualRemoval, kl_weight_now, read_loss_scale, start_natural_steps_, take_natural_steps_
from ..shrinking import shrink_
from .averaging import WeightAverage
from .batches import Batches, count_epoch_steps, count_stage_steps
from .checkpoint import Checkpoint, Place, take_checkpoint, write_checkpoint
from .learner import Learner
from .memory_format import lay_out
from .optimizer import build_optimizer, rebuild_optimizer, set_learning_rate
from .run import Run
from .schedule import kl_coefficient_at, learning_rate_at
from .signals import Interrupted, SignalFlag
from .teacher import Teacher

LOOK_EVERY = 50
"""Steps after which the loss is read: each reading makes this process wait for the device."""
AGREE_EVERY = 10
"""Steps after which several processes agree whether to save or to stop, which they can only do together."""
OnEpochEnd = Callable[[int], dict[str, float]]
"""Epochs done -> accuracy and held_out_loss of what would ship, sparsity, compression."""


@final
class StageTrainer:
    """Trains a network in place through one stage, from its beginning or from a checkpoint, in one process.

    The objective is the mean cross-entropy, joined by the distance from the teacher where there is one, plus KL weight
    * KL / N in a stage with a KL coefficient. Checkpoints are written at the end of each epoch, every
    `checkpoint_minutes`, and when interrupted.

    Everything that a step changes is in `_step`, `_sums`, the network and the optimizer, and all four are in the
    checkpoint. What is random is a function of the step. A resumed run therefore ends with the same bits.

    With another number of processes, a resumed stage goes on from the step at which the same part of it is done. In the
    epoch that was interrupted, some images may then be seen twice and others not at all.

    Args:
        run: Recipe, folder, data and processes.
        name: Name of the stage: dense, sparse, finetune or finetune_LEVEL, quantize or quantize_LEVEL.
        model: The network, on any device; it ends on that of the process.
        stage: Epochs, optimizer and schedule.
        on_epoch_end: Called by every process at the end of each epoch, when `model` is up to date.
        masks: What they remove stays zero.
        teacher: Whose outputs the network learns to give, beside the labels.
        removal: What removes channels on the way to a budget.
        start: The checkpoint of this stage to go on from.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        model: nn.Module,
        stage: Stage,
        on_epoch_end: OnEpochEnd,
        *,
        masks: Masks | None = None,
        teacher: Teacher | None = None,
        removal: GradualRemoval | None = None,
        start: Checkpoint | None = None,
    ) -> None:
        self._run, self._name, self._stage, self._on_epoch_end = run, name, stage, on_epoch_end
        self._recipe, self._accelerator, self._teacher = run.recipe, run.accelerator, teacher
        # The network takes the sizes of the checkpoint before the optimizer is built for its parameters.
        if start is not None:
            start.restore_(model)
        self._batches = Batches(run, name)
        self._removal = removal
        # On the way to a budget the variances of gates follow the curvature, and the optimizer leaves them alone.
        # DistributedDataParallel, in the learner, would wait for the gradient of whatever learned when it was made.
        self._natural_gates = [] if removal is None else start_natural_steps_(model)
        self._learner = Learner(model, run.accelerator, shard=run.recipe.shard, compile_with=self._choose_compiler())
        self._optimizer = build_optimizer(self._learner.trained, stage)
        self._sparse = stage if isinstance(stage, SparseStage) else None
        self._masks = None if masks is None else self._learner.place_masks(masks)
        self._average = None if stage.ema is None else WeightAverage(self._learner.model, stage.ema)
        self._per_epoch = count_epoch_steps(stage, self._batches.per_epoch)
        self._total = count_stage_steps(stage, self._batches.per_epoch)
        self._step = 0
        self._sums = torch.zeros(3, dtype=torch.float64)
        """Over the epoch so far and the images of this process: loss, correct answers, images."""
        if start is not None:
            self._resume(start)
        self._sums = self._sums.to(run.accelerator.device)
        self._began = self._saved = time.monotonic()
        self._processor_began = time.process_time()

    def _choose_compiler(self) -> str | None:
        """The backend of `torch.compile` for this stage; None: it is not compiled."""
        changes_sizes = self._name == "sparse" and self._recipe.changes_sizes
        # Fake integers are made while Python calls the network's functions, which compiled code does not.
        makes_integers = isinstance(self._stage, QuantizeStage)
        return None if changes_sizes or makes_integers else self._recipe.compile

    def _resume(self, start: Checkpoint) -> None:
        start.restore_optimizer_(self._optimizer, self._accelerator.scaler)
        if self._average is not None:
            self._average.restore_(start.average)
        self._step = start.place.step_at(self._per_epoch)
        # The checkpoint has the sums over all processes, so only one of them may begin with them.
        if self._accelerator.is_main_process:
            self._sums = start.running.clone()

    def train(self) -> None:
        """Take all steps that are left; every process has to call it.

        Raises:
            TrainingError: The loss or a weight is not finite; the last checkpoint is from before.
            Interrupted: On Ctrl-C or a termination signal, after the step at hand has been saved.
        """
        with (
            closing(self._batches),
            SignalFlag() as signals,
            self._run.metrics.show_stage(self._name, self._total, self._step) as bar,
        ):
            while self._step < self._total:
                loss = self._take_step()
                if self._removal is not None:
                    self._remove(self._removal)
                ends_epoch = self._step % self._per_epoch == 0
                status = None
                if ends_epoch or self._step % LOOK_EVERY == 0:
                    self._refuse_unless_finite(self._loss_is_finite())
                    divergence = self._measure_kl()
                    status = f"loss {loss.item():.3f}  kl {divergence:.3g}"
                self._run.metrics.advance(bar, status)
                if ends_epoch:
                    self._end_epoch(divergence)
                self._save_or_stop(ends_epoch, signals.raised)
        # A stage without epochs leaves a checkpoint, too, or resuming would begin with the stage before.
        if self._step == 0:
            self._save()
        # After the checkpoint, which holds the weights that a resumed stage goes on with.
        if self._average is not None:
            self._average.put_()

    # A step.

    def _take_step(self) -> Tensor:
        """Take one step, which learns from one batch or several; returns their mean loss."""
        self._learner.trained.train()
        set_learning_rate(self._optimizer, self._learning_rate(self._step))
        self._optimizer.zero_grad()
        epoch, place = divmod(self._step, self._per_epoch)
        first = epoch * self._batches.per_epoch + place * self._stage.accumulate
        losses = [self._learn_from_batch(first + index) for index in range(self._stage.accumulate)]
        if self._stage.accumulate > 1:
            _divide_gradients_(self._learner.trained, self._stage.accumulate)
        self._add_kl_gradient()
        self._update_weights()
        self._step += 1
        if self._average is not None:
            self._average.update(self._step)
        return torch.stack(losses).mean()

    def _learn_from_batch(self, batch: int) -> Tensor:
        """Add the gradient of one batch, counted from the beginning of the stage; returns its mean loss."""
        images, labels = self._batches.draw(batch)
        self._batches.seed_noise(batch)
        images = lay_out(images, self._learner.trained, channels_last=self._recipe.channels_last)
        with self._accelerator.autocast():
            logits = self._learner.forward(images)
        loss = F.cross_entropy(logits.float(), labels)
        if self._teacher is not None:
            with self._accelerator.autocast():
                loss = self._teacher.join(loss, logits, images)
        self._accelerator.backward(loss)
        self._move_variances(len(labels), batch)
        # The sums stay on the device: reading them at every step would make it wait.
        with torch.no_grad():
            # Mixed images have a share of several classes each: shape (count, classes).
            classes = labels if labels.dim() == 1 else labels.argmax(1)
            correct = (logits.argmax(1) == classes).sum()
            self._sums += torch.stack([loss * len(labels), correct, loss.new_tensor(len(labels))])
            return loss.detach()

    def _move_variances(self, batch_size: int, batches_done: int) -> None:
        """Let the variances of gates follow the curvature that backward has found."""
        if not self._natural_gates:
            return
        assert self._sparse is not None
        several = self._accelerator.num_processes > 1
        take_natural_steps_(
            self._natural_gates,
            batch_size,
            len(self._run.data.train),
            self._sparse.kl_coefficient,
            batches_done,
            partial(self._accelerator.reduce, reduction="mean") if several else None,
        )

    def _learning_rate(self, step: int) -> float:
        """The rate of the step that is taken after `step` others."""
        # Each level of a budget has the whole schedule. With one for all, the smallest network would lose most of its
        # channels when the rate is too low to heal.
        progress = step / self._total if self._removal is None else self._removal.find_progress(step)
        return learning_rate_at(self._stage, progress)

    def _add_kl_gradient(self) -> None:
        """Add the gradient of weight * KL / N after backward: the processes have averaged their gradients by then."""
        if self._sparse is None:
            return
        coefficient = kl_coefficient_at(self._sparse, self._step / self._per_epoch)
        loss_scale = read_loss_scale(self._optimizer, self._accelerator.scaler)
        weight = kl_weight_now(coefficient, len(self._run.data.train), loss_scale=loss_scale)
        regularize_(self._learner.trained, weight)

    def _update_weights(self) -> None:
        scaler = self._accelerator.scaler
        if self._stage.clip_norm is not None:
            if scaler is not None:
                scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._learner.trained.parameters(), self._stage.clip_norm)
        if scaler is None:
            self._optimizer.step()
        else:
            # Gradients in float16 are scaled; the scaler leaves a step out when they have overflowed.
            scaler.step(self._optimizer)
            scaler.update()
        # Moments of the optimizer move removed weights even where their gradient is zero.
        if self._masks is not None:
            self._learner.apply_masks_(self._masks)

    def _measure_kl(self) -> float:
        """The KL of all posteriors, in nats; 0.0 in a stage without posteriors."""
        if self._sparse is None:
            return 0.0
        with torch.no_grad():
            return kl(self._learner.trained).item()

    # The end of an epoch.

    def _end_epoch(self, divergence: float) -> None:
        self._learner.gather_()
        seconds, processor_seconds = time.monotonic() - self._began, time.process_time() - self._processor_began
        row = self._make_row(divergence)
        self._refuse_unless_finite(math.isfinite(row["held_out_loss"]))
        row |= {"seconds": round(seconds, 2), "processor_seconds": round(processor_seconds, 2)}
        if self._accelerator.is_main_process:
            self._run.metrics.record(row)
        self._sums.zero_()
        if self._sparse is not None and self._sparse.shrink_at is not None and self._step < self._total:
            self._shrink(self._sparse)

    def _make_row(self, divergence: float) -> dict[str, Any]:
        """The epoch's row of metrics.jsonl, over all processes."""
        loss, correct, seen = self._accelerator.reduce(self._sums).tolist()
        epoch = self._step // self._per_epoch
        coefficient = 0.0 if self._sparse is None else kl_coefficient_at(self._sparse, epoch)
        return {
            "stage": self._name,
            "epoch": epoch,
            "step": self._step,
            "loss": loss / seen,
            "kl": divergence,
            "kl_weight": coefficient,
            "learning_rate": self._learning_rate(self._step - 1),
            "train_accuracy": correct / seen,
            **self._score(epoch),
        }

    def _score(self, epoch: int) -> dict[str, float]:
        """What the stage says of the network as it would ship: of its average, where there is one."""
        if self._average is None:
            return self._on_epoch_end(epoch)
        with self._average.shown():
            return self._on_epoch_end(epoch)

    def _shrink(self, stage: SparseStage) -> None:
        """Remove from the network, in place, the channels that are dead by now."""
        # Removed channels leave constants, which are made of running statistics: all processes need the same.
        self._learner.agree_on_statistics_()
        data, settings = self._run.data, self._recipe.masks
        # A layer whose inputs do not divide into blocks could not be decided N of M at the end.
        multiple = settings.block if settings.structure == "n:m" else 1
        example_inputs = data.make_example_inputs()
        shrink_(self._learner.model, example_inputs, self._optimizer, threshold=stage.shrink_at, round_to=multiple)
        self._follow_sizes()

    def _remove(self, removal: GradualRemoval) -> None:
        """Remove from the network, in place, the channels that leave at this step on the way to the budget."""
        if removal.is_due(self._step):
            self._learner.agree_on_statistics_()
            removal.cut_(self._learner.model, self._optimizer, self._step)
            self._natural_gates = start_natural_steps_(self._learner.model)
            self._follow_sizes()
        # Before the checkpoint of this step: a resumed run finds the networks of the levels that it has left.
        removal.leave_level(self._learner.model, self._step)

    def _follow_sizes(self) -> None:
        """Rebuild what holds the parameters that `shrink_` has replaced: optimizer, DistributedDataParallel."""
        self._optimizer = rebuild_optimizer(self._optimizer, self._learner.model, self._stage)
        self._learner.wrap_again()

    # Saving and stopping.

    def _save_or_stop(self, ends_epoch: bool, wants_to_stop: bool) -> None:
        is_due = time.monotonic() - self._saved > 60 * self._recipe.checkpoint_minutes
        is_due, stops = self._agree(is_due, wants_to_stop, now=ends_epoch or self._step % AGREE_EVERY == 0)
        if ends_epoch or is_due or stops:
            # At the end of an epoch the network has been gathered already.
            if not ends_epoch:
                self._learner.gather_()
            self._save()
            self._saved = time.monotonic()
        if stops:
            raise Interrupted(
                f"stopped in stage {self._name} after step {self._step} of {self._total}; go on with --resume"
            )

    def _agree(self, is_due: bool, wants_to_stop: bool, *, now: bool) -> tuple[bool, bool]:
        """Agree on (save, stop): what one process wants, all of them do at the next step at which they ask (`now`).

        Their clocks differ, and a signal may reach only one of them. Asking makes them wait for each other.
        """
        if self._accelerator.num_processes == 1:
            return is_due, wants_to_stop
        if not now:
            return False, False
        device = self._accelerator.device
        wishes = self._accelerator.reduce(torch.tensor([is_due, wants_to_stop], device=device, dtype=torch.float32))
        return bool(wishes[0] > 0), bool(wishes[1] > 0)

    def _save(self) -> None:
        """Write the checkpoint, unless the network is spoiled: the last update may have done it."""
        self._refuse_unless_finite(self._loss_is_finite() and self._network_is_finite())
        taken = take_checkpoint(
            Place(self._name, self._step, self._per_epoch),
            self._learner.model,
            self._optimizer,
            self._accelerator.reduce(self._sums),
            self._accelerator.scaler,
            resized=self._recipe.changes_sizes_by(self._name),
            average=None if self._average is None else self._average.state(),
        )
        if self._accelerator.is_main_process:
            write_checkpoint(self._run.checkpoint, taken)

    def _loss_is_finite(self) -> bool:
        """Whether every loss of the epoch so far was finite: otherwise their sum would not be."""
        return math.isfinite(self._sums[0].item())

    def _network_is_finite(self) -> bool:
        state = self._learner.model.state_dict().values()
        are_finite = [value.isfinite().all() for value in state if value.is_floating_point()]
        return bool(torch.stack(are_finite).all())

    def _refuse_unless_finite(self, finite: bool) -> None:
        if finite:
            return
        # A run that fails in its first epoch has no checkpoint to point to.
        path = self._run.checkpoint
        kept = f"the last good checkpoint is {path}" if path.exists() else "no checkpoint had been written yet"
        raise TrainingError(
            f"the loss or the weights are no longer finite in stage {self._name}, at or before step {self._step}; "
            f"{kept}. Lower {self._name.partition('_')[0]}.learning_rate, or start from a dense network (dense.epochs)"
        )


def _divide_gradients_(model: nn.Module, count: int) -> None:
    """Make the mean of gradients of their sum over `count` batches of one size."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.div_(count)
