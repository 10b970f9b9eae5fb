"""An experiment: one committed file with a recipe, the variants that differ from it, and the published rows."""

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ...recipe import Recipe, list_bundled_settings, read_bundled_settings
from ...settings import Settings, make_settings

FOLDER = files(__package__) / "recipes"
Table = dict[str, Any]
"""Part of a recipe, as in TOML."""
Picture = Literal["progress", "log_alpha", "weights", "widths", "tradeoff", "posterior", "kl"]


class Published(Settings):
    """A row of a paper's table, as it was printed."""

    method: str
    """Name, with authors and year."""
    error: str = ""
    """Test error in percent."""
    sparsity: str = ""
    """Percent of the weights removed, layer by layer."""
    compression: str = ""
    """All weights over kept weights."""
    units: str = ""
    """Channels of convolutions and neurons of dense layers that are kept, layer by layer."""
    macs: str = ""
    """Multiply-accumulates of the dense network over those that are left."""


class Variant(Settings):
    """One row of the results: what differs from the experiment's recipe."""

    title: str
    """The variant as the table calls it."""
    recipe: Table = Field(default_factory=dict)
    """Settings that differ, in the shape of a recipe."""
    seeds: tuple[int, ...] | None = None
    """Seeds, where they differ from the experiment's."""
    published: tuple[Published, ...] = ()
    """Rows of the papers to stand beside it."""


class Experiment(Settings):
    """What one name of `nni-sparsevd reproduce` stands for."""

    title: str
    """Heading of its page."""
    about: str
    """A paragraph: what is reproduced, how, and what differs from the paper."""
    columns: tuple[str, ...]
    """Columns of its table, keys of `tables.COLUMNS`."""
    pictures: tuple[Picture, ...] = ()
    """Pictures of its page."""
    measures: tuple[Literal["tradeoff", "calibration"], ...] = ()
    """What is measured on finished runs, besides what they record."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every variant."""
    like: str | None = None
    """Name of another experiment, from whose recipe this one starts."""
    recipe: Table = Field(default_factory=dict)
    """Settings that all variants share."""
    variants: dict[str, Variant] = Field(min_length=1)
    """Name -> variant, in the order of the table."""

    def recipe_of(self, variant: str, seed: int, data: Path) -> Recipe:
        """Build the recipe of one run.

        Args:
            variant: Name of the variant.
            seed: Seed of the run.
            data: Folder that the recipe's paths are relative to.

        Returns:
            The recipe, with paths that can be opened from here.

        Raises:
            SettingError: The variant's settings are not those of a recipe.
        """
        recipe = make_settings(Recipe, merge_tables(self.recipe, self.variants[variant].recipe) | {"seed": seed})
        return recipe.model_copy(update={"data": recipe.data.resolve_paths(data)})

    def seeds_of(self, variant: str) -> tuple[int, ...]:
        """Seeds of one variant."""
        return self.variants[variant].seeds or self.seeds


def merge_tables(shared: Table, own: Table) -> Table:
    """`shared` with the values of `own` in place of its own; tables inside are merged the same way."""
    merged = dict(shared)
    for key, value in own.items():
        before = shared.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            merged[key] = merge_tables(before, value)
        else:
            merged[key] = value
    return merged


def list_experiments() -> list[str]:
    """Names of the committed experiments."""
    return list_bundled_settings(FOLDER)


def read_experiment(name: str) -> Experiment:
    """Read a committed experiment.

    Args:
        name: One of `list_experiments`.

    Returns:
        The experiment, with the whole recipe in it where it starts from another experiment's.

    Raises:
        SettingError: No experiment has this name, or a key of its file is wrong.
    """
    experiment = read_bundled_settings(FOLDER, Experiment, name)
    if experiment.like is None:
        return experiment
    base = read_experiment(experiment.like)
    return experiment.model_copy(update={"recipe": merge_tables(base.recipe, experiment.recipe)})
