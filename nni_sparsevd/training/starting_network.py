"""The network that the sparse stage begins with, and a trial of a recipe before anything is written or trained."""

import copy

import torch
from accelerate.logging import get_logger
from torch import Tensor, nn

from ..convert import sparsify_
from ..errors import ModelError, SettingError, describe_error
from ..graph import channel_graph
from ..nn import Variational, named_posteriors
from ..recipe import BudgetSettings, Recipe
from ..regularize import measure_reach, misses
from .fake_integers import count_places
from .network_files import read_network_
from .optimizer import build_optimizer

logger = get_logger(__name__)  # of several processes, the main one speaks


def make_variational_(model: nn.Module, example_inputs: Tensor, recipe: Recipe) -> nn.Module:
    """Give `model` the posteriors that the sparse stage begins with, in place; returns it.

    Raises:
        FileFormatError: The file of `sparse.checkpoint` is missing or damaged.
        ModelError: That file is of another network.
    """
    sparsify_(model, recipe.posterior, example_inputs=example_inputs)
    if recipe.sparse.checkpoint is not None:
        read_network_(model, recipe.sparse.checkpoint)
    return model


def try_recipe(model: nn.Module, example_inputs: Tensor, recipe: Recipe) -> None:
    """Try on copies what a run will do: build the optimizers, run the network, convert it.

    Raises:
        ModelError: The network does not run on these images, `sparse.checkpoint` is of another network, or the network
            has other places for fake integers in training than in evaluation.
        SettingError: An optimizer is not known, a layer of `sparse.snapshots` has no posterior, or no level of the
            budget can be met by removing channels.
        TraceError: Channels are to leave while the network trains, and it cannot be traced.
    """
    for stage in recipe.stages.values():
        build_optimizer(model, stage)
    try_forward(model, example_inputs, recipe.model.name)
    if recipe.quantize.aware:
        count_places(model, example_inputs)
    # Otherwise only the end of the first sparse epoch would tell that the network cannot be traced.
    if recipe.changes_sizes:
        channel_graph(model, example_inputs)
    variational = make_variational_(copy.deepcopy(model), example_inputs, recipe)
    _check_snapshots(variational, recipe)
    _check_reach(variational, example_inputs, recipe.budget, recipe.model.name)


def try_forward(model: nn.Module, example_inputs: Tensor, name: str) -> None:
    """Run a copy of a network on images.

    Args:
        model: The network.
        example_inputs: The images, shape (batch, channels, height, width).
        name: What the message calls the network.

    Raises:
        ModelError: The network does not run on images of this size.
    """
    try:
        with torch.no_grad():
            copy.deepcopy(model).eval()(example_inputs)
    except Exception as error:  # whatever the network's code raises
        shape = "x".join(str(size) for size in example_inputs.shape[1:])
        raise ModelError(
            f"{name} does not run on images of {shape}: {describe_error(error)}; "
            "set data.image_size, or the network's own size in model.arguments"
        ) from error


def _check_snapshots(variational: nn.Module, recipe: Recipe) -> None:
    layers = [name for name, module in named_posteriors(variational) if isinstance(module, Variational)]
    unknown = [name for name in recipe.sparse.snapshots if name not in layers]
    if unknown:
        raise SettingError(
            f"sparse.snapshots: no weight posterior on {', '.join(unknown)}; they are on: {', '.join(layers)}"
        )


def _check_reach(variational: nn.Module, example_inputs: Tensor, budget: BudgetSettings, name: str) -> None:
    """Refuse a budget if none of its levels can be met. Warn of single levels, and of gates that remove nothing."""
    # A latency would have to be measured in its runtime, so only the end of the run tells.
    if budget.kind is None or budget.kind == "latency":
        return
    reach = measure_reach(variational, example_inputs, budget.kind, budget.round_to)
    if reach.held:
        logger.warning("%s: %s", name, reach.describe_held())
    too_small = [level for level in budget.levels if misses(reach.least_left, level)]
    if not too_small:
        return
    levels = ", ".join(f"{level:g}" for level in too_small)
    message = (
        f"budget.{budget.kind} = {levels} cannot be met: once every channel of {name} that may go has gone, "
        f"{reach.least_left:.3f} of its {budget.kind} is left. `print(svd.make_plan(model, images))` says why the "
        "others stay"
    )
    if len(too_small) == len(budget.levels):
        raise SettingError(message)
    if not budget.searches:
        logger.warning("%s", message)
