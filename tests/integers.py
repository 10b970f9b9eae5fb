"""How ONNX Runtime computes a file of integers, on any processor."""

from pathlib import Path

import torch
from torch import Tensor

import nni_sparsevd as svd


def run_integers(path: Path, images: Tensor) -> Tensor:
    """The outputs of a file of integers, by the kernels of integers where these are exact.

    Without VNNI, they add pairs of products of bytes in 16 bits, where they saturate (docs/export.md).  There the file
    is run as it is written: integers are made floats again before they are multiplied.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        outputs: Tensor = svd.load(path)(images)
        return outputs
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
