"""A league from start to end: dense starts, a sweep of learning rates, then every rival at every level."""

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ...errors import SettingError, TrainingError, summarize_error
from ...files import read_json, write_json
from ..processes import Limits, run_isolated
from .arena import prepare_arena, start_file
from .league import League
from .rivals import TABLES, rivals_of
from .trial import Row, Trial, row_file, run_trial

PRELOAD = f"{__package__}.trial"
POLL = 1.0  # seconds


def run_trials(league: League, data: Path, folder: Path, at_once: int, limits: Limits) -> list[dict[str, Any]]:
    """Play what `folder` has no row of yet; gives all rows, those of the sweep too.

    Under torchrun each process takes its share, and all must see the same `folder`.  Raises `SettingError` where
    another league was begun in it.
    """
    _claim(league, folder)
    seeds = [seed for seed in league.seeds if not start_file(folder, seed).exists()]
    tasks = [(league, seed, data, folder) for seed in _share(seeds)]
    for (_, seed, *_), ended in run_isolated(_train_start, tasks, at_once, limits, PRELOAD):
        print(f"dense start, seed {seed}: {ended or 'done'}", flush=True)
        if ended:
            raise TrainingError(f"the dense start of seed {seed} {ended}; its words are above")
    _wait(lambda: all(start_file(folder, seed).exists() for seed in league.seeds))
    sweep = [Trial(league, rival, league.seeds[0], rate, (league.sweep_level,), data, folder)
             for rival in rivals_of(league) for rate in league.rates]  # fmt: skip
    _run_missing(sweep, at_once, limits)
    rates = chosen_rates(league, rows(folder))
    final = [Trial(league, name, seed, rates[name], _levels(league, name), data, folder)
             for seed in league.seeds for name in rivals_of(league) if name in rates]  # fmt: skip
    _run_missing(final, at_once, limits)
    return rows(folder)


def rows(folder: Path) -> list[dict[str, Any]]:
    """All rows that are there, in the order of their names."""
    return [read_json(path) for path in sorted((folder / "rows").glob("*.json"))]


def chosen_rates(league: League, rows: list[dict[str, Any]]) -> dict[str, float]:
    """The rate with the best accuracy on held-out images in the sweep, for every rival that survived it.

    Among equals it is the one nearest to the middle of the sweep: hold-outs are small, and an edge promises least.
    """
    swept = [row for row in rows if row["seed"] == league.seeds[0] and row["level"] == league.sweep_level]
    middle = statistics.median(math.log(rate) for rate in league.rates)

    def worth(row: dict[str, Any]) -> tuple[float, float]:
        return row["held_out"], -abs(math.log(row["rate"]) - middle)

    best: dict[str, dict[str, Any]] = {}
    for row in swept:
        if not row["failed"]:
            best[row["rival"]] = max(row, best.get(row["rival"], row), key=worth)
    return {name: row["rate"] for name, row in best.items()}


def protocol(league: League) -> dict[str, Any]:
    """What rows must share to be compared: all of a league but who plays, and its texts."""
    return league.model_dump(mode="json", exclude={"rivals", "title", "about"})


def restore(league: League, results: Path, folder: Path) -> None:
    """Write the rows of a results file to `folder`, except those that are there.

    Raises `SettingError` where they were played under another protocol or are not rows.
    """
    found = read_json(results)
    if not isinstance(found, dict) or not {"protocol", "rows"} <= found.keys():
        raise SettingError(f"{results}: not the results of a league; bench writes them as NAME/NAME.json")
    if changed := _changed(league, found["protocol"]):
        raise SettingError(f"{results}: played under another {changed}")
    adapter = TypeAdapter(Row)
    for values in found["rows"]:
        try:
            row = adapter.validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            raise SettingError(f"{results}: not a row of ours: {summarize_error(error)}") from None
        if row.rival not in TABLES[league.kind]:
            raise SettingError(f"{results}: a row of {row.rival!r}, whom nobody knows")
        path = row_file(folder, row.rival, row.seed, row.rate, row.level)
        if not path.exists():
            write_json(path, values)


def _claim(league: League, folder: Path) -> None:
    """The folder belongs to one protocol; who plays may change."""
    path = folder / "league.json"
    if not path.exists():
        write_json(path, protocol(league))
    elif changed := _changed(league, read_json(path)):
        raise SettingError(f"{folder}: a league with another {changed} began here; delete it, or choose another --out")


def _changed(league: League, before: dict[str, Any]) -> str:
    """Names of the settings that differ."""
    return ", ".join(key for key, value in protocol(league).items() if before.get(key) != value)


def _levels(league: League, name: str) -> tuple[float | None, ...]:
    return (*league.levels, None) if rivals_of(league)[name].automatic else league.levels


def _train_start(task: tuple[League, int, Path, Path]) -> None:
    prepare_arena(*task)


def _run_missing(trials: list[Trial], at_once: int, limits: Limits) -> None:
    """Every trial in a process of its own; one that dies leaves rows that say how."""
    waiting = _share([trial for trial in trials if trial.missing])
    for trial, ended in run_isolated(run_trial, waiting, at_once, limits, PRELOAD):
        for level in trial.missing:
            row = Row(trial.rival, trial.seed, trial.rate, level, failed=ended or "left no row")
            write_json(trial.row_file(level), asdict(row))
        for level in trial.levels:
            row = Row(**read_json(trial.row_file(level)))
            at = "its own point" if level is None else f"{level:g}"
            said = row.failed or f"{row.error:.2f} % error, {row.compression:.1f}x fewer weights"
            print(f"{trial.rival}, seed {trial.seed}, rate {trial.rate:g}, {at}: {said}", flush=True)
    _wait(lambda: not any(trial.missing for trial in trials))


def _share(tasks: Sequence[Any]) -> list[Any]:
    """What this process of a torchrun takes; without one, everything."""
    return list(tasks)[int(os.environ.get("RANK", 0)) :: int(os.environ.get("WORLD_SIZE", 1))]


def _wait(done: Callable[[], bool]) -> None:
    """For the other processes' shares."""
    while not done():
        time.sleep(POLL)
