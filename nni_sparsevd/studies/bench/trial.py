"""One rival with one seed and learning rate, at several levels: decide, tune, measure; a row each."""

import contextlib
import logging
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ...convert import bake_
from ...errors import summarize_error
from ...files import write_json
from ...masks import count_weights
from ...measure import count_macs, count_parameters
from ...recipe import Stage
from .arena import Arena, prepare_arena
from .league import League
from .rivals import Pruned, rivals_of
from .timing import faster


@dataclass(frozen=True)
class Trial:
    """What one process does."""

    league: League
    rival: str
    seed: int
    rate: float
    levels: tuple[float | None, ...]
    data: Path
    folder: Path

    def row_file(self, level: float | None) -> Path:
        """Where the row of a level is."""
        return row_file(self.folder, self.rival, self.seed, self.rate, level)

    @property
    def missing(self) -> tuple[float | None, ...]:
        """Levels without a row."""
        return tuple(level for level in self.levels if not self.row_file(level).exists())


@dataclass(frozen=True)
class Row:
    """What came of one level."""

    rival: str
    seed: int
    rate: float
    level: float | None
    failed: str = ""
    sparsity: float = 0.0
    """Share of the weights that are gone, among all weights of more than one dimension."""
    compression: float = 0.0
    macs: int = 0
    """Multiply-accumulates of one image, of what is left; zeros count."""
    dense_macs: int = 0
    parameters: int = 0
    faster: dict[str, float] = field(default_factory=dict)
    """Of whole channels: runtime -> how many times faster, one image, one thread, dense and small interleaved."""
    untuned_error: float = 0.0
    """Test error in percent right after the decision."""
    held_out: float = 0.0
    """Accuracy on the hold-out at the end: what choices rest on."""
    error: float = 0.0
    """Test error in percent at the end."""
    dense_error: float = 0.0
    steps: int = 0
    """Steps that the rival took; up to the league's, the rest was tuning."""
    seconds: float = 0.0
    """Processor seconds, tuning included; what serves all levels counts for the first."""


def row_file(folder: Path, rival: str, seed: int, rate: float, level: float | None) -> Path:
    """Where a league in `folder` keeps a row."""
    at = "own" if level is None else f"{level:g}"
    return folder / "rows" / f"{rival}-{seed}-{rate:g}-{at}.json"


def run_trial(trial: Trial) -> None:
    """Write the rows that are missing; one that fails says why."""
    torch.set_num_threads(1)
    with _quiet():
        _run(trial)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNI logs every module that it touches, by loggers with levels of their own."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _run(trial: Trial) -> None:
    began = time.process_time()
    rival, stage = rivals_of(trial.league)[trial.rival], _stage(trial)
    missing = trial.missing
    try:
        ground = prepare_arena(trial.league, trial.seed, trial.data, trial.folder)
        decide = rival.prepare(ground, stage)
    except Exception as error:  # the rival's, and its rows have to say it
        traceback.print_exc()
        for level in missing:
            _write(trial, level, {"failed": summarize_error(error)}, began)
        return
    for level in missing:
        try:
            values = _measured(ground, stage, decide(level))
        except Exception as error:
            traceback.print_exc()
            values = {"failed": summarize_error(error)}
        began = _write(trial, level, values, began)


def _stage(trial: Trial) -> Stage:
    return trial.league.dense.model_copy(update={"learning_rate": trial.rate, "hold": 0.0})


def _measured(ground: Arena, stage: Stage, pruned: Pruned) -> dict[str, object]:
    if pruned.steps > ground.steps:
        raise ValueError(f"took {pruned.steps} steps of {ground.steps}")
    model, masks = pruned.model, pruned.masks
    untuned = ground.tested(bake_(model, masks, allow_empty=True) if masks else model)
    ground.train(model, stage, pruned.steps, ground.steps, loss=pruned.loss, masks=masks)
    kept, (_, total) = count_weights(model, masks or {})[0], count_weights(ground.start, {})
    test, example = ground.tested(model), ground.example[:1]
    times = faster(ground.start, model, example) if ground.league.kind == "channels" else {}
    return {
        "sparsity": 1 - kept / total,
        "compression": total / max(kept, 1),
        "macs": count_macs(model, example),
        "dense_macs": ground.dense_macs,
        "parameters": count_parameters(model),
        "faster": times,
        "untuned_error": 100 * (1 - untuned.accuracy),
        "held_out": ground.held_out(model).accuracy,
        "error": 100 * (1 - test.accuracy),
        "dense_error": ground.dense_error,
        "steps": pruned.steps,
    }


def _write(trial: Trial, level: float | None, values: dict[str, object], began: float) -> float:
    now = time.process_time()
    row = Row(trial.rival, trial.seed, trial.rate, level, seconds=round(now - began, 1), **values)  # type: ignore[arg-type]
    write_json(trial.row_file(level), asdict(row))
    return now
