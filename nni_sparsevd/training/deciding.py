"""The decision: what is removed from the network of each level, once the sparse stage has trained it."""

import copy

from torch import nn

from ..convert import bake_, sparsify_
from ..files import save_tensors, write_json
from ..masks import Masks, compute_masks, flatten_masks
from ..regularize import count_gate_costs, use_cutoffs_
from .levels import Level, account_levels
from .network_files import read_network_
from .sensitivity import SENSITIVITY_FILE, measure_sensitivities
from .stage_context import StageContext
from .threshold import choose_threshold


def decide_levels(context: StageContext, dense: nn.Module) -> None:
    """Decide what is removed from the network of each level, and write masks, masked networks and budget.json.

    Args:
        context: The run, after its sparse stage; the folder of each level holds its posterior.
        dense: The network before anything was removed.
    """
    run = context.run
    baked = {}
    for level in context.levels:
        model = _decide_level(context, level)
        if level.part is not None:
            baked[level.part] = model
    if baked and context.is_main:
        account = account_levels(run.recipe.budget, dense, baked, context.example_inputs, context.measure_part)
        account.write(run.folder / "budget.json")
    run.accelerator.wait_for_everyone()


def _decide_level(context: StageContext, level: Level) -> nn.Module:
    """Decide about the network of a level; returns it, ordinary, with zeros where its masks remove."""
    model = copy.deepcopy(context.initial)
    sparsify_(model, context.run.recipe.posterior, example_inputs=context.example_inputs)
    read_network_(model, level.folder / "posterior.safetensors")
    has_budget = level.part is not None
    if has_budget:
        # The budget has decided already: no gate closes by its own threshold.
        use_cutoffs_(model, {})
    if context.is_main:
        gate_macs = count_gate_costs(model, context.example_inputs, "macs") if has_budget else None
        n_train = len(context.run.data.train)
        sensitivities = measure_sensitivities(model, n_train, at_rest=has_budget, gate_macs=gate_macs)
        write_json(level.folder / SENSITIVITY_FILE, [sensitivity.to_dict() for sensitivity in sensitivities])
    masks = decide_masks(context, model, level)
    # A residual branch may be removed altogether; a collapse has been refused before.
    bake_(model, masks, allow_empty=True)
    context.write(model, "baked", "sparse", level.folder)
    return model


def decide_masks(context: StageContext, model: nn.Module, level: Level) -> Masks:
    """Choose the threshold where no budget decides, and write the curve and the masks.

    Args:
        context: The run.
        model: The network with its posteriors, as the sparse stage has left it.
        level: The level that it belongs to.

    Returns:
        The masks.
    """
    run = context.run
    threshold = run.recipe.resolved_threshold
    if level.part is None:
        curve = choose_threshold(
            model,
            threshold,
            run.recipe.masks,
            run.data,
            context.example_inputs,
            dense_weights=context.dense_weights,
        )
        threshold = curve.chosen
        if context.is_main:
            write_json(level.folder / "curve.json", curve.to_dict())
    settings = run.recipe.masks.model_copy(update={"threshold": threshold})
    masks = compute_masks(model, settings, example_inputs=context.example_inputs)
    if context.is_main:
        save_tensors(flatten_masks(masks), level.folder / "masks.safetensors")
    run.accelerator.wait_for_everyone()
    return masks
