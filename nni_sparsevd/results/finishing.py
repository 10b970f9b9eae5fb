"""The end of a run: the small network, checked against the masked one, and everything measured, in its folder."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import ShrinkError
from ..files import read_json, write_json
from ..graph import channel_graph
from ..masks import count_weights
from ..measure import count_macs, count_parameters, measure_latencies
from ..recipe import read_recipe
from ..report import write_remarks
from ..shrinking import CheckResult, Plan, check, shrink
from ..storage import save
from ..training import SENSITIVITY_FILE, Compressed, Score, evaluate, find_mistakes
from .layers import describe_layers
from .run_files import FILES


def finish_run(compressed: Compressed, folder: Path) -> str:
    """Shrink the masked network, check the small one, measure all, and write masked, small, plan.json and result.json.

    Args:
        compressed: What `compress` has returned.
        folder: The folder of that run.

    Returns:
        A summary of several lines.

    Raises:
        ShrinkError: The small network does not compute what the masked one computes.
        TraceError: The network cannot be traced.
        FileFormatError: A file cannot be written.
    """
    began = time.monotonic()
    small, plan = shrink(compressed.masked, compressed.example_inputs)
    result = check(compressed.masked, small, compressed.example_inputs)
    if not result.ok:
        raise ShrinkError(f"{folder}: {result}")
    save(compressed.masked, folder / FILES["masked"])
    save(small, folder / FILES["shrunk"])
    plan.save(folder / "plan.json")
    account = _account_from_dense(plan, compressed)
    networks = {"dense": compressed.dense, "masked": compressed.masked, "shrunk": small}
    data = compressed.data
    scores = {name: evaluate(network, data, data.test) for name, network in networks.items()}
    if compressed.twin is not None:
        scores["twin"] = evaluate(compressed.twin, data, data.test)
    mistakes = find_mistakes(compressed.dense, small, data)
    mistakes.save(folder / "mistakes.safetensors")
    example = compressed.example_inputs[:1]
    sensitivities = read_json(folder / SENSITIVITY_FILE)
    environment = read_json(folder / "environment.json")
    values = {
        "model": read_recipe(folder / "recipe.toml").model.name,
        "input": list(compressed.example_inputs.shape[1:]),
        "test": {name: score.to_dict() for name, score in scores.items()},
        "mistakes": {"lost": mistakes.lost, "gained": mistakes.gained},
        "images": {"train": len(data.train), "holdout": len(data.holdout), "test": len(data.test)},
        "skipped": list(data.skipped),
        "preprocessing": data.preprocessing.to_dict(),
        "layers": describe_layers(compressed.dense, compressed.masked, small, example, sensitivities),
        "weights": _count_all_weights(compressed),
        "size": _measure_sizes(networks, folder, example),
        "check": result.to_dict(),
        "plan": account.to_rows(),
        "passed_over": compressed.passed_over,
        "shrinking_seconds": round(time.monotonic() - began, 2),
        "budget": read_json(folder / "budget.json") if (folder / "budget.json").exists() else None,
        "command": environment["command"],
        "seed": environment["seed"],
        "threads": environment["threads"],
    }
    write_json(folder / "result.json", values)
    return _summarize(values, account, result, scores)


def _account_from_dense(plan: Plan, compressed: Compressed) -> Plan:
    """The plan with the channels that the network has lost while it trained counted as removed.

    The plan itself begins with the masked network, which `sparse.shrink_at` may have made smaller already.
    """
    dense_graph = channel_graph(compressed.dense, compressed.example_inputs)
    dense_channels = {group.name: len(group) for group in dense_graph.groups}
    groups = []
    for group in plan.groups:
        removed_before = dense_channels.get(group.name, group.channels) - group.channels
        channels, removed = group.channels + removed_before, group.removed + removed_before
        groups.append(replace(group, channels=channels, removed=removed))
    return replace(plan, groups=tuple(groups))


def _count_all_weights(compressed: Compressed) -> dict[str, float]:
    """Weights of the dense network, and those that are kept of them."""
    kept = count_weights(compressed.masked, compressed.masks)[0]
    total = count_weights(compressed.dense, {})[1]
    return {"total": total, "kept": kept, "compression": total / max(kept, 1)}


def _measure_sizes(networks: dict[str, nn.Module], folder: Path, example: Tensor) -> dict[str, dict[str, float]]:
    """Network -> parameters, MACs of one image, bytes of its file, and the latency of one image."""
    latencies = measure_latencies(networks, example)
    sizes = {}
    for name, network in networks.items():
        sizes[name] = {
            "parameters": count_parameters(network),
            "macs": count_macs(network, example),
            "file_bytes": (folder / FILES[name]).stat().st_size,
            "latency_ms": latencies[name],
        }
    return sizes


def _summarize(values: dict[str, Any], plan: Plan, result: CheckResult, scores: dict[str, Score]) -> str:
    size, weights = values["size"], values["weights"]
    lines = [*write_remarks(values), f"check: {result}", f"channels removed: {plan.removed}"]
    lines.append(f"weights: {weights['total']:,} -> {weights['kept']:,}, {weights['compression']:.1f} times fewer")
    for name, row in size.items():
        error = 100 * (1 - scores[name].accuracy)
        lines.append(
            f"{name:7} test error {error:5.2f} %  {row['parameters']:>12,} parameters  {row['macs']:>14,} MACs  "
            f"{row['file_bytes']:>12,} bytes  {row['latency_ms']:8.3f} ms"
        )
    return "\n".join(lines)
