"""Fine-tuning: the network of each level that meets its budget is trained on, with what was removed at zero."""

import copy
from collections.abc import Sequence

from torch import nn

from ..convert import bake_, sparsify_
from ..errors import TrainingError
from ..files import load_tensors
from ..masks import Masks, unflatten_masks
from ..recipe import SparseStage
from .levels import Level, TunedLevel, find_best_accuracy, read_account
from .masked_posterior import mask_posterior_
from .network_files import read_network_
from .stage_context import StageContext


def finetune_levels(context: StageContext, dense_held_out: float) -> tuple[TunedLevel, ...]:
    """Fine-tune the networks, from large to small; with a tolerance alone, until one is out of it.

    Args:
        context: The run, after the decision; levels that miss their budget are left out.
        dense_held_out: Accuracy of the dense network on held-out images.

    Returns:
        At least one level.

    Raises:
        TrainingError: No level meets its budget, or the loss is no longer finite.
    """
    recipe = context.run.recipe
    budget, is_followed = recipe.budget, recipe.twin or recipe.quantize.aware
    tuned = []
    for level in _list_met_levels(context):
        # The checkpoint holds the network of the last stage.
        in_checkpoint = level is context.levels[-1] and not is_followed
        tuned.append(_finetune_level(context, level, write=not in_checkpoint))
        best = find_best_accuracy(tuned, dense_held_out)
        if budget.searches and not tuned[-1].is_within(budget.allowed_loss, best):
            break
    return tuple(tuned)


def _list_met_levels(context: StageContext) -> Sequence[Level]:
    """The levels whose budget is met; all where there is none."""
    budget = context.run.recipe.budget
    if budget.kind is None:
        return context.levels
    account = read_account(context.run.folder / "budget.json")
    met = [level for level in context.levels if level.part is None or account.is_met(level.part)]
    if not met:
        raise TrainingError(account.describe_missed(budget.round_to))
    return met


def _finetune_level(context: StageContext, level: Level, *, write: bool) -> TunedLevel:
    """Fine-tune the network of a level, or read it back where that has been done."""
    # Read back even if the run was not interrupted here, so that a resumed run has the same network.
    masks = unflatten_masks(load_tensors(level.folder / "masks.safetensors")[0])
    masked = copy.deepcopy(context.initial)
    if context.has_passed(level.stage):
        read_network_(masked, level.folder / "tuned.safetensors")
    else:
        read_network_(masked, level.folder / "baked.safetensors")
        _train(context, masked, masks, level)
        bake_(masked.cpu(), masks, allow_empty=True)
        if write:
            context.write(masked, "tuned", level.stage, level.folder)
    return TunedLevel(level, masked, masks, context.score_held_out(masked.eval()))


def _train(context: StageContext, model: nn.Module, masks: Masks, level: Level) -> None:
    """Train the weights that the masks keep, with the noise of their posteriors or without."""
    recipe = context.run.recipe
    stage = recipe.finetune.of_level(level.place)
    if not stage.epochs:
        return
    if recipe.finetune.variational:
        sparsify_(model, recipe.posterior, example_inputs=context.example_inputs)
        read_network_(model, level.folder / "posterior.safetensors")
        mask_posterior_(model, masks)
        # The weights that are left have felt the KL already: it needs no warm-up.
        of_sparse_stage = recipe.sparse.model_dump(include={"kl_coefficient", "gate_rate"})
        stage = SparseStage(**stage.model_dump(), **of_sparse_stage)
    context.train(level.stage, model, stage, masks=masks)


def describe_missed(context: StageContext, chosen: TunedLevel, dense_held_out: float) -> str:
    """Say what the budget asked for and the run did not reach.

    Args:
        context: The run, after fine-tuning.
        chosen: The network of the run.
        dense_held_out: Accuracy of the dense network on held-out images.

    Returns:
        A sentence or several; empty where the run reached everything.
    """
    budget = context.run.recipe.budget
    if budget.searches:
        if chosen.is_within(budget.allowed_loss, dense_held_out):
            return ""
        return (
            f"budget.tolerance = {budget.allowed_loss:g}: no network is accurate enough; the best of them has "
            f"{100 * chosen.held_out:.2f} % on held-out images, the dense one {100 * dense_held_out:.2f} %. Train "
            "longer (sparse.epochs, finetune.epochs), or allow more. The run folder holds the networks"
        )
    if budget.kind is None:
        return ""
    account = read_account(context.run.folder / "budget.json")
    return account.describe_missed(budget.round_to) if account.missed else ""
