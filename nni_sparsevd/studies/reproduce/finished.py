"""A finished run, read back from its folder: its data and its networks."""

import copy
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ... import data as datasets
from ... import models
from ...convert import sparsify_
from ...files import load_tensors
from ...masks import Masks, unflatten_masks
from ...recipe import Recipe, read_recipe
from ...storage import load
from ...training import read_network_


@dataclass(frozen=True)
class FinishedRun:
    """What a run folder of `compress` holds; all networks are in evaluation mode."""

    recipe: Recipe
    """The settings of the run."""
    data: datasets.DataSets
    """The data sets of the run."""
    dense: nn.Module
    """The network before the sparse stage."""
    posterior: nn.Module
    """The variational network at the end of the sparse stage."""
    masks: Masks
    """What was removed."""
    small: nn.Module
    """The network that ships."""


def open_finished(folder: Path) -> FinishedRun:
    """Read a run folder of `compress`.

    Args:
        folder: The folder of the run.

    Returns:
        The data and the networks of the run.

    Raises:
        FileFormatError: A file of the run is missing or damaged; the message names it.
        DataError: The data sets are no longer where the recipe says.
    """
    recipe = read_recipe(folder / "recipe.toml")
    data = datasets.load_data(recipe.data, None, recipe.seed, models.find_requirements(recipe.model))
    model = models.create_model(recipe.model, data.num_classes, data.in_chans, data.image_size)
    # Two networks of the same shape: the dense one is read before the other one gets its posterior.
    dense = copy.deepcopy(model)
    read_network_(dense, folder / "dense.safetensors")
    sparsify_(model, recipe.posterior, example_inputs=data.make_example_inputs())
    read_network_(model, folder / "posterior.safetensors")
    masks = unflatten_masks(load_tensors(folder / "masks.safetensors")[0])
    small = load(folder / "small.safetensors")
    return FinishedRun(recipe, data, dense.eval(), model.eval(), masks, small)
