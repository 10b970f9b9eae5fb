"""A league from start to end: dense starts, a sweep of learning rates, then every rival at every level."""

import contextlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ...errors import SettingError, TrainingError, summarize_error
from ...files import read_json, write_json
from ...settings import make_settings
from ..processes import Limits, run_isolated
from .arena import check_material, prepare_arena, start_file
from .league import League
from .rivals import TABLES, rivals_of
from .trial import Row, Trial, row_file, run_trial

PRELOAD = f"{__package__}.trial"
POLL = 1.0
"""Seconds between two looks for the files of other processes."""
GRACE = 120.0
"""Seconds beyond the limit of one task in which another process may import its code and write its file."""
T = TypeVar("T")


def run_trials(
    league: League, data: Path, folder: Path, at_once: int, limits: Limits, seeds: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Run the trials of which `folder` has no rows yet.

    Under torchrun each process runs its share and waits for the others; all of them must see the same `folder`.

    Args:
        league: The protocol.
        data: Folder of the data sets.
        folder: Folder of the league.
        at_once: Number of trials that run at the same time.
        limits: What each trial may take.
        seeds: Seeds that are run; None for those of the league, with whose first the rates are chosen in any case.

    Returns:
        All rows, those of the sweep included.

    Raises:
        SettingError: Another league was begun in `folder`, or `at_once` is less than 1.
        DataError: The data sets are missing.
        FileFormatError: The checkpoint of the network is missing or damaged.
        TrainingError: A dense start could not be trained, or another process of the torchrun has ended.
    """
    seeds = league.seeds if seeds is None else seeds
    _claim_folder(league, folder)
    sweep = [
        Trial(league, rival, league.seeds[0], rate, (league.sweep_level,), data, folder)
        for rival in rivals_of(league)
        for rate in league.rates
    ]
    # All processes find the same seeds here: none goes on to trials before these starts are there.
    if any(trial.missing for trial in sweep):
        needed = list(dict.fromkeys((league.seeds[0], *seeds)))
    else:
        needed = [seed for seed in seeds if any(trial.missing for trial in _list_trials(league, [seed], data, folder))]
    _train_starts(league, needed, data, folder, at_once, limits)
    # Every process waits for the whole sweep here, because all of them choose the rates from its rows.
    _run_missing(sweep, at_once, limits)
    _run_missing(_list_trials(league, seeds, data, folder), at_once, limits)
    return read_rows(folder)


def _list_trials(league: League, seeds: Sequence[int], data: Path, folder: Path) -> list[Trial]:
    """The trials after the sweep, at the rates that its rows have chosen, whether or not they have rows."""
    rates = choose_rates(league, read_rows(folder))
    trials = []
    for seed in seeds:
        for name in rivals_of(league):
            if name in rates:
                trials.append(Trial(league, name, seed, rates[name], _levels(league, name), data, folder))
    return trials


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All rows in the folder of a league, in the order of their file names."""
    return [read_json(path) for path in sorted((folder / "rows").glob("*.json"))]


def choose_rates(league: League, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Choose each rival's learning rate: the one with the best accuracy on the hold-out in the sweep.

    Among equals the choice is the rate nearest to the middle of the sweep: hold-outs are small, and an edge promises
    least.

    Args:
        league: The protocol.
        rows: Rows of the sweep, and perhaps others, which are not looked at.

    Returns:
        Name of the rival -> learning rate, of the rivals that did not fail at every rate.
    """
    # In logarithms, because rates of a sweep are factors apart.
    middle = statistics.median(math.log(rate) for rate in league.rates)

    def merit(row: dict[str, Any]) -> tuple[float, float]:
        return row["held_out"], -abs(math.log(row["rate"]) - middle)

    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        of_sweep = row["seed"] == league.seeds[0] and row["level"] == league.sweep_level
        if of_sweep and not row["failed"]:
            best[row["rival"]] = max(row, best.get(row["rival"], row), key=merit)
    return {name: row["rate"] for name, row in best.items()}


def protocol_of(league: League) -> dict[str, Any]:
    """What rows must share to be compared: every setting but those that change no row of another rival, level or seed.

    Rivals, levels and seeds may be added later; texts and the number of loader processes change no figure.
    """
    free: dict[str, Any] = dict.fromkeys(("rivals", "levels", "seeds", "title", "about"), True)
    return league.model_dump(mode="json", exclude={**free, "data": {"workers"}})


def restore_rows(league: League, results: Path, folder: Path) -> None:
    """Write the rows of a results file to the folder of a league, except those that are there.

    Args:
        league: The protocol.
        results: JSON file that `run_league` wrote.
        folder: Folder of the league.

    Raises:
        SettingError: The file holds no results of a league, or results of another protocol, or a row that is damaged.
        FileFormatError: The file cannot be read.
    """
    values = read_json(results)
    if not isinstance(values, dict) or not {"protocol", "rows"} <= values.keys():
        raise SettingError(f"{results}: not the results of a league; bench writes them as NAME/NAME.json")
    if changed := _changed_settings(league, values["protocol"]):
        raise SettingError(f"{results}: its rows were run under another {changed}")
    adapter = TypeAdapter(Row)
    for row_values in values["rows"]:
        # The values name a file below, so they are checked strictly first: a rival "../../x" must not leave the folder.
        try:
            row = adapter.validate_json(json.dumps(row_values), strict=True)
        except ValidationError as error:
            raise SettingError(f"{results}: not a row of ours: {summarize_error(error)}") from None
        if row.rival not in TABLES[league.kind]:
            raise SettingError(f"{results}: a row of {row.rival!r}, which is no rival for {league.kind}")
        path = row_file(folder, row.rival, row.seed, row.rate, row.level)
        if not path.exists():
            write_json(path, row_values)


def _claim_folder(league: League, folder: Path) -> None:
    """Note the protocol in the folder, which belongs to one protocol; its rivals may change."""
    path = folder / "league.json"
    if not path.exists():
        write_json(path, protocol_of(league))
    elif changed := _changed_settings(league, read_json(path)):
        raise SettingError(f"{folder}: a league with another {changed} began here; delete it, or choose another --out")


def _changed_settings(league: League, before: dict[str, Any]) -> str:
    """Names of the settings in which a league differs from the protocol `before`, with commas."""
    # Results outlive versions: a setting that is younger than they are had what is its default now.
    with contextlib.suppress(SettingError):  # and one that is gone makes another protocol of them
        free = league.model_dump(include={"levels", "seeds", "title", "about"})
        before = protocol_of(make_settings(League, {**free, **before}))
    return ", ".join(key for key, value in protocol_of(league).items() if before.get(key) != value)


def _levels(league: League, name: str) -> tuple[float | None, ...]:
    """The league's levels and, for a rival that can choose a level itself, None."""
    return (*league.levels, None) if rivals_of(league)[name].automatic else league.levels


def _train_starts(league: League, seeds: Sequence[int], data: Path, folder: Path, at_once: int, limits: Limits) -> None:
    """Train the dense starts of these seeds that are missing, each in a process of its own."""
    missing = [seed for seed in _share_of_this_process(seeds) if not start_file(folder, seed).exists()]
    if missing:
        check_material(league, data)
    tasks = [(league, seed, data, folder) for seed in missing]
    for (_, seed, *_), ending in run_isolated(_train_start, tasks, at_once, limits, PRELOAD):
        print(f"dense start, seed {seed}: {ending or 'done'}", flush=True)
        if ending:
            raise TrainingError(f"the dense start of seed {seed} {ending}; the reason is printed above")

    def missing_files() -> list[Path]:
        paths = [start_file(folder, seed) for seed in seeds]
        return [path for path in paths if not path.exists()]

    _wait_for_other_processes(missing_files, limits)


def _train_start(task: tuple[League, int, Path, Path]) -> None:
    prepare_arena(*task)


def _run_missing(trials: list[Trial], at_once: int, limits: Limits) -> None:
    """Run trials, each in a process of its own; a process that ends early leaves rows that say why."""
    tasks = [trial for trial in _share_of_this_process(trials) if trial.missing]
    if tasks:
        check_material(tasks[0].league, tasks[0].data)
    for trial, ending in run_isolated(run_trial, tasks, at_once, limits, PRELOAD):
        # A process that was ended has written no row for the levels that it did not reach.
        for level in trial.missing:
            row = Row(trial.rival, trial.seed, trial.rate, level, failed=ending or "left no row")
            write_json(trial.row_file(level), asdict(row))
        for level in trial.levels:
            _print_row(Row(**read_json(trial.row_file(level))))

    def missing_files() -> list[Path]:
        paths: list[Path] = []
        for trial in trials:
            paths += [trial.row_file(level) for level in trial.missing]
        return paths

    _wait_for_other_processes(missing_files, limits)


def _print_row(row: Row) -> None:
    level_name = "its own point" if row.level is None else f"{row.level:g}"
    outcome = row.failed or f"{row.error:.2f} % error, {row.compression:.1f}x fewer weights"
    print(f"{row.rival}, seed {row.seed}, rate {row.rate:g}, {level_name}: {outcome}", flush=True)


def _share_of_this_process(tasks: Sequence[T]) -> list[T]:
    """The tasks of this process of a torchrun; without torchrun, all of them.

    1. `tasks` must be the same list in every process, finished tasks included: each process takes every n-th one.
    2. A process that dropped finished tasks first would count differently from one that looked a moment earlier, and
       there would be tasks that nobody takes, for which all processes wait.
    """
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return list(tasks)[rank::processes]


def _wait_for_other_processes(missing_files: Callable[[], list[Path]], limits: Limits) -> None:
    """Wait until the other processes of a torchrun have written their files.

    A process that lives ends each of its tasks after `limits.seconds` at the latest, and writes a file then.  So when
    no file has arrived for longer than that, the processes that owe the missing files have ended.
    """
    patience = limits.seconds + GRACE
    missing = missing_files()
    last_arrival = time.monotonic()
    while missing:
        time.sleep(POLL)
        still_missing = missing_files()
        if len(still_missing) < len(missing):
            last_arrival = time.monotonic()
        missing = still_missing
        if missing and time.monotonic() - last_arrival > patience:
            raise TrainingError(
                f"{missing[0]}: another process of this torchrun should have written it ({len(missing)} files are "
                f"missing), but nothing has arrived for {patience:g} s, so that process has ended; start the same "
                "command again: what is there is not run again"
            )
