"""Where a sparse kernel beats a dense one on this processor.

Run: `python examples/benchmarks/sparse_kernels.py OUT.json`
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nni_sparsevd.export import to_sparse_inference_
from nni_sparsevd.files import write_json
from nni_sparsevd.training.environment import describe_environment

ZEROS = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear 784 → 300": (nn.Linear(784, 300), (784,)),
    "linear 1024 → 1024": (nn.Linear(1024, 1024), (1024,)),
    "linear 4096 → 4096": (nn.Linear(4096, 4096), (4096,)),
    "1×1 convolution 256 → 256 at 14×14": (nn.Conv2d(256, 256, 1), (256, 14, 14)),
}


def measure(name: str, batch: int) -> dict[str, Any]:
    layer, shape = LAYERS[name]
    x = torch.randn(batch, *shape)
    faster = {}
    for zeros in ZEROS:
        model = nn.Sequential(type(layer)(*_sizes(layer)))
        with torch.no_grad():
            model[0].weight.mul_(torch.rand_like(model[0].weight) >= zeros)
        faster[f"{100 * zeros:g} %"] = to_sparse_inference_(model, x)[0].faster
    return {"layer": name, "batch": batch, "faster": faster}


def _sizes(layer: nn.Module) -> tuple[int, ...]:
    return (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else (256, 256, 1)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = [measure(name, batch) for name in LAYERS for batch in (1, 64)]
    write_json(
        out,
        {
            "environment": describe_environment(["examples/benchmarks/sparse_kernels.py", str(out)], 0),
            "results": results,
        },
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
