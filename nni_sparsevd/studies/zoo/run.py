"""Every family of the zoo in a process of its own, under limits; results that are there are not made again."""

import traceback
from pathlib import Path

import torch

from ...errors import summarize_error
from ...files import read_json, write_json
from ..processes import Limits, run_isolated
from .families import Member, find_smallest, list_families
from .trials import MASK_KINDS, Row, run_trial


def run_zoo(out: Path, pattern: str = "*", jobs: int = 1, limits: Limits | None = None, seed: int = 0) -> list[Row]:
    """Shrink the smallest network of every family under every kind of masks.

    Args:
        out: Folder of the rows, one file for each family; a family with a file is not run again.
        pattern: Which families: a shell pattern, or several with commas.
        jobs: Number of families that run at the same time.
        limits: What one family may take; None for the defaults.
        seed: Seed of weights and masks.

    Returns:
        The rows of all families that match.

    Raises:
        SettingError: No family matches, or `jobs` is less than 1.
        FileFormatError: A file cannot be read or written.
    """
    paths = {family: out / f"{family}.json" for family in list_families(pattern)}
    tasks = [(family, path, seed) for family, path in paths.items() if not path.exists()]
    preload = f"{__package__}.trials"
    for (family, path, _), ending in run_isolated(_write_rows, tasks, jobs, limits or Limits(), preload):
        # A process that was ended has left no file; a row says why, and the family is not tried again.
        if not path.exists():
            write_json(path, [Row(family, "", "", ending or "wrote no rows").to_dict()])
        for row in _read_rows(path):
            print(f"{family} ({row.model}), {row.mask_kind}: {row.verdict}", flush=True)
    return [row for path in paths.values() for row in _read_rows(path)]


def _read_rows(path: Path) -> list[Row]:
    return [Row.from_dict(values) for values in read_json(path)]


def _write_rows(task: tuple[str, Path, int]) -> None:
    """Run a family and write its file."""
    family, path, seed = task
    torch.set_num_threads(1)  # families run side by side
    member = find_smallest(family)
    kinds = [kind for kind in MASK_KINDS if kind != "remember" or member.layer_norms]
    write_json(path, [_run_or_report(member, kind, seed).to_dict() for kind in kinds])


def _run_or_report(member: Member, mask_kind: str, seed: int) -> Row:
    # Any error is caught: the zoo asks which networks fail, and the row says how this one did.
    try:
        return run_trial(member, mask_kind, seed)
    except Exception as error:
        traceback.print_exc()
        return Row(member.family, member.model, mask_kind, f"failed: {summarize_error(error)}")
