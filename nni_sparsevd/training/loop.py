"""The training loop: one stage of optimisation that can be stopped at any step and goes on as if it had not been."""

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data import DataSets, augment, to_memory_format
from ..errors import TrainingError
from ..masks import Masks, apply_masks_
from ..nn import is_variational, kl, regularize_
from ..recipe import Recipe, SparseStage, Stage
from ..shrinking import shrink_
from .checkpoint import Checkpoint, Place, take_checkpoint, write_checkpoint
from .metrics import Metrics
from .optimizer import build_optimizer, rebuild_optimizer, set_learning_rate
from .schedule import derive_seed, kl_coefficient_at, learning_rate_at
from .sharding import agree_, gather_, like, sharded

LOOK_EVERY = 50
"""Steps between looks at the loss: each makes the device wait."""
AGREE_EVERY = 10
"""Steps between those after which several processes may save or stop, which they can only do together."""
EpochEnd = Callable[[int], dict[str, float]]
"""Epochs done -> accuracy and held_out_loss of what would ship, sparsity, compression."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or a termination signal; the checkpoint is written."""


@dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    recipe: Recipe
    folder: Path
    data: DataSets
    accelerator: Accelerator
    metrics: Metrics

    @property
    def checkpoint(self) -> Path:
        """The file that says where the run stands."""
        return self.folder / "checkpoint.safetensors"


def fit(
    run: Run,
    name: str,
    model: nn.Module,
    stage: Stage,
    epoch_end: EpochEnd,
    *,
    masks: Masks | None = None,
    start: Checkpoint | None = None,
) -> None:
    """Train `model` in place through `stage`, from the beginning or from `start`.

    The objective is mean cross-entropy, plus KL weight * KL / N where the network has posteriors.  With `masks`, what
    they remove stays zero.  Checkpoints at each epoch's end, every `checkpoint_minutes`, and when interrupted.  With
    another number of processes than before, training goes on where as many epochs are done; of the one at hand, images
    may come twice or not at all.

    Raises `TrainingError` on a loss that is not finite (the last checkpoint is from before), `Interrupted` on Ctrl-C.
    """
    accelerator, data, recipe = run.accelerator, run.data, run.recipe
    if start is not None:
        start.restore_(model)
    model.to(accelerator.device)
    world, rank = accelerator.num_processes, accelerator.process_index
    count = len(data.train)
    per_epoch = max(count // (recipe.data.batch_size * world), 1)
    split = recipe.shard and world > 1
    learner = sharded(model) if split else model
    """What learns: `model`, or this process's part of it, from which `model` is gathered when somebody looks."""
    optim = build_optimizer(learner, stage, stage.gate_rate if isinstance(stage, SparseStage) else 1.0)
    step, running = 0, torch.zeros(3, dtype=torch.float64)
    if start is not None:
        start.restore_optimizer_(optim, accelerator.scaler)
        running = start.running.clone() if accelerator.is_main_process else running
        step = start.place.among(per_epoch)
    running = running.to(accelerator.device)
    wrapped = learner if split else _together(model, accelerator)
    pulled = stage if isinstance(stage, SparseStage) and is_variational(model) else None
    resized = recipe.sparse.shrink_at is not None and name != "dense"
    total = stage.epochs * per_epoch
    held = None if masks is None else _held(learner, masks)
    saved = began = time.monotonic()
    worked = time.process_time()
    order = torch.empty(0)

    def save() -> None:
        _check_finite(running[0].item(), name, step, run.checkpoint, model)
        at, everyones = Place(name, step, per_epoch), accelerator.reduce(running.clone())
        taken = take_checkpoint(at, model, optim, everyones, accelerator.scaler, resized=resized)
        if accelerator.is_main_process:
            write_checkpoint(run.checkpoint, taken)

    with _Signals() as signals, run.metrics.stage(name, total, step) as bar:
        while step < total:
            epoch, place = divmod(step, per_epoch)
            if place == 0 or not len(order):
                generator = torch.Generator().manual_seed(derive_seed(recipe.seed, name, "order", epoch))
                order = torch.randperm(count, generator=generator)
            here = (recipe.seed, name, step, rank)
            rows = order[place * world + rank :: per_epoch * world][: recipe.data.batch_size]
            generator = torch.Generator().manual_seed(derive_seed(*here, "augment"))
            images = augment(data.train.images[rows], recipe.data, generator).to(accelerator.device)
            labels = data.train.labels[rows].to(accelerator.device)
            torch.manual_seed(derive_seed(*here))
            learner.train()
            with accelerator.autocast():
                logits = wrapped(to_memory_format(data.normalize(images), recipe.channels_last))
            loss = F.cross_entropy(logits.float(), labels)
            set_learning_rate(optim, learning_rate_at(stage, step / total))
            optim.zero_grad()
            accelerator.backward(loss)
            if pulled is not None:
                weight = kl_coefficient_at(pulled, step / per_epoch) / count
                regularize_(learner, weight if accelerator.scaler is None else weight * accelerator.scaler.get_scale())
            if accelerator.scaler is None:
                optim.step()
            else:  # fp16: the gradients are scaled, and a step that overflowed is left out
                accelerator.scaler.step(optim)
                accelerator.scaler.update()
            if held is not None:
                apply_masks_(learner, held)
            step += 1
            with torch.no_grad():
                running += torch.stack(
                    [loss * len(rows), (logits.argmax(1) == labels).sum(), loss.new_tensor(len(rows))]
                )
            looked, ends = step % LOOK_EVERY == 0, step % per_epoch == 0
            if looked or ends:
                _check_finite(running[0].item(), name, step, run.checkpoint)
            divergence = _divergence(learner) if pulled is not None and (looked or ends) else 0.0
            run.metrics.step(bar, f"loss {loss.item():.3f}  kl {divergence:.3g}" if looked else None)
            if ends:
                if split:
                    gather_(model, learner)
                spent = {"seconds": time.monotonic() - began, "processor_seconds": time.process_time() - worked}
                _record(run, name, step, per_epoch, running, divergence, stage, epoch_end, spent)
                running.zero_()
                if pulled is not None and pulled.shrink_at is not None and step < total:
                    optim = _shrunk(run, model, pulled, optim)
                    wrapped = _together(model, accelerator)
            overdue = time.monotonic() - saved > 60 * recipe.checkpoint_minutes
            overdue, stops = _agreed(accelerator, overdue, signals.caught, ends or step % AGREE_EVERY == 0)
            if ends or overdue or stops:
                if split and not ends:
                    gather_(model, learner)
                save()
                saved = time.monotonic()
            if stops:
                raise Interrupted(f"stopped in stage {name} after step {step} of {total}; go on with --resume")
    if step == 0:
        save()


@torch.no_grad()
def _divergence(model: nn.Module) -> float:
    return kl(model).item()


def _together(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """What is called in training: gradients are averaged among processes.

    Not `accelerator.prepare_model`, which would have the network compute in mixed precision wherever it is called.
    """
    if accelerator.num_processes == 1:
        return model
    return DistributedDataParallel(model, None if accelerator.device.type == "cpu" else [accelerator.device])


def _shrunk(run: Run, model: nn.Module, stage: SparseStage, optim: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Take out of `model` what has died by now, in place; gives the optimizer of what is left."""
    if run.accelerator.num_processes > 1:
        agree_(model)  # constants are made of running statistics
    example = run.data.normalize(run.data.train.images[:2])
    masks = run.recipe.masks
    multiple = masks.block if masks.structure == "n:m" else 1  # or a layer could not be decided in blocks at the end
    shrink_(model, example, optim, threshold=stage.shrink_at, round_to=multiple)
    return rebuild_optimizer(optim, model, stage, stage.gate_rate)


def _held(learner: nn.Module, masks: Masks) -> Masks:
    """The masks of what this process holds, on its device."""

    def mine(name: str, key: str, mask: Tensor) -> Tensor:
        parameter = learner.get_submodule(name).get_parameter(key)
        return like(mask.to(parameter.device), parameter)

    return {name: {key: mine(name, key, mask) for key, mask in targets.items()} for name, targets in masks.items()}


def _agreed(accelerator: Accelerator, overdue: bool, stops: bool, together: bool) -> tuple[bool, bool]:
    """What one process wants all do, when they look: each has a clock of its own, and a signal may reach only one."""
    if accelerator.num_processes == 1:
        return overdue, stops
    if not together:
        return False, False
    wanted = accelerator.reduce(torch.tensor([overdue, stops], device=accelerator.device, dtype=torch.float32))
    return bool(wanted[0] > 0), bool(wanted[1] > 0)


def _check_finite(loss: float, name: str, step: int, path: Path, model: nn.Module | None = None) -> None:
    """Look at a loss; before a checkpoint at the network too, which its last update may have spoilt."""
    finite = math.isfinite(loss)
    if finite and model is not None:
        state = [value.isfinite().all() for value in model.state_dict().values() if value.is_floating_point()]
        finite = bool(torch.stack(state).all())
    if not finite:
        kept = f"the last good checkpoint is {path}" if path.exists() else "no checkpoint had been written yet"
        raise TrainingError(
            f"the loss or the weights are no longer finite in stage {name}, at or before step {step}; {kept}. "
            f"Lower {name}.learning_rate, or start from a dense network (dense.epochs)"
        )


def _record(
    run: Run, name: str, step: int, per_epoch: int, running: Tensor, divergence: float, stage: Stage,
    epoch_end: EpochEnd, spent: dict[str, float],
) -> None:  # fmt: skip
    loss, correct, seen = run.accelerator.reduce(running.clone()).tolist()
    epoch = step // per_epoch
    row: dict[str, Any] = {
        "stage": name, "epoch": epoch, "step": step, "loss": loss / seen, "kl": divergence,
        "kl_weight": kl_coefficient_at(stage, epoch) if isinstance(stage, SparseStage) else 0.0,
        "learning_rate": learning_rate_at(stage, (step - 1) / (stage.epochs * per_epoch)),
        "train_accuracy": correct / seen, **epoch_end(epoch), **{key: round(value, 2) for key, value in spent.items()},
    }  # fmt: skip
    _check_finite(row["held_out_loss"], name, step, run.checkpoint)
    if run.accelerator.is_main_process:
        run.metrics.epoch(row)


class _Signals:
    """Turns Ctrl-C and a termination signal into a flag, so that the step at hand is finished and saved."""

    def __init__(self) -> None:
        self.caught = False

    def __enter__(self) -> "_Signals":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.caught:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self.caught = True
