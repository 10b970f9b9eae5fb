"""A finished run, brought back from its folder: its data and its networks."""

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
class Finished:
    """What a run folder of `compress` holds."""

    recipe: Recipe
    data: datasets.DataSets
    dense: nn.Module
    """Before the sparse stage."""
    posterior: nn.Module
    """At the end of the sparse stage, variational."""
    masks: Masks
    small: nn.Module
    """What ships."""


def open_finished(run: Path) -> Finished:
    """Read a run folder; raises `FileFormatError` naming the file that is missing or damaged."""
    recipe = read_recipe(run / "recipe.toml")
    data = datasets.load_data(recipe.data, recipe.data.image_size, recipe.seed)
    model = models.create_model(recipe.model, data.num_classes, data.in_chans, data.image_size)
    dense = copy.deepcopy(model)
    read_network_(dense, run / "dense.safetensors")
    sparsify_(model, recipe.posterior, example_inputs=data.normalize(data.train.images[:2]))
    read_network_(model, run / "posterior.safetensors")
    masks = unflatten_masks(load_tensors(run / "masks.safetensors")[0])
    return Finished(recipe, data, dense.eval(), model.eval(), masks, load(run / "small.safetensors"))
