"""Tuning for integers of eight bits: the network of each level is trained on with fake ones, after fine-tuning."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from ..convert import bake_
from .batches import count_epoch_batches
from .fake_integers import FakeIntegers
from .levels import TunedLevel
from .network_files import read_network_
from .stage_context import StageContext
from .teacher import Teacher


def tune_for_integers(context: StageContext, tuned: Sequence[TunedLevel], dense: nn.Module) -> tuple[TunedLevel, ...]:
    """Train the networks of all levels on with fake integers, under the teacher of the run or the dense network.

    Args:
        context: The run, after fine-tuning.
        tuned: The levels.
        dense: The dense network, which teaches where the run has no teacher.

    Returns:
        The levels with their networks as the tuning has left them, in floats.

    Raises:
        TrainingError: The loss is no longer finite.
        ModelError: The network does not compute the same for every batch.
    """
    recipe = context.run.recipe
    teacher = (context.teacher or context.make_teacher(dense)).with_weight(recipe.quantize.teacher_weight)
    after = []
    for level in tuned:
        # The checkpoint holds the network of the last stage.
        in_checkpoint = level is tuned[-1] and not recipe.twin
        after.append(_tune_level(context, level, teacher, write=not in_checkpoint))
    return tuple(after)


def _tune_level(context: StageContext, tuned: TunedLevel, teacher: Teacher, *, write: bool) -> TunedLevel:
    """Train the network of a level on, or read it back where that has been done."""
    level, network = tuned.level, tuned.masked
    if context.has_passed(level.quantize_stage):
        read_network_(network, level.folder / "quantized.safetensors")
    else:
        _train(context, tuned, teacher)
        bake_(network.cpu(), tuned.masks, allow_empty=True)
        if write:
            context.write(network, "quantized", level.quantize_stage, level.folder)
    return replace(tuned, masked=network, held_out=context.score_held_out(network.eval()))


def _train(context: StageContext, tuned: TunedLevel, teacher: Teacher) -> None:
    stage = context.run.recipe.quantize
    batches = stage.epochs * count_epoch_batches(context.run)
    integers = FakeIntegers(tuned.masked, context.example_inputs, batches)
    context.train(tuned.level.quantize_stage, tuned.masked, stage, masks=tuned.masks, teacher=teacher)
    integers.remove_()
