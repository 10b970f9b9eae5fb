"""The report of a run: one page in Markdown and in HTML, from the files of its folder alone."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import errors, files
from . import pictures

PICTURES = {
    "progress": "Accuracy and compression over the epochs",
    "log_alpha": "log α of all posteriors: kept weights left of the threshold, noise right of it",
    "curve": "Accuracy against compression over thresholds, on held-out data, before fine-tuning",
    "layers": "Share of the weights removed, layer by layer",
}
NAMES = {"dense": "dense", "masked": "masked", "shrunk": "shrunk"}


def write_report(folder: Path) -> Path:
    """Draw pictures/, report.md and report.html in a run folder; returns the path of the page.

    Raises `FileFormatError` when result.json or metrics.jsonl is missing or damaged.
    """
    values = _gather(folder)
    environment = Environment(
        loader=PackageLoader("nni_sparsevd", "report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": lambda value: f"{value:,}", "ratio": lambda value: f"{value:.2f}×"}
    for name in ("report.md", "report.html"):
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
    drawn = folder / "pictures"
    pictures.progress(rows, drawn / "progress.png")
    pictures.layer_sparsity(result["layers"], drawn / "layers.png")
    if curve:
        pictures.threshold_curve(curve, drawn / "curve.png")
    if history and history["epochs"]:
        pictures.log_alpha_histograms(history, curve["chosen"] if curve else 3.0, drawn / "log_alpha.png")
    shown = [(name, title) for name, title in PICTURES.items() if (drawn / f"{name}.png").exists()]
    try:
        return {
            **result, "title": folder.resolve().name, "rows": _comparison(result), "pictures": shown, "curve": curve,
            "embedded": {name: base64.b64encode((drawn / f"{name}.png").read_bytes()).decode() for name, _ in shown},
            "environment": files.read_json(folder / "environment.json"),
            "recipe": (folder / "recipe.toml").read_text(),
            "epochs": {stage: sum(row["stage"] == stage for row in rows) for stage in ("dense", "sparse", "finetune")},
        }  # fmt: skip
    except (KeyError, ZeroDivisionError) as error:
        raise errors.FileFormatError(f"{folder / 'result.json'}: lacks {error}") from None


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
