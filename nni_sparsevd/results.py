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
from .report import write_report
from .shrinking import CheckResult, Plan, check, shrink
from .storage import load, save
from .training import Compressed, Score, evaluate


def finish(done: Compressed, folder: Path) -> str:
    """Shrink, check, save and measure: small.safetensors, plan.json, result.json.  Returns a summary.

    Raises `ShrinkError` when the small network is not the masked one.
    """
    began = time.monotonic()
    small, plan = shrink(done.masked, done.example_inputs)
    result = check(done.masked, small, done.example_inputs)
    if not result.ok:
        raise ShrinkError(f"{folder}: {result}")
    save(done.masked, folder / "masked.safetensors")
    save(small, folder / "small.safetensors")
    plan.save(folder / "plan.json")
    account = _since_dense(plan, done)
    networks = {"dense": done.dense, "masked": done.masked, "shrunk": small}
    scores = {name: evaluate(network, done.data, done.data.test) for name, network in networks.items()}
    values = {
        "input": list(done.example_inputs.shape[1:]),
        "test": {name: score.to_dict() for name, score in scores.items()},
        "layers": _layers(done.dense, done.masked, small),
        "weights": _weights(done),
        "size": _sizes(networks, folder, done.example_inputs[:1]),
        "check": result.to_dict(),
        "plan": account.to_rows(),
        "shrinking_seconds": round(time.monotonic() - began, 2),
        **{key: read_json(folder / "environment.json")[key] for key in ("command", "seed", "threads")},
    }
    write_json(folder / "result.json", values)
    return _summary(values, account, result, scores)


def _since_dense(plan: Plan, done: Compressed) -> Plan:
    """The account of all channels that the dense network has, some of which may have gone while it trained."""
    before = {group.name: len(group) for group in channel_graph(done.dense, done.example_inputs).groups}
    groups = []
    for group in plan.groups:
        gone = before.get(group.name, group.channels) - group.channels
        groups.append(replace(group, channels=group.channels + gone, removed=group.removed + gone))
    return replace(plan, groups=tuple(groups))


def _layers(dense: nn.Module, masked: nn.Module, small: nn.Module) -> list[dict[str, Any]]:
    """Weights of each layer before Sparse VD and left; inputs that it reads and outputs that it has, once shrunk."""
    rows = []
    for name, module in dense.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() > 1:
            kept = int(masked.get_submodule(name).get_parameter("weight").count_nonzero())
            left, out = small.get_submodule(name)._parameters["weight"], output_dim(module)
            assert left is not None  # layers are never removed, only channels
            read = [dim for dim in range(left.dim()) if dim != 1 - out]
            rows.append({"name": name, "shape": list(weight.shape), "weights": weight.numel(), "kept": kept,
                         "sparsity": 1 - kept / weight.numel(),
                         "inputs": int((left != 0).any(read).sum()), "outputs": left.shape[out]})  # fmt: skip
    return rows


def _weights(done: Compressed) -> dict[str, float]:
    kept, total = count_weights(done.masked, done.masks)[0], count_weights(done.dense, {})[1]
    return {"total": total, "kept": kept, "compression": total / max(kept, 1)}


def _sizes(networks: dict[str, nn.Module], folder: Path, example: Tensor) -> dict[str, dict[str, float]]:
    times = measure_latencies(networks, example)
    files = {"dense": "dense", "masked": "masked", "shrunk": "small"}
    return {
        name: {
            "parameters": count_parameters(network), "macs": count_macs(network, example),
            "file_bytes": (folder / f"{files[name]}.safetensors").stat().st_size, "latency_ms": times[name],
        }
        for name, network in networks.items()
    }  # fmt: skip


def _summary(values: dict[str, Any], plan: Plan, result: CheckResult, scores: dict[str, Score]) -> str:
    size, weights = values["size"], values["weights"]
    lines = [f"check: {result}", f"channels removed: {plan.removed}"]
    lines.append(f"weights: {weights['total']:,} -> {weights['kept']:,}, {weights['compression']:.1f} times fewer")
    for name, row in size.items():
        error = 100 * (1 - scores[name].accuracy)
        lines.append(
            f"{name:7} test error {error:5.2f} %  {row['parameters']:>12,} parameters  {row['macs']:>14,} MACs  "
            f"{row['file_bytes']:>12,} bytes  {row['latency_ms']:8.3f} ms"
        )
    return "\n".join(lines)


def export_run(folder: Path, path: Path, *, dynamic_batch: bool = True) -> Comparison:
    """Export the small network of a run folder to `path`; the comparison goes to exports.json there, and the report.

    Raises what `export` raises, and `FileFormatError` where the run has not ended.
    """
    shape = read_json(folder / "result.json")["input"]
    found = export(load(folder / "small.safetensors"), path, torch.zeros(1, *shape), dynamic_batch=dynamic_batch)
    exports = folder / "exports.json"
    rows = read_json(exports) if exports.exists() else {}
    write_json(exports, {**rows, path.name: found.to_dict()})
    write_report(folder)
    return found


def check_run(folder: Path) -> CheckResult:
    """Load the masked and the small network of a run folder and compare them."""
    for name in ("result.json", "masked.safetensors", "small.safetensors"):
        if not (folder / name).exists():
            raise FileFormatError(f"{folder}: has no {name}; is it the folder of a finished run?")
    shape = read_json(folder / "result.json")["input"]
    return check(load(folder / "masked.safetensors"), load(folder / "small.safetensors"), torch.zeros(2, *shape))
