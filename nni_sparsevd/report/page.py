"""The report of a run: one page in Markdown and in HTML, from the files of its folder alone."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError

from .. import errors, files
from ..posterior import DEFAULT_THRESHOLD
from . import pictures

PICTURES = {
    "progress": "Accuracy and compression over the epochs",
    "log_alpha": "log α of all posteriors: kept left of the threshold, noise right of it; the outer bins hold the rest",
    "curve": "Accuracy against compression over thresholds, on held-out data, before fine-tuning",
    "layers": "Share of the weights removed, layer by layer",
}
NAMES = {"dense": "dense", "masked": "masked", "shrunk": "shrunk"}


def write_report(folder: Path) -> Path:
    """Draw pictures/, report.md and report.html in a run folder; returns the path of the page.

    Raises `FileFormatError` naming the file that is missing or damaged; curve.json and log_alpha.json may be missing.
    """
    values = _gather(folder)
    environment = Environment(
        loader=PackageLoader("nni_sparsevd", "report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": lambda value: f"{value:,}", "ratio": lambda value: f"{value:.2f}×"}
    for name in ("report.md", "report.html"):
        with _naming(folder / "result.json"):
            page = environment.get_template(f"{name}.jinja").render(values)
        files.write_bytes(folder / name, page.encode())
    return folder / "report.html"


def _gather(folder: Path) -> dict[str, Any]:
    result = files.read_json(folder / "result.json")
    rows = files.read_rows(folder / "metrics.jsonl")
    if not rows:
        raise errors.FileFormatError(f"{folder / 'metrics.jsonl'}: no rows; is it the folder of a finished run?")
    curve = _optional(folder / "curve.json")
    history = _optional(folder / "log_alpha.json")
    if not (folder / "recipe.toml").exists():
        raise errors.FileFormatError(f"{folder / 'recipe.toml'}: no such file")
    drawn = _draw(folder, result, rows, curve, history)
    with _naming(folder / "result.json"):
        return {
            **result, "title": folder.resolve().name, "rows": _comparison(result), "curve": curve,
            "pictures": [(name, PICTURES[name]) for name in drawn],
            "embedded": {name: base64.b64encode(path.read_bytes()).decode() for name, path in drawn.items()},
            "exports": _optional(folder / "exports.json"),
            "environment": files.read_json(folder / "environment.json"),
            "recipe": (folder / "recipe.toml").read_text(),
            "epochs": {stage: sum(row["stage"] == stage for row in rows) for stage in ("dense", "sparse", "finetune")},
        }  # fmt: skip


def _draw(folder: Path, result: Any, rows: list[dict[str, Any]], curve: Any, history: Any) -> dict[str, Path]:
    """The pictures that this run has numbers for, in the order of `PICTURES`."""
    drawn = {name: folder / "pictures" / f"{name}.png" for name in PICTURES}
    with _naming(folder / "metrics.jsonl"):
        pictures.progress(rows, drawn["progress"])
    with _naming(folder / "result.json"):
        pictures.layer_sparsity(result["layers"], drawn["layers"])
    with _naming(folder / "curve.json"):
        if curve:
            pictures.threshold_curve(curve, drawn["curve"])
        else:
            del drawn["curve"]
    with _naming(folder / "log_alpha.json"):
        if history and history["epochs"]:
            decided = curve["chosen"] if curve else DEFAULT_THRESHOLD
            pictures.log_alpha_histograms(history, decided, drawn["log_alpha"])
        else:
            del drawn["log_alpha"]
    return drawn


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What is not there, or is something else than expected, is the fault of `path`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, UndefinedError) as error:
        raise errors.FileFormatError(f"{path}: not that of a finished run: {type(error).__name__}, {error}") from error


def _optional(path: Path) -> Any:
    return files.read_json(path) if path.exists() else None


def _comparison(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a measure: dense, masked, shrunk, and how many times less the last is than the first."""
    rows = []
    for key, label, form in (
        ("parameters", "Parameters", "{:,}"),
        ("macs", "MACs, one image", "{:,}"),
        ("file_bytes", "File, bytes", "{:,}"),
        ("latency_ms", "Latency, ms (one image, one thread)", "{:.3f}"),
    ):
        sizes = [result["size"][name][key] for name in NAMES]
        rows.append({"label": label, "values": [form.format(size) for size in sizes], "ratio": sizes[0] / sizes[-1]})
    scores = [f"{result['test'][name]['error_percent']:.2f}" for name in NAMES]
    rows.append({"label": "Test error, %", "values": scores, "ratio": None})
    losses = [f"{result['test'][name]['loss']:.4f}" for name in NAMES]
    return [*rows, {"label": "Test cross-entropy, nats", "values": losses, "ratio": None}]
