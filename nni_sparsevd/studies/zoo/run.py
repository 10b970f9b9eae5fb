"""Every family of the zoo in a process of its own, under limits; results that are there are not made again."""

import traceback
from pathlib import Path

import torch

from ...errors import summarize_error
from ...files import read_json, write_json
from ..processes import Limits, run_isolated
from .families import Member, list_families, smallest
from .trials import MASK_KINDS, Row, run_trial


def run_zoo(out: Path, pattern: str = "*", jobs: int = 1, limits: Limits | None = None, seed: int = 0) -> list[Row]:
    """Rows of all families that match `pattern`, written to a file a family as soon as they are known.

    Raises `SettingError` when no family matches or `jobs` is none, `FileFormatError` for a file that cannot be read or
    written.
    """
    paths = {family: out / f"{family}.json" for family in list_families(pattern)}
    waiting = [(family, path, seed) for family, path in paths.items() if not path.exists()]
    for (family, path, _), ended in run_isolated(_work, waiting, jobs, limits or Limits(), f"{__package__}.trials"):
        if not path.exists():
            write_json(path, [Row(family, "", "", ended or "said nothing").to_dict()])
        for row in read_json(path):
            print(f"{family} ({row['model']}), {row['kill']}: {row['verdict']}", flush=True)
    return [Row(**row) for path in paths.values() for row in read_json(path)]


def _work(task: tuple[str, Path, int]) -> None:
    family, path, seed = task
    torch.set_num_threads(1)
    member = smallest(family)
    kills = MASK_KINDS if member.layer_norms else MASK_KINDS[:2]
    write_json(path, [_row(member, kill, seed).to_dict() for kill in kills])


def _row(member: Member, kill: str, seed: int) -> Row:
    try:
        return run_trial(member, kill, seed)
    except Exception as error:  # a row has to say it, whatever it is
        traceback.print_exc()
        return Row(member.family, member.model, kill, f"failed: {summarize_error(error)}")
