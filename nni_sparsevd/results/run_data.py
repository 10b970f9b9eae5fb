"""The photos of a finished run, read again: to calibrate integers, and to score files in their runtimes."""

from pathlib import Path

import torch
from torch import Tensor

from ..data import DataSets, load_data
from ..errors import DataError
from ..files import read_json
from ..preprocessing import Requirements, check_values
from ..recipe import RECIPE_FILE, read_recipe

CALIBRATION = 200
"""Training photos on which the ranges of integers are measured, by default."""


def read_run_data(folder: Path) -> DataSets:
    """Open the photos of a run as its network was trained to see them; they are decoded as they are wanted.

    Args:
        folder: The folder of a finished run.

    Returns:
        The same splits as in the run, without augmentation where they are read in order.

    Raises:
        DataError: The photos are no longer where they were, or others have come.
        FileFormatError: The run is not finished, or a file of it is damaged.
        SettingError: The recipe in the folder is damaged.
    """
    recipe = read_recipe(folder / RECIPE_FILE)
    expected = check_values(read_json(folder / "preprocessing.json"))
    channels, height, width = expected["input_size"]
    trained = {key: value for key, value in expected.items() if key != "label_names"}
    if height != width:  # no setting of a run has two sides: they are those of its photos
        del trained["input_size"]
    data = load_data(recipe.data, None, recipe.seed, Requirements(in_chans=channels, trained=trained), hold=False)
    found = check_values(data.preprocessing.to_dict())
    changed = sorted(key for key in expected if found[key] != expected[key])
    if changed:
        raise DataError(
            f"{folder}: its photos have changed since the run: {changed[0]} was {expected[changed[0]]!r} and is "
            f"{found[changed[0]]!r} now"
        )
    return data


def choose_calibration(data: DataSets, count: int, seed: int) -> Tensor:
    """Choose training photos at random, as the network sees them.

    Args:
        data: The photos of a run.
        count: How many; all where there are fewer.
        seed: Of the choice.

    Returns:
        Normalized images, float32, shape (count, channels, height, width).
    """
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    return data.normalize(data.train.read(sorted(order[:count].tolist())))
