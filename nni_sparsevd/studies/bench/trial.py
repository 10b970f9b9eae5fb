"""One trial of a league: a rival with one seed and learning rate decides, is tuned and is measured at several levels.

Each level gives one row, in a file of its own.
"""

import contextlib
import logging
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...convert import bake_
from ...errors import summarize_error
from ...files import write_json
from ...masks import count_weights
from ...measure import count_macs, count_parameters
from ...recipe import Stage
from ...training import keep_freed_memory
from .arena import Arena, prepare_arena
from .league import League
from .rivals import Pruned, rivals_of
from .timing import measure_speedups


@dataclass(frozen=True)
class Trial:
    """What one process does."""

    league: League
    """The protocol."""
    rival: str
    """Name of the rival."""
    seed: int
    """One of the league's seeds."""
    rate: float
    """Peak learning rate."""
    levels: tuple[float | None, ...]
    """Levels to reach; None for the one that the rival chooses itself."""
    data: Path
    """Folder of the data sets."""
    folder: Path
    """Folder of the league."""

    def row_file(self, level: float | None) -> Path:
        """Path of the row of a level."""
        return row_file(self.folder, self.rival, self.seed, self.rate, level)

    @property
    def missing(self) -> tuple[float | None, ...]:
        """Levels without a row."""
        return tuple(level for level in self.levels if not self.row_file(level).exists())


@dataclass(frozen=True)
class Row:
    """What a trial reached at one level.  The names of the fields are the keys in the files."""

    rival: str
    """Name of the rival."""
    seed: int
    """Seed of the trial."""
    rate: float
    """Peak learning rate of the trial."""
    level: float | None
    """The level; None for the one that the rival chose itself."""
    failed: str = ""
    """What went wrong, or ""; the other figures mean nothing then."""
    sparsity: float = 0.0
    """Share of removed weights among all weights of more than one dimension."""
    compression: float = 0.0
    """All weights over kept weights."""
    macs: int = 0
    """Multiply-accumulates of one image at the end; multiplications by zero count."""
    dense_macs: int = 0
    """Multiply-accumulates of one image in the dense start."""
    parameters: int = 0
    """Parameters at the end."""
    faster: dict[str, float] = field(default_factory=dict)
    """For whole channels: runtime -> how many times faster than the dense start, one image, one thread."""
    untuned_error: float = 0.0
    """Test error in percent right after the decision."""
    held_out: float = 0.0
    """Accuracy on the hold-out at the end, between 0 and 1: what choices rest on."""
    error: float = 0.0
    """Test error in percent at the end."""
    dense_error: float = 0.0
    """Test error in percent of the dense start."""
    steps: int = 0
    """Steps that the rival took to decide; the rest of the league's steps were fine-tuning."""
    seconds: float = 0.0
    """Processor seconds, fine-tuning included; the work that all levels share counts for the first of them."""


def row_file(folder: Path, rival: str, seed: int, rate: float, level: float | None) -> Path:
    """Path of a row in the folder of a league."""
    level_name = "own" if level is None else f"{level:g}"
    return folder / "rows" / f"{rival}-{seed}-{rate:g}-{level_name}.json"


def run_trial(trial: Trial) -> None:
    """Run a trial at the levels that have no row, and write their rows; a row that fails says why."""
    # One thread for each trial: trials run side by side, and sums do not depend on the number of cores.
    torch.set_num_threads(1)
    keep_freed_memory()
    with _without_logs():
        _write_missing_rows(trial)


@contextlib.contextmanager
def _without_logs() -> Iterator[None]:
    """Silence logs up to warnings: NNI logs every module that it touches, by loggers with levels of their own."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _write_missing_rows(trial: Trial) -> None:
    started = time.process_time()
    rival = rivals_of(trial.league)[trial.rival]
    # The stage of the dense start without `hold`: the rate falls from the first step on.
    stage = trial.league.dense.model_copy(update={"learning_rate": trial.rate, "hold": 0.0})
    missing = trial.missing
    # Any error is caught: whatever a rival raises is a fact about this rival, which its rows have to report, and the
    # levels after it may still work.
    try:
        arena = prepare_arena(trial.league, trial.seed, trial.data, trial.folder)
        decide = rival.prepare(arena, stage)
    except Exception as error:
        traceback.print_exc()
        for level in missing:
            _write_row(trial, level, {"failed": summarize_error(error)}, started)
        return
    for level in missing:
        try:
            figures = _tune_and_measure(arena, stage, decide(level))
        except Exception as error:
            traceback.print_exc()
            figures = {"failed": summarize_error(error)}
        started = _write_row(trial, level, figures, started)


def _tune_and_measure(arena: Arena, stage: Stage, pruned: Pruned) -> dict[str, Any]:
    """Fields of a row, of a network that is tuned here in the steps that the rival has left."""
    if pruned.steps > arena.steps:
        raise ValueError(f"took {pruned.steps} steps of {arena.steps}")
    model, masks = pruned.model, pruned.masks
    # A rival may hand back masks that it has not applied yet; tuning applies them with its first step.
    untuned = arena.score_test(bake_(model, masks, allow_empty=True) if masks else model)
    arena.train(model, stage, pruned.steps, arena.steps, loss=pruned.loss, masks=masks)
    kept, _ = count_weights(model, masks or {})
    _, total = count_weights(arena.start, {})  # a network that is smaller has fewer weights in all
    example = arena.example[:1]
    tuned = arena.score_test(model)
    speedups = measure_speedups(arena.start, model, example) if arena.league.kind == "channels" else {}
    return {
        "sparsity": 1 - kept / total,
        "compression": total / max(kept, 1),
        "macs": count_macs(model, example),
        "dense_macs": arena.dense_macs,
        "parameters": count_parameters(model),
        "faster": speedups,
        "untuned_error": 100 * (1 - untuned.accuracy),
        "held_out": arena.score_holdout(model).accuracy,
        "error": 100 * (1 - tuned.accuracy),
        "dense_error": arena.dense_error,
        "steps": pruned.steps,
    }


def _write_row(trial: Trial, level: float | None, figures: dict[str, Any], started: float) -> float:
    """Write a row; returns the processor time at its end, which is the start of the next one."""
    now = time.process_time()
    seconds = round(now - started, 1)
    row = Row(trial.rival, trial.seed, trial.rate, level, seconds=seconds, **figures)
    write_json(trial.row_file(level), asdict(row))
    return now
