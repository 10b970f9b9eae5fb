"""The end of a run: the small network, checked against the masked one, and everything measured, in its folder."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import ShrinkError
from ..files import read_json, write_json
from ..graph import channel_graph
from ..masks import count_weights
from ..measure import count_macs, count_parameters, measure_latencies
from ..recipe import RECIPE_FILE, read_recipe
from ..report import write_remarks
from ..shrinking import CheckResult, Plan, check, shrink
from ..storage import save
from ..training import (
    SENSITIVITY_FILE,
    Answers,
    Compressed,
    Score,
    TunedLevel,
    classify,
    evaluate,
    find_best_accuracy,
    find_mistakes,
    show_phase,
)
from .layers import describe_layers
from .run_files import FILES


@dataclass(frozen=True)
class _ShrunkLevel:
    """A network of the run, made smaller."""

    tuned: TunedLevel
    small: nn.Module
    account: Plan
    """What has left since the dense network."""
    check: CheckResult

    @property
    def folder(self) -> Path:
        return self.tuned.level.folder


def finish_run(compressed: Compressed, folder: Path) -> str:
    """Shrink each masked network, check the small one, measure all, and write masked, small, plan.json and result.json.

    Args:
        compressed: What `compress` has returned.
        folder: The folder of that run.

    Returns:
        A summary of several lines.

    Raises:
        ShrinkError: A small network does not compute what the masked one computes.
        TraceError: The network cannot be traced.
        FileFormatError: A file cannot be written.
    """
    began = time.monotonic()
    recipe = read_recipe(folder / RECIPE_FILE)
    remember_norms = recipe.masks.remember_norms
    round_to = 1 if recipe.budget.kind is None else recipe.budget.round_to
    with show_phase("shrinking, and checking what comes out"):
        dense_graph = channel_graph(compressed.dense, compressed.example_inputs, remember_norms=remember_norms)
        channels = {group.name: len(group) for group in dense_graph.groups}
        levels = [_shrink_level(compressed, tuned, channels, remember_norms, round_to) for tuned in compressed.levels]
    with show_phase("measuring times"):
        latencies = _measure_latencies(compressed, levels)
    with show_phase("testing and counting"):
        dense = classify(compressed.dense, compressed.data, compressed.data.test)
        scores = {"dense": dense.score}
        if compressed.twin is not None:
            scores["twin"] = evaluate(compressed.twin, compressed.data, compressed.data.test)
        common = _describe_run(compressed, folder)
        results = []
        for level, latency in zip(levels, latencies, strict=True):
            results.append({**common, **_describe_level(compressed, level, folder, dense, scores, latency)})
    front = _list_front(compressed, results) if compressed.chosen.level.folder != folder else []
    for level, values in zip(levels, results, strict=True):
        values |= {"front": front, "shrinking_seconds": round(time.monotonic() - began, 2)}
        write_json(level.folder / "result.json", values)
    shown = compressed.levels.index(compressed.chosen)
    write_json(folder / "result.json", results[shown])
    return _summarize(results[shown], levels[shown])


def _shrink_level(
    compressed: Compressed, tuned: TunedLevel, dense_channels: dict[str, int], remember_norms: bool, round_to: int
) -> _ShrunkLevel:
    """Make one network smaller, and write it and the masked one; the groups of the dense one had so many channels."""
    folder = tuned.level.folder
    small, plan = shrink(tuned.masked, compressed.example_inputs, round_to=round_to, remember_norms=remember_norms)
    result = check(tuned.masked, small, compressed.example_inputs)
    if not result.ok:
        raise ShrinkError(f"{folder}: {result}")
    save(tuned.masked, folder / FILES["masked"])
    save(small, folder / FILES["shrunk"])
    plan.save(folder / "plan.json")
    return _ShrunkLevel(tuned, small, _account_from_dense(plan, dense_channels), result)


def _describe_run(compressed: Compressed, folder: Path) -> dict[str, Any]:
    """What all networks of the run have in common."""
    data, environment = compressed.data, read_json(folder / "environment.json")
    budget = read_json(folder / "budget.json") if (folder / "budget.json").exists() else None
    recipe = read_recipe(folder / RECIPE_FILE)
    tolerance = recipe.budget.allowed_loss
    if budget is not None:
        best = find_best_accuracy(compressed.levels, compressed.dense_held_out)
        is_within = compressed.chosen.is_within(tolerance, best)
        budget |= {"missed": compressed.missed, "tolerance": tolerance, "is_within_tolerance": is_within}
    return {
        "model": recipe.model.name,
        "input": list(compressed.example_inputs.shape[1:]),
        "images": {"train": len(data.train), "holdout": len(data.holdout), "test": len(data.test)},
        "skipped": list(data.skipped),
        "preprocessing": data.preprocessing.to_dict(),
        "passed_over": compressed.passed_over,
        "budget": budget,
        "command": environment["command"],
        "seed": environment["seed"],
        "threads": environment["threads"],
    }


def _describe_level(
    compressed: Compressed,
    shrunk: _ShrunkLevel,
    folder: Path,
    dense_answers: Answers,
    dense_scores: dict[str, Score],
    latencies: dict[str, float],
) -> dict[str, Any]:
    """What is to be said of one network, beside the dense one."""
    tuned, data, example = shrunk.tuned, compressed.data, compressed.example_inputs[:1]
    answers = classify(shrunk.small, data, data.test)
    scores = {**dense_scores, "masked": evaluate(tuned.masked, data, data.test), "shrunk": answers.score}
    mistakes = find_mistakes(dense_answers, answers, data)
    mistakes.save(shrunk.folder / "mistakes.safetensors")
    sensitivities = read_json(shrunk.folder / SENSITIVITY_FILE)
    return {
        "level": tuned.level.part,
        "test": {name: score.to_dict() for name, score in scores.items()},
        "mistakes": {"lost": mistakes.lost, "gained": mistakes.gained},
        "layers": describe_layers(compressed.dense, tuned.masked, shrunk.small, example, sensitivities),
        "weights": _count_all_weights(compressed.dense, tuned),
        "size": _measure_sizes(compressed, shrunk, folder, latencies),
        "check": shrunk.check.to_dict(),
        "plan": shrunk.account.to_rows(),
    }


def _account_from_dense(plan: Plan, dense_channels: dict[str, int]) -> Plan:
    """The plan with the channels that the network has lost while it trained counted as removed.

    The plan itself begins with the masked network, which `sparse.shrink_at` may have made smaller already.
    """
    groups = []
    for group in plan.groups:
        removed_before = dense_channels.get(group.name, group.channels) - group.channels
        channels, removed = group.channels + removed_before, group.removed + removed_before
        groups.append(replace(group, channels=channels, removed=removed))
    return replace(plan, groups=tuple(groups))


def _count_all_weights(dense: nn.Module, tuned: TunedLevel) -> dict[str, float]:
    """Weights of the dense network, and those that are kept of them."""
    kept = count_weights(tuned.masked, tuned.masks)[0]
    total = count_weights(dense, {})[1]
    return {"total": total, "kept": kept, "compression": total / max(kept, 1)}


def _measure_latencies(compressed: Compressed, levels: list[_ShrunkLevel]) -> list[dict[str, float]]:
    """For each level: network -> milliseconds of processor time for one image; all networks of the run take turns."""
    networks = {"dense": compressed.dense}
    for place, level in enumerate(levels):
        networks |= {f"masked {place}": level.tuned.masked, f"shrunk {place}": level.small}
    measured = measure_latencies(networks, compressed.example_inputs[:1], clock=time.process_time)
    latencies = []
    for place in range(len(levels)):
        of_level = {name: measured[f"{name} {place}"] for name in ("masked", "shrunk")}
        latencies.append({"dense": measured["dense"], **of_level})
    return latencies


def _measure_sizes(
    compressed: Compressed, shrunk: _ShrunkLevel, folder: Path, latencies: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Network -> parameters, MACs of one image, bytes of its file, and the latency of one image."""
    networks = {"dense": compressed.dense, "masked": shrunk.tuned.masked, "shrunk": shrunk.small}
    sizes = {}
    for name, network in networks.items():
        path = (folder if name == "dense" else shrunk.folder) / FILES[name]
        sizes[name] = {
            "parameters": count_parameters(network),
            "macs": count_macs(network, compressed.example_inputs[:1]),
            "file_bytes": path.stat().st_size,
            "latency_ms": latencies[name],
        }
    return sizes


def _list_front(compressed: Compressed, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The networks from which the user of the run may choose: the dense one or its twin, then a row for each level."""
    network = "dense" if compressed.twin is None else "twin"
    dense = {"network": network, "level": None, "held_out": compressed.dense_held_out, "chosen": False}
    rows = [{**dense, "test": results[0]["test"][network]["accuracy"], **results[0]["size"]["dense"]}]
    for tuned, values in zip(compressed.levels, results, strict=True):
        row = {
            "network": "shrunk",
            "level": tuned.level.part,
            "held_out": tuned.held_out,
            "chosen": tuned is compressed.chosen,
        }
        rows.append({**row, "test": values["test"]["shrunk"]["accuracy"], **values["size"]["shrunk"]})
    return rows


def _summarize(values: dict[str, Any], shown: _ShrunkLevel) -> str:
    weights = values["weights"]
    lines = [*write_remarks(values), f"check: {shown.check}", f"channels removed: {shown.account.removed}"]
    fewer = f", {weights['compression']:.1f} times fewer" if weights["kept"] else ""
    lines.append(f"weights: {weights['total']:,} -> {weights['kept']:,}{fewer}")
    for name, score in values["test"].items():
        # The twin is as large as the dense network.
        size = values["size"]["dense" if name == "twin" else name]
        lines.append(_summarize_network(name, score["accuracy"], size))
    for row in values["front"][1:]:
        lines.append(_summarize_network(f"{row['level']:g}", row["test"], row))
    return "\n".join(lines)


def _summarize_network(name: str, accuracy: float, row: dict[str, Any]) -> str:
    return (
        f"{name:7} test error {100 * (1 - accuracy):5.2f} %  {row['parameters']:>12,} parameters  "
        f"{row['macs']:>14,} MACs  {row['file_bytes']:>12,} bytes  {row['latency_ms']:8.3f} ms"
    )
