"""What the runs of an experiment recorded, in one JSON-able object: its tables and pictures need nothing else."""

from typing import Any

from ...files import read_json, read_rows
from .experiments import Experiment
from .measures import measure_run
from .running import Job

EPOCH_KEYS = ("stage", "epoch", "accuracy", "compression", "loss", "train_accuracy")
"""What is taken from each epoch of a run."""


def gather_runs(experiment: Experiment, jobs: list[Job]) -> list[dict[str, Any]]:
    """What each finished run reached and how it got there.

    Args:
        experiment: The experiment, whose measures are taken where a run does not have them yet.
        jobs: Runs of the experiment, finished or not.

    Returns:
        One row for each finished run.

    Raises:
        FileFormatError: A file of a finished run is missing or damaged.
    """
    return [_summarize_run(job) | measure_run(job.folder, experiment.measures) for job in jobs if job.done]


def _summarize_run(job: Job) -> dict[str, Any]:
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
        "epochs": [{key: epoch[key] for key in EPOCH_KEYS} for epoch in epochs],
        "processor_seconds": sum_processor_seconds(epochs),
        "environment": read_json(job.folder / "environment.json"),
    }


def sum_processor_seconds(epochs: list[dict[str, Any]]) -> float:
    """Processor seconds of all stages of a run.

    The clock of an epoch begins again with each stage, and in the middle of a stage where a run was resumed: then it
    stands lower than at the epoch before.
    """
    total, before, stage = 0.0, 0.0, ""
    for epoch in epochs:
        now = epoch["processor_seconds"]
        clock_goes_on = epoch["stage"] == stage and now >= before
        total += now - before if clock_goes_on else now
        before, stage = now, epoch["stage"]
    return round(total, 1)
