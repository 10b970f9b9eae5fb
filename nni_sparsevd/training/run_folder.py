"""The folder of a run: whether a run may use it, and what is written there before training."""

import shutil
from pathlib import Path

from ..errors import SettingError
from ..files import PARTIAL_SUFFIX, delete_partial_files, write_json
from ..recipe import RECIPE_FILE, Recipe, read_recipe, write_recipe
from ..settings import Settings
from .checkpoint import CHECKPOINT_FILE, read_checkpoint
from .environment import describe_environment
from .recorded_latency import LATENCY_FILE

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
MEASURED_ON_FINISHED_NETWORKS = ("exports.json", "runtimes.json")
"""Files of the run folder that `export` and `measure` write."""


def check_folder(recipe: Recipe, folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that this run may not use; nothing is written.

    Raises:
        SettingError: The folder is in use, there is nothing to resume, settings of a stage that has begun there are
            others, or `overwrite` would delete what is no run, or what this run reads.
    """
    is_run_folder = (folder / RECIPE_FILE).exists()
    if resume and overwrite:
        raise SettingError("--overwrite and --resume exclude each other")
    if overwrite:
        if folder.exists() and not is_run_folder:
            raise SettingError(f"--overwrite: {folder} is no run folder (it has no {RECIPE_FILE}); not deleted")
        _refuse_to_delete_what_is_read(recipe, folder)
    elif resume:
        if not is_run_folder:
            raise SettingError(f"{folder}: nothing to resume, it has no {RECIPE_FILE}")
        _refuse_changes(recipe, folder)
    elif _is_used(folder):
        raise SettingError(f"{folder}: is not empty; --resume goes on there, --overwrite begins again")


def _refuse_to_delete_what_is_read(recipe: Recipe, folder: Path) -> None:
    """Refuse to delete a folder that holds weights or photos which the run reads."""
    paths = {
        "model.checkpoint": recipe.model.checkpoint,
        "teacher.checkpoint": recipe.teacher.checkpoint,
        "sparse.checkpoint": recipe.sparse.checkpoint,
        "data.train": recipe.data.train,
        "data.test": recipe.data.test,
    }
    for key, path in paths.items():
        if path is not None and path.resolve().is_relative_to(folder.resolve()):
            raise SettingError(f"--overwrite would delete {key} = {path}: move it, or take another folder for the run")


def _refuse_changes(recipe: Recipe, folder: Path) -> None:
    """Refuse settings that differ from those of the run in the folder, of stages that have begun there."""
    changes = _find_changes(read_recipe(folder / RECIPE_FILE), recipe)
    if not changes:
        return
    checkpoint = read_checkpoint(folder / CHECKPOINT_FILE)
    if checkpoint is None:  # nothing that was trained is left
        return
    # Kinds have several stages: finetune_LEVEL, quantize_LEVEL and twin_STAGE.
    begun = checkpoint.place.stage.partition("_")[0]
    refused = [key for key, first_used in changes.items() if ORDER.index(first_used) <= ORDER.index(begun)]
    if refused:
        raise SettingError(
            f"{folder}: its run began with other settings: {', '.join(refused)}. It has come to the stage {begun}; "
            "settings of later stages may change"
        )


def _find_changes(before: Recipe, after: Recipe) -> dict[str, str]:
    """Setting that differs and changes results -> kind of the first stage that depends on it."""
    named_teacher = bool(before.teacher.name or after.teacher.name)
    first_used_in = {
        **FIRST_USED_IN,
        # The run's own dense network teaches the stages after the dense one; a network with a name teaches all.
        "teacher": "dense" if named_teacher else "sparse",
    }
    if before.sparse.shrink_at is not None:
        first_used_in["masks"] = "sparse"  # blocks of N:M decide how many channels may leave
    changed = [key for key in _list_changed_keys(before, after) if key not in FREE]
    return {key: first_used_in.get(key.partition(".")[0], "dense") for key in changed}


def _list_changed_keys(before: Recipe, after: Recipe) -> list[str]:
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


def _is_used(folder: Path) -> bool:
    """Whether there is a file in the folder, other than those that a killed run was about to write."""
    return folder.exists() and any(path.suffix != PARTIAL_SUFFIX for path in folder.iterdir())


def prepare_folder(recipe: Recipe, folder: Path, command: list[str], *, resume: bool, overwrite: bool) -> None:
    """Delete what is left of an older run, and write recipe and environment; one process does it for all."""
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    delete_partial_files(folder)
    if resume:
        _delete_stale_measurements(recipe, folder)
    # A run that goes on may have other settings for the stages that have not begun.
    write_recipe(recipe, folder / RECIPE_FILE)
    # A resumed run keeps the environment in which it began.
    if not (folder / "environment.json").exists():
        write_json(folder / "environment.json", describe_environment(command, recipe.seed))


def _delete_stale_measurements(recipe: Recipe, folder: Path) -> None:
    """Delete what was measured on networks that other settings are about to change."""
    stages = set(_find_changes(read_recipe(folder / RECIPE_FILE), recipe).values())
    stale: list[str] = []
    if stages & {"dense", "sparse"}:
        stale.append(LATENCY_FILE)
    if stages - {"twin"}:  # a twin leaves the other networks as they are
        stale.extend(MEASURED_ON_FINISHED_NETWORKS)
    for name in stale:
        (folder / name).unlink(missing_ok=True)
