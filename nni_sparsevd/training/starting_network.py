"""The network that the sparse stage begins with, and a trial of a recipe before anything is written or trained."""

import copy

import torch
from torch import Tensor, nn

from ..convert import sparsify_
from ..errors import ModelError, SettingError, describe_error
from ..graph import channel_graph
from ..nn import Variational, named_posteriors
from ..recipe import Recipe
from .fake_integers import count_places
from .network_files import read_network_
from .optimizer import build_optimizer


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
        SettingError: An optimizer is not known, or a layer of `sparse.snapshots` has no posterior.
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
