"""An experiment: one committed file with a recipe, the variants that differ from it, and the published rows."""

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ...recipe import Recipe, list_bundled_settings, read_bundled_settings
from ...settings import Settings, make_settings

FOLDER = files(__package__) / "recipes"
Table = dict[str, Any]
Picture = Literal["progress", "log_alpha", "weights", "widths", "tradeoff", "posterior", "kl"]


class Published(Settings):
    """A row of a paper's table, as it was printed."""

    method: str
    """Name, with authors and year."""
    error: str = ""
    """Test error in percent."""
    sparsity: str = ""
    """Per layer, percent of the weights removed."""
    compression: str = ""
    """Weights in all / weights kept."""
    units: str = ""
    """Units that are left, layer by layer."""
    macs: str = ""
    """How many times fewer multiply-accumulates."""


class Variant(Settings):
    """One row of the results: what differs from the experiment's recipe."""

    title: str
    """As the table calls it."""
    recipe: Table = Field(default_factory=dict)
    """Settings that differ, in the shape of a recipe."""
    seeds: tuple[int, ...] | None = None
    """Where they are not the experiment's."""
    published: tuple[Published, ...] = ()
    """Rows of the papers to stand beside it."""


class Experiment(Settings):
    """What one name of `nni-sparsevd reproduce` stands for."""

    title: str
    """Heading of its page."""
    about: str
    """A paragraph: what is reproduced, how, and what differs from the paper."""
    columns: tuple[str, ...]
    """Columns of its table (see `table.COLUMNS`)."""
    pictures: tuple[Picture, ...] = ()
    """Pictures of its page."""
    measures: tuple[Literal["tradeoff", "calibration"], ...] = ()
    """What is measured on finished runs, besides."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every variant."""
    like: str | None = None
    """Experiment whose recipe the one below changes."""
    recipe: Table = Field(default_factory=dict)
    """What all variants share."""
    variants: dict[str, Variant] = Field(min_length=1)
    """By name, in the order of the table."""

    def recipe_of(self, variant: str, seed: int, data: Path) -> Recipe:
        """Give the recipe of one run; its paths are taken from the folder `data`."""
        settings = make_settings(Recipe, merged(self.recipe, self.variants[variant].recipe) | {"seed": seed})
        return settings.model_copy(update={"data": settings.data.resolve_paths(data)})

    def seeds_of(self, variant: str) -> tuple[int, ...]:
        """Seeds of one variant."""
        return self.variants[variant].seeds or self.seeds


def merged(shared: Table, own: Table) -> Table:
    """`shared` with what `own` says instead, table by table."""
    return shared | {
        key: merged(shared[key], value) if isinstance(value, dict) and isinstance(shared.get(key), dict) else value
        for key, value in own.items()
    }


def list_experiments() -> list[str]:
    """Experiments that there are."""
    return list_bundled_settings(FOLDER)


def read_experiment(name: str) -> Experiment:
    """Read the experiment `name`; raises `SettingError` where there is none."""
    found = read_bundled_settings(FOLDER, Experiment, name)
    if found.like is None:
        return found
    return found.model_copy(update={"recipe": merged(read_experiment(found.like).recipe, found.recipe)})
