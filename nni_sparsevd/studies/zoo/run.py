"""Every network of the zoo in a process of its own, under limits; results that are there are not made again."""

import traceback
from dataclasses import replace
from pathlib import Path

import torch

from ...errors import FileFormatError, summarize_error
from ...files import read_json, write_json
from ...training import find_commit
from ..processes import Limits, run_isolated
from .libraries import find_library, mask_kinds_for
from .trials import Row

Task = tuple[str, str, Path, int]
"""The library, the name of the network or family, the file of its rows, and the seed."""


def run_zoo(
    out: Path,
    pattern: str = "*",
    jobs: int = 1,
    limits: Limits | None = None,
    seed: int = 0,
    library: str = "timm",
) -> list[Row]:
    """Shrink networks under every kind of masks: of timm the smallest of every family.

    Args:
        out: Folder of the rows, one file for each family; a family with a file is not run again.
        pattern: Which families: a shell pattern, or several with commas.
        jobs: Number of families that run at the same time.
        limits: What one family may take; None for the defaults.
        seed: Seed of weights and masks.
        library: "timm", "torchvision" or "transformers".

    Returns:
        The rows of all families that match.

    Raises:
        SettingError: There is no such library, no family matches, or `jobs` is less than 1.
        FileFormatError: A file cannot be read or written.
    """
    paths = {family: out / f"{family}.json" for family in find_library(library).list_names(pattern)}
    tasks: list[Task] = [(library, family, path, seed) for family, path in paths.items() if not path.exists()]
    preload = f"{__package__}.libraries"
    for (_, family, path, _), ending in run_isolated(_write_rows, tasks, jobs, limits or Limits(), preload):
        # A process that was ended has left no file; a row says why, and the family is not tried again.
        if not path.exists():
            _save_rows(path, [Row(family, "", "", ending or "wrote no rows")])
        for row in _read_rows(path):
            print(f"{family} ({row.model}), {row.mask_kind}: {row.verdict}", flush=True)
    return [row for path in paths.values() for row in _read_rows(path)]


def _read_rows(path: Path) -> list[Row]:
    try:
        return [Row.from_dict(values) for values in read_json(path)]
    except (AttributeError, TypeError) as error:
        raise FileFormatError(
            f"{path}: not rows of the zoo ({error}); delete it, and its family is tried again"
        ) from error


def _write_rows(task: Task) -> None:
    """Try a network under every kind of masks and write its file."""
    library, family, path, seed = task
    torch.set_num_threads(1)  # networks run side by side
    model, has_norms, run = find_library(library).find(family)
    rows = []
    for kind in mask_kinds_for(has_norms):
        # Any error is caught: the zoo asks which networks fail, and the row says how this one did.
        try:
            rows.append(run(kind, seed))
        except Exception as error:
            traceback.print_exc()
            rows.append(Row(family, model, kind, f"failed: {summarize_error(error)}"))
    _save_rows(path, rows)


def _save_rows(path: Path, rows: list[Row]) -> None:
    commit = find_commit()
    write_json(path, [replace(row, commit=commit).to_dict() for row in rows])
