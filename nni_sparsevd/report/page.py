"""The report of a run: one page in Markdown and in HTML, from the files of its folder alone."""

import base64
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError

from .. import errors, files
from . import pictures
from .decision import Decision, find_decision
from .int8 import list_int8_remarks
from .remarks import write_answer, write_remarks

HEADINGS = {
    "front": "The networks to choose from: accuracy against multiply-accumulates",
    "progress": "Accuracy and compression over the epochs",
    "log_alpha": "log α of all posteriors: {decision}; the outer bins hold the rest",
    "curve": "Accuracy against compression over thresholds, on held-out data, before fine-tuning",
    "layers": "Share of the weights removed, layer by layer",
    "allocation": "What each layer costs, before and after",
    "mistakes": "Test images that the dense network gets right and the shrunk one wrong, surest first: class → answer",
}
"""What stands above each picture, in the order of the page."""
NETWORKS = ("dense", "twin", "masked", "shrunk")
"""The columns of the comparison; a run has a twin only where it was asked for."""
MISTAKES_FILE = "mistakes.safetensors"
SIZES = (
    ("parameters", "Parameters", "{:,}"),
    ("macs", "MACs, one image", "{:,}"),
    ("file_bytes", "File, bytes", "{:,}"),
    ("latency_ms", "Latency, ms (one image, one thread)", "{:.3f}"),
)
"""Key in result.json, label and number format of each size."""


def write_report(folder: Path) -> Path:
    """Draw pictures/, report.md and report.html in the folder of a finished run.

    Args:
        folder: The run folder; curve.json, log_alpha.json, exports.json and runtimes.json may be missing in it.

    Returns:
        The path of report.html.

    Raises:
        FileFormatError: A file is missing or damaged; the message names it.
    """
    values = _gather_values(folder)
    environment = Environment(
        loader=PackageLoader("nni_sparsevd", "report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": "{:,}".format, "ratio": "{:.2f}×".format}
    for name in ("report.md", "report.html"):
        with _blaming(folder / "result.json"):
            page = environment.get_template(f"{name}.jinja").render(values)
        files.write_bytes(folder / name, page.encode())
    return folder / "report.html"


def _gather_values(folder: Path) -> dict[str, Any]:
    """Draw the pictures, and gather what the templates are filled with."""
    result = files.read_json(folder / "result.json")
    epochs = files.read_rows(folder / "metrics.jsonl")
    if not epochs:
        raise errors.FileFormatError(f"{folder / 'metrics.jsonl'}: no rows; is it the folder of a finished run?")
    if not (folder / "recipe.toml").exists():
        raise errors.FileFormatError(f"{folder / 'recipe.toml'}: no such file")
    recipe = (folder / "recipe.toml").read_text()
    curve = _read_optional(folder / "curve.json")
    with _blaming(folder / "recipe.toml"):
        settings = tomllib.loads(recipe)
        decision = find_decision(settings, curve)
        is_tuned = settings.get("quantize", {}).get("aware", False)
    drawn = _draw_pictures(folder, result, epochs, curve, decision)
    exports, runtimes = _read_optional(folder / "exports.json"), _read_optional(folder / "runtimes.json")
    with _blaming(folder / "runtimes.json" if runtimes else folder / "exports.json"):
        int8_remarks = list_int8_remarks(exports or {}, runtimes["rows"] if runtimes else [], is_tuned=is_tuned)
    with _blaming(folder / "result.json"):
        return {
            **result,
            "title": folder.resolve().name,
            "answer": write_answer(result),
            "remarks": [*write_remarks(result), *int8_remarks],
            "networks": _list_networks(result),
            "rows": _comparison_rows(result),
            "has_channel_costs": any(layer.get("channel_macs") is not None for layer in result["layers"]),
            "curve": curve,
            "pictures": [(name, HEADINGS[name].format(decision=decision.sentence)) for name in drawn],
            "embedded": {name: base64.b64encode(path.read_bytes()).decode() for name, path in drawn.items()},
            "exports": exports,
            "runtimes": runtimes,
            "environment": files.read_json(folder / "environment.json"),
            "recipe": recipe,
            "epochs": _count_epochs(epochs),
        }


def _count_epochs(rows: list[dict[str, Any]]) -> dict[str, int | str]:
    """Stage -> its epochs; fine-tuning as text, from the fewest to the most where levels differ."""
    counts = Counter(row["stage"] for row in rows)
    tuning = [count for stage, count in counts.items() if stage.startswith("finetune")] or [0]
    fewest, most = min(tuning), max(tuning)
    quantizing = [count for stage, count in counts.items() if stage.startswith("quantize")]
    # A counter has 0 for what it has not seen, but a template asks for its keys.
    stages = ("dense", "sparse", "twin_sparse", "twin_finetune", "twin_quantize")
    return {
        **{stage: counts[stage] for stage in stages},
        "finetune": str(most) if fewest == most else f"{fewest} to {most}",
        "quantize": max(quantizing, default=0),
    }


def _draw_pictures(
    folder: Path, result: Any, epochs: list[dict[str, Any]], curve: Any, decision: Decision
) -> dict[str, Path]:
    """Draw the pictures that this run has numbers for; gives their files by name, in the order of `HEADINGS`."""
    with _blaming(folder / "result.json"):
        layers, lost, front = result["layers"], result["mistakes"]["lost"], result["front"]
    drawing: dict[str, tuple[str, Callable[[Path], None]]] = {
        "progress": ("metrics.jsonl", lambda path: pictures.draw_progress(epochs, path)),
        "layers": ("result.json", lambda path: pictures.draw_layer_sparsity(layers, path)),
        "allocation": ("result.json", lambda path: pictures.draw_allocation(layers, path)),
    }
    if front:
        drawing["front"] = ("result.json", lambda path: pictures.draw_front(front, path))
    if curve:
        drawing["curve"] = ("curve.json", lambda path: pictures.draw_threshold_curve(curve, decision, path))
    history = _read_optional(folder / "log_alpha.json")
    with _blaming(folder / "log_alpha.json"):
        has_history = bool(history and history["epochs"])
    if has_history:
        drawing["log_alpha"] = (
            "log_alpha.json",
            lambda path: pictures.draw_log_alpha_histograms(history, decision, path),
        )
    if lost:
        drawing["mistakes"] = (MISTAKES_FILE, lambda path: _draw_mistakes(folder, result, path))
    drawn = {}
    for name in HEADINGS:
        if name in drawing:
            source, draw = drawing[name]
            drawn[name] = folder / "pictures" / f"{name}.png"
            with _blaming(folder / source):
                draw(drawn[name])
    return drawn


def _draw_mistakes(folder: Path, result: Any, path: Path) -> None:
    # Files of one of several networks are in the folder of its level.
    source = folder / "levels" / f"{result['level']:g}" if result["front"] else folder
    tensors = files.load_tensors(source / MISTAKES_FILE)[0]
    known = result["preprocessing"]["label_names"]
    labels, answers = (
        [known[place] if known else str(place) for place in tensors[key].tolist()] for key in ("labels", "answers")
    )
    pictures.draw_mistakes(tensors["images"].numpy(), list(zip(labels, answers, strict=True)), path)


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Turn what a missing key or a value of another type raises into an error that names the file it came from."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, UndefinedError) as error:
        raise errors.FileFormatError(
            f"{path}: damaged, not that of a finished run, or written by another version of nni_sparsevd: "
            f"{type(error).__name__}, {error}"
        ) from error


def _read_optional(path: Path) -> Any:
    return files.read_json(path) if path.exists() else None


def _list_networks(result: dict[str, Any]) -> list[str]:
    """The networks that this run has, in the order of the columns."""
    return [name for name in NETWORKS if name in result["test"]]


def _comparison_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each measure: its values for all networks, and how many times less the last is than the first."""
    rows: list[dict[str, Any]] = []
    networks = _list_networks(result)
    sizes_by_network = {**result["size"], "twin": result["size"]["dense"]}  # the twin is as large
    for key, label, form in SIZES:
        sizes = [sizes_by_network[network][key] for network in networks]
        rows.append({"label": label, "values": [form.format(size) for size in sizes], "ratio": sizes[0] / sizes[-1]})
    scores = [result["test"][network] for network in networks]
    test_errors = [f"{score['error_percent']:.2f}" for score in scores]
    losses = [f"{score['loss']:.4f}" for score in scores]
    rows.append({"label": "Test error, %", "values": test_errors, "ratio": None})
    rows.append({"label": "Test cross-entropy, nats", "values": losses, "ratio": None})
    return rows
