"""What the runs of an experiment recorded, in one JSON-able object: its tables and pictures need nothing else."""

from typing import Any

from ...files import read_json, read_rows
from .experiments import Experiment
from .measures import measured
from .running import Job

HISTORY = ("stage", "epoch", "accuracy", "compression", "loss", "train_accuracy")


def gather(chosen: Experiment, jobs: list[Job]) -> list[dict[str, Any]]:
    """One row a finished run: what it reached and how it got there.  Raises `FileFormatError` for a damaged file."""
    return [_row(job) | measured(job.folder, chosen.measures) for job in jobs if job.done]


def _row(job: Job) -> dict[str, Any]:
    result = read_json(job.folder / "result.json")
    epochs = read_rows(job.folder / "metrics.jsonl")
    dense, small = result["size"]["dense"], result["size"]["shrunk"]
    return {
        "variant": job.variant,
        "seed": job.seed,
        "dense_error": result["test"]["dense"]["error_percent"],
        "error": result["test"]["shrunk"]["error_percent"],
        "train_error": 100 * (1 - epochs[-1]["train_accuracy"]),
        "weights": result["weights"],
        "layers": result["layers"],
        "threshold": read_json(job.folder / "curve.json")["chosen"],
        "parameters": [dense["parameters"], small["parameters"]],
        "macs": [dense["macs"], small["macs"]],
        "latency_ms": [dense["latency_ms"], small["latency_ms"]],
        "check": result["check"],
        "epochs": [{key: row[key] for key in HISTORY} for row in epochs],
        "processor_seconds": _spent(epochs),
        "environment": read_json(job.folder / "environment.json"),
    }


def _spent(epochs: list[dict[str, Any]]) -> float:
    """Processor seconds of all stages; the clock begins again at each stage, and where a run was resumed."""
    total, before, stage = 0.0, 0.0, ""
    for row in epochs:
        now = row["processor_seconds"]
        total += now - before if row["stage"] == stage and now >= before else now
        before, stage = now, row["stage"]
    return round(total, 1)
