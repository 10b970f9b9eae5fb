"""A recipe, run from beginning to end or from where it was interrupted."""

import copy
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from rich.console import Console
from torch import Tensor, nn

from .. import data as datasets
from .. import models
from ..errors import SettingError
from ..files import write_json
from ..preprocessing import read_configuration, set_values_
from ..recipe import Recipe
from ..regularize import count_steps_needed
from .batches import count_batches, count_epoch_steps, count_stage_steps
from .checkpoint import CHECKPOINT_FILE, Checkpoint, read_checkpoint
from .compiling import check_compiler
from .compressed import Compressed
from .gate_travel import warn_of_gates_that_cannot_arrive
from .levels import list_stages
from .metrics import Metrics
from .phases import show_phase
from .recorded_latency import MeasurePart
from .run import Run
from .run_folder import check_folder, prepare_folder
from .stage_context import StageContext
from .stages import train_stages
from .starting_network import try_forward, try_recipe
from .teacher import adapt_normalization

logger = get_logger(__name__)  # of several processes, the main one speaks

MakeMeter = Callable[[nn.Module, Tensor], MeasurePart]
"""(the dense network, one example input) -> a function that measures the latency of another network as a part of the
dense one's."""
ALL_EPOCHS = 1 << 60
"""More epochs than any stage has."""


def compress(
    recipe: Recipe,
    folder: Path,
    command: list[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    make_meter: MakeMeter | None = None,
) -> Compressed:
    """Run `recipe` in `folder`, or go on there where an interrupted run stopped, bit-exactly.

    Whatever happens, the folder holds the last good checkpoint.

    Args:
        recipe: Network, data, stages and decision.
        folder: The run folder; docs/files.md describes its files.
        command: The command line, for the record.
        resume: Go on with the run in the folder; settings may differ only where their stages have not begun.
        overwrite: Delete the run in the folder, once data and network are known to be good.
        make_meter: Makes what measures a budget of latency; the room `export` has meters of several runtimes.

    Returns:
        The dense and the masked network, the masks, and the data.

    Raises:
        SettingError: The folder is in use, its run has begun with other settings, settings do not fit this machine, or
            the sparse stage is too short for its budget.
        DataError: The data are missing or damaged.
        ModelError: The network is not known, or does not run on these images.
        TraceError: The recipe needs channel groups, and the network cannot be traced.
        FileFormatError: A file of the folder is damaged, or cannot be written.
        TrainingError: The loss is no longer finite, everything is removed (collapse), or no level of the budget is met.
        Interrupted: On Ctrl-C or a termination signal, after the step at hand has been saved.
    """
    accelerator = _make_accelerator(recipe)
    check_compiler(recipe.compile)
    check_folder(recipe, folder, resume=resume, overwrite=overwrite)
    # Every process has to look at the folder before one of them writes there.
    accelerator.wait_for_everyone()
    requirements = models.find_requirements(recipe.model)
    # Before any photo is decoded, which may take long.
    models.check_checkpoint(recipe.model, recipe.data.image_size, requirements)
    torch.manual_seed(recipe.seed)
    is_main = accelerator.is_main_process
    with show_phase("reading the data", shown=is_main):
        data = datasets.load_data(recipe.data, None, recipe.seed, requirements)
    _check_lengths(recipe, len(data.train), accelerator.num_processes)
    with show_phase("trying the network on an image", shown=is_main):
        model, example_inputs, teacher = _create_and_try(recipe, data)
        measure_part = _make_meter(recipe, make_meter, model, example_inputs)
    # Data and network are known to be good: only now may an old run be deleted.
    if is_main:
        prepare_folder(recipe, folder, command, resume=resume, overwrite=overwrite)
        write_json(folder / "preprocessing.json", data.preprocessing.to_dict())
    accelerator.wait_for_everyone()
    start = read_checkpoint(folder / CHECKPOINT_FILE)
    with Metrics(folder, Console(), _find_rows_to_keep(recipe, start), write=is_main) as metrics:
        run = Run(recipe, folder, data, accelerator, metrics)
        return train_stages(StageContext(run, model, example_inputs, start, teacher, measure_part))


def _make_accelerator(recipe: Recipe) -> Accelerator:
    try:
        accelerator = Accelerator(mixed_precision=recipe.precision)
    except ValueError as error:
        # This machine cannot compute in that precision, or an earlier run of this process had another one.
        raise SettingError(f"precision={recipe.precision!r}: {error}") from None
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and accelerator.num_processes == 1:
        # Each of them would train the whole run by itself, all in one folder.
        raise SettingError(
            f"this is one of {started} processes, but Accelerate lets each run alone: without a GPU set the "
            "environment variable ACCELERATE_USE_CPU=1"
        )
    return accelerator


def _check_lengths(recipe: Recipe, images: int, processes: int) -> None:
    """Check that an epoch has batches enough for a step of each stage, and the sparse stage steps for its budget."""
    batches = count_batches(images, recipe.data.batch_size, processes)
    for name, stage in recipe.stages.items():
        if stage.accumulate > batches:
            raise SettingError(
                f"{name}.accumulate = {stage.accumulate}: an epoch has {batches} batches of {recipe.data.batch_size} "
                "images; take fewer, or a smaller data.batch_size"
            )
    _check_budget(recipe, batches)
    warn_of_gates_that_cannot_arrive(recipe, count_stage_steps(recipe.sparse, batches))


def _check_budget(recipe: Recipe, batches: int) -> None:
    """Check that the sparse stage has steps for two cuts on the way to each level of the budget."""
    budget = recipe.budget
    if budget.kind is None:
        return
    steps = count_stage_steps(recipe.sparse, batches)
    needed = count_steps_needed(budget.levels, reached_at=budget.reached_at, cuts=budget.cuts)
    if steps < needed:
        epochs = math.ceil(needed / count_epoch_steps(recipe.sparse, batches))
        levels = ", ".join(f"{level:g}" for level in budget.levels)
        raise SettingError(
            f"sparse.epochs = {recipe.sparse.epochs}: in {steps} steps the gates cannot learn what is needed at "
            f"budget.{budget.kind} = {levels}; take at least {epochs} epochs, or smaller batches"
        )


def _make_meter(
    recipe: Recipe, make_meter: MakeMeter | None, model: nn.Module, example_inputs: Tensor
) -> MeasurePart | None:
    """What measures a budget of latency; it raises where the runtime is not installed or cannot express the network."""
    if recipe.budget.kind != "latency":
        return None
    if make_meter is None:
        raise SettingError("budget.latency: compress needs make_meter, which makes what measures it")
    return make_meter(copy.deepcopy(model).eval(), example_inputs[:1])


def _create_and_try(recipe: Recipe, data: datasets.DataSets) -> tuple[nn.Module, Tensor, nn.Module | None]:
    """The network, two images for it, and the teacher, if there is one; what the run will do is tried on copies."""
    model = models.create_model(recipe.model, data.num_classes, data.in_chans, data.image_size)
    set_values_(model, data.preprocessing.to_dict())  # the network says itself how its inputs are made
    example_inputs = data.make_example_inputs()
    try_recipe(model, example_inputs, recipe)
    return model, example_inputs, _create_teacher(recipe, data, example_inputs)


def _create_teacher(recipe: Recipe, data: datasets.DataSets, example_inputs: Tensor) -> nn.Module | None:
    """The network that `teacher.name` asks for, tried on an image; None where the run's dense network teaches."""
    settings = recipe.teacher
    if not settings.name or not settings.weight:
        return None
    teacher = models.create_model(settings, data.num_classes, data.in_chans, data.image_size)
    try_forward(teacher, example_inputs, f"the teacher {settings.name}")
    # Where a checkpoint has a classifier for other classes, `create_model` warns.
    knows_classes = settings.pretrained and read_configuration(teacher).get("num_classes") == data.num_classes
    if settings.checkpoint is None and not knows_classes:
        logger.warning(
            "teacher.name = %r: its classifier starts from nothing, so it teaches noise; set teacher.checkpoint to "
            "weights that were trained on these classes",
            settings.name,
        )
    return adapt_normalization(teacher, data.preprocessing, models.find_requirements(settings).trained)


def _find_rows_to_keep(recipe: Recipe, start: Checkpoint | None) -> dict[str, int]:
    """Stage -> last epoch that is done at the checkpoint; earlier stages are done altogether."""
    if start is None:
        return {}
    place = start.place
    kept = {}
    stages = list_stages(recipe)
    for stage in stages[: stages.index(place.stage)]:
        kept[stage] = ALL_EPOCHS
    kept[place.stage] = place.step // place.per_epoch
    return kept
