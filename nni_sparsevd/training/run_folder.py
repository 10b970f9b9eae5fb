"""The folder of a run: whether a run may use it, and what is written there before training."""

import shutil
from pathlib import Path

from ..errors import SettingError
from ..files import PARTIAL_SUFFIX, delete_partial_files, write_json
from ..recipe import RECIPE_FILE, Recipe, read_recipe, write_recipe
from ..settings import Settings
from .checkpoint import read_checkpoint
from .environment import describe_environment

FREE = ("checkpoint_minutes", "data.workers")
"""Settings that change no result: a resumed run may have others at any time."""
ORDER = ("dense", "sparse", "finetune", "quantize", "twin")
"""Kinds of stages, in the order in which they are trained."""
FIRST_USED_IN = {
    "sparse": "sparse",
    "posterior": "sparse",
    "budget": "sparse",
    "masks": "finetune",  # the decision comes after the sparse stage
    "finetune": "finetune",
    "quantize": "quantize",
    "twin": "twin",
}
"""Table of the recipe -> kind of the first stage that depends on it; all others count from the first stage on."""


def check_folder(recipe: Recipe, folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that this run may not use; nothing is written.

    Raises:
        SettingError: The folder is in use, there is nothing to resume, settings of a stage that has begun there are
            others, or `overwrite` would delete what is no run.
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
        _refuse_changes(recipe, folder)
    elif _is_used(folder):
        raise SettingError(f"{folder}: is not empty; --resume goes on there, --overwrite begins again")


def _refuse_changes(recipe: Recipe, folder: Path) -> None:
    """Refuse settings that differ from those of the run in the folder, of stages that have begun there."""
    before = read_recipe(folder / RECIPE_FILE)
    changed = [key for key in find_changed_settings(before, recipe) if key not in FREE]
    if not changed:
        return
    checkpoint = read_checkpoint(folder / "checkpoint.safetensors")
    if checkpoint is None:  # nothing that was trained is left
        return
    # Kinds have several stages: finetune_LEVEL, quantize_LEVEL and twin_STAGE.
    begun = checkpoint.place.stage.partition("_")[0]
    named_teacher = bool(before.teacher.name or recipe.teacher.name)
    refused = []
    for key in changed:
        table = key.partition(".")[0]
        # The run's own dense network teaches the stages after the dense one; a network with a name teaches all.
        own = "dense" if table != "teacher" or named_teacher else "sparse"
        if ORDER.index(FIRST_USED_IN.get(table, own)) <= ORDER.index(begun):
            refused.append(key)
    if refused:
        raise SettingError(
            f"{folder}: its run began with other settings: {', '.join(refused)}. It has come to the stage {begun}; "
            "settings of later stages may change"
        )


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
    # A run that goes on may have other settings for the stages that have not begun.
    write_recipe(recipe, folder / RECIPE_FILE)
    # A resumed run keeps the environment in which it began.
    if not (folder / "environment.json").exists():
        write_json(folder / "environment.json", describe_environment(command, recipe.seed))
