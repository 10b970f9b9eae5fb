"""Latency before and after, for ten families with half of their channels: `python examples/zoo_latency.py OUT.json`.

Every second channel of every removable group goes ("half" of `nni-sparsevd zoo`; layer norms may remember).  PyTorch
eager, torch.compile and ONNX Runtime, float32, batch 1, one thread.  Each runtime runs the whole and the small network
in turns; medians.  Needs the extra `export`.
"""

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.files import write_json
from nni_sparsevd.report import macs, parameters
from nni_sparsevd.shrink import randomise_
from nni_sparsevd.training.environment import environment
from nni_sparsevd.zoo.trial import killing

ROUNDS = 30
NETWORKS = {
    "resnet18": 224,
    "vgg11_bn": 224,
    "mobilenetv2_100": 224,
    "efficientnet_b0": 224,
    "densenet121": 224,
    "regnetx_004": 224,
    "convnext_atto": 224,
    "deit_tiny_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "levit_128s": 224,
}
Run = Callable[[], Any]


def eager(model: nn.Module, x: torch.Tensor) -> Run:
    return lambda: model(x)


def compiled(model: nn.Module, x: torch.Tensor) -> Run:
    fast = torch.compile(model)
    fast(x)
    return lambda: fast(x)


def onnx(model: nn.Module, x: torch.Tensor) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (x,), path, dynamo=True, external_data=False, verbose=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: x.numpy()}
    with torch.no_grad():
        difference = np.abs(session.run(None, given)[0] - model(x).numpy()).max()
    assert difference < 1e-3 * np.abs(model(x).detach().numpy()).max(), f"ONNX Runtime differs by {difference}"
    return lambda: session.run(None, given)


RUNTIMES: dict[str, Callable[[nn.Module, torch.Tensor], Run]] = {
    "eager": eager,
    "compile": compiled,
    "onnxruntime": onnx,
}


def medians(runs: dict[str, Run]) -> dict[str, float]:
    """Milliseconds of each, run in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(name: str, size: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = randomise_(timm.create_model(name)).eval()
    x = torch.randn(1, 3, size, size)
    masks, _ = killing(model, svd.channel_graph(model, x, remember_norms=True), "half", 0)
    small, plan = svd.shrink(model, x, masks, remember_norms=True)
    small.eval()
    row: dict[str, Any] = {"network": name, "input": size, "removed": plan.removed}
    row |= {"parameters": [parameters(model), parameters(small)], "macs": [macs(model, x), macs(small, x)]}
    for runtime, make in RUNTIMES.items():
        torch.compiler.reset()
        try:
            before, after = make(model, x), make(small, x)
        except Exception as error:  # a runtime that cannot take a network is a result
            row[runtime] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            continue
        found = medians({"whole": before, "small": after})
        row[runtime] = found | {"faster": found["whole"] / found["small"]}
    return row


def main(path: Path) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    results = []
    for name, size in NETWORKS.items():
        results.append(measure(name, size))
        print(results[-1], flush=True)
        write_json(path, {"environment": environment(sys.argv, 0), "results": results})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
