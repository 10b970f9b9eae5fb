"""The folder of a run: whether a run may use it, and what is written there before training."""

import shutil
from pathlib import Path

from ..errors import SettingError
from ..files import PARTIAL_SUFFIX, delete_partial_files, write_json
from ..recipe import Recipe, read_recipe, write_recipe
from ..settings import Settings
from .environment import describe_environment

RECIPE_FILE = "recipe.toml"
"""A folder that has this file is a run folder."""


def check_folder(recipe: Recipe, folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that this run may not use; nothing is written.

    Raises:
        SettingError: The folder is in use, there is nothing to resume, another recipe began there, or `overwrite`
            would delete what is no run.
    """
    is_run_folder = (folder / RECIPE_FILE).exists()
    if resume and overwrite:
        raise SettingError("--overwrite and --resume exclude each other")
    if overwrite:
        if folder.exists() and not is_run_folder:
            raise SettingError(f"--overwrite: {folder} is no run folder (it has no {RECIPE_FILE}); not deleted")
    elif resume:
        if not is_run_folder:
            raise SettingError(f"{folder}: nothing to resume, it has no {RECIPE_FILE}")
        changed = find_changed_settings(read_recipe(folder / RECIPE_FILE), recipe)
        if changed:
            raise SettingError(f"{folder}: its run began with other settings: {', '.join(changed)}")
    elif _is_used(folder):
        raise SettingError(f"{folder}: is not empty; --resume goes on there, --overwrite begins again")


def _is_used(folder: Path) -> bool:
    """Whether there is a file in the folder, other than those that a killed run was about to write."""
    return folder.exists() and any(path.suffix != PARTIAL_SUFFIX for path in folder.iterdir())


def find_changed_settings(before: Recipe, after: Recipe) -> list[str]:
    """The keys whose values differ, as a recipe's file spells them: `seed`, `dense.learning_rate`."""
    changed = []
    for key in Recipe.model_fields:
        old, new = getattr(before, key), getattr(after, key)
        # A setting of the recipe itself, such as the seed, is no table of settings.
        if not isinstance(new, Settings):
            if old != new:
                changed.append(key)
            continue
        for inner_key in type(new).model_fields:
            if getattr(old, inner_key) != getattr(new, inner_key):
                changed.append(f"{key}.{inner_key}")
    return changed


def prepare_folder(recipe: Recipe, folder: Path, command: list[str], *, resume: bool, overwrite: bool) -> None:
    """Delete what is left of an older run, and write recipe and environment; one process does it for all."""
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    delete_partial_files(folder)
    if not resume:
        write_recipe(recipe, folder / RECIPE_FILE)
    # A resumed run keeps the environment in which it began.
    if not (folder / "environment.json").exists():
        write_json(folder / "environment.json", describe_environment(command, recipe.seed))
