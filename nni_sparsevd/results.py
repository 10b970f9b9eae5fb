"""The end of a run: the small network, checked against the masked one, and everything measured, in its folder."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import FileFormatError, ShrinkError
from .export import Comparison, export
from .files import read_json, write_json
from .graph import channel_graph
from .masks import count_weights
from .measure import count_macs, count_parameters, measure_latencies
from .nn import output_dim
from .report import write_remarks, write_report
from .shrinking import CheckResult, Plan, check, shrink
from .storage import load, save
from .training import Compressed, Score, evaluate

FILES = {"dense": "dense.safetensors", "masked": "masked.safetensors", "shrunk": "small.safetensors"}
"""Network, as result.json names it -> its file in the run folder."""


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
    environment = read_json(folder / "environment.json")
    values = {
        "input": list(compressed.example_inputs.shape[1:]),
        "test": {name: score.to_dict() for name, score in scores.items()},
        "images": {"train": len(data.train), "holdout": len(data.holdout), "test": len(data.test)},
        "skipped": list(data.skipped),
        "preprocessing": data.preprocessing.to_dict(),
        "layers": _describe_layers(compressed.dense, compressed.masked, small),
        "weights": _count_all_weights(compressed),
        "size": _measure_sizes(networks, folder, compressed.example_inputs[:1]),
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


def _describe_layers(dense: nn.Module, masked: nn.Module, small: nn.Module) -> list[dict[str, Any]]:
    """For each layer: its weights before Sparse VD, those kept, and the inputs and outputs left after shrinking."""
    rows = []
    for name, layer in dense.named_modules():
        weight = layer._parameters.get("weight")
        # Norms and biases have one dimension: they are not counted as weights anywhere.
        if weight is None or weight.dim() < 2:
            continue
        kept = int(masked.get_submodule(name).get_parameter("weight").count_nonzero())
        small_weight = small.get_submodule(name).get_parameter("weight")
        out = output_dim(layer)
        all_but_inputs = [dim for dim in range(small_weight.dim()) if dim != 1 - out]
        row = {
            "name": name,
            "shape": list(weight.shape),
            "weights": weight.numel(),
            "kept": kept,
            "sparsity": 1 - kept / weight.numel(),
            "inputs": int((small_weight != 0).any(all_but_inputs).sum()),
            "outputs": small_weight.shape[out],
        }
        rows.append(row)
    return rows


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


def export_run(folder: Path, path: Path, *, dynamic_batch: bool = True) -> Comparison:
    """Export the small network of a run folder, and add the comparison to exports.json and to the report there.

    Args:
        folder: The folder of a finished run.
        path: The file to write; its suffix chooses the runtime, as in `export`.
        dynamic_batch: Whether the exported network accepts batches of any size, as far as the runtime can.

    Returns:
        The largest differences between the small network and the exported file.

    Raises:
        FileFormatError: The run is not finished, or a file of it is damaged.
        SettingError: The suffix is not known, or the runtime is not installed.
        ModelError: The runtime cannot express the network, or the exported file computes something else.
    """
    shape = read_json(folder / "result.json")["input"]
    small = load(folder / FILES["shrunk"])
    comparison = export(small, path, torch.zeros(1, *shape), dynamic_batch=dynamic_batch)
    record = folder / "exports.json"
    rows = read_json(record) if record.exists() else {}
    write_json(record, {**rows, path.name: comparison.to_dict()})
    write_report(folder)
    return comparison


def check_run(folder: Path) -> CheckResult:
    """Compare the masked and the small network of a run folder.

    Args:
        folder: The folder of a finished run.

    Returns:
        The largest differences of their outputs.

    Raises:
        FileFormatError: The run is not finished, or a file of it is damaged.
    """
    for name in ("result.json", FILES["masked"], FILES["shrunk"]):
        if not (folder / name).exists():
            raise FileFormatError(f"{folder}: has no {name}; is it the folder of a finished run?")
    shape = read_json(folder / "result.json")["input"]
    return check(load(folder / FILES["masked"]), load(folder / FILES["shrunk"]), torch.zeros(2, *shape))
