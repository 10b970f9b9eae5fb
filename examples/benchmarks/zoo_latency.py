"""Latency before and after, for ten families with half of their channels.

Run: `python examples/benchmarks/zoo_latency.py OUT.json`

Every second channel of every removable group goes ("half" of `nni-sparsevd zoo`; layer norms may remember).  PyTorch
eager, torch.compile, ONNX Runtime, ExecuTorch and, where it is installed, LiteRT, float32, batch 1, one thread.  Each
runtime runs the whole and the small network in turns; medians.  Needs the extras `export` and `mobile`.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from executorch.extension.pybindings._C import _unsafe_reset_threadpool  # the only way to choose the threads
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.errors import summarize_error
from nni_sparsevd.export import FORMATS, export
from nni_sparsevd.files import write_json
from nni_sparsevd.measure import count_macs, count_parameters, measure_latencies
from nni_sparsevd.studies.zoo.trials import mask_channels
from nni_sparsevd.testing import randomize_
from nni_sparsevd.training.environment import describe_environment

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


def eager(model: nn.Module, x: torch.Tensor) -> nn.Module:
    return model


def compiled(model: nn.Module, x: torch.Tensor) -> nn.Module:
    fast: nn.Module = torch.compile(model)  # type: ignore[assignment]
    return fast


def exported(suffix: str) -> Callable[[nn.Module, torch.Tensor], nn.Module]:
    def make(model: nn.Module, x: torch.Tensor) -> nn.Module:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model{suffix}"
            export(model, path, x, dynamic_batch=False)
            return svd.load(path)

    return make


RUNTIMES: dict[str, Callable[[nn.Module, torch.Tensor], nn.Module]] = {
    "eager": eager,
    "compile": compiled,
    "onnxruntime": exported(".onnx"),
    "executorch": exported(".pte"),
}
if not FORMATS[".tflite"].missing:  # it brings JAX, so not everywhere
    RUNTIMES["litert"] = exported(".tflite")


def measure(name: str, size: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = randomize_(timm.create_model(name)).eval()
    x = torch.randn(1, 3, size, size)
    masks, _ = mask_channels(model, svd.channel_graph(model, x, remember_norms=True), "half", 0)
    small, plan = svd.shrink(model, x, masks, remember_norms=True)
    small.eval()
    row: dict[str, Any] = {"network": name, "input": size, "removed": plan.removed}
    row |= {
        "parameters": [count_parameters(model), count_parameters(small)],
        "macs": [count_macs(model, x), count_macs(small, x)],
    }
    for runtime, make in RUNTIMES.items():
        torch.compiler.reset()
        try:
            found = measure_latencies({"whole": make(model, x), "small": make(small, x)}, x)
        except Exception as error:  # a runtime that cannot take a network is a result
            row[runtime] = {"error": summarize_error(error)}
            continue
        row[runtime] = found | {"faster": found["whole"] / found["small"]}
    return row


def main(path: Path) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    _unsafe_reset_threadpool(1)
    results = []
    for name, size in NETWORKS.items():
        results.append(measure(name, size))
        print(results[-1], flush=True)
        write_json(path, {"environment": describe_environment(sys.argv, 0), "results": results})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
