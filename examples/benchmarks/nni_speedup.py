"""The masked network beside the sped-up one, by NNI's ModelSpeedup and by ExactSpeedup.

Run: `python examples/benchmarks/nni_speedup.py OUT.json`

L1NormPruner masks half of the output channels, with NNI's own dependency groups; norms, biases and layer scales are
random.  The ways take turns, on one thread; median processor time, without that of finding the dependencies.
"""

import copy
import logging
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from nni.compression.pruning import L1NormPruner
from nni.compression.speedup import ModelSpeedup
from nni.compression.utils import auto_set_denpendency_group_ids
from torch import nn

from nni_sparsevd import models
from nni_sparsevd.files import write_json
from nni_sparsevd.masks import apply_masks_
from nni_sparsevd.measure import count_macs, count_parameters
from nni_sparsevd.plugins.nni import ExactSpeedup, enable
from nni_sparsevd.plugins.nni.exact import parameter_masks
from nni_sparsevd.testing import randomize_
from nni_sparsevd.training.environment import describe_environment

ROUNDS = 3
CONVOLUTIONS = {"op_types": ["Conv2d"]}
FC1 = {"op_names_re": [r"blocks\.\d+\.mlp\.fc1"]}
NETWORKS: list[tuple[str, dict[str, Any], tuple[int, ...], dict[str, Any]]] = [  # name, arguments, input, entry
    ("lenet_300_100", {}, (1, 28, 28), {"op_names": ["fc1", "fc2"]}),
    ("vgg_like", {}, (3, 32, 32), CONVOLUTIONS),
    ("resnet18", {}, (3, 64, 64), CONVOLUTIONS),
    ("resnet18", {}, (3, 224, 224), CONVOLUTIONS),
    ("mobilenetv2_100", {}, (3, 64, 64), CONVOLUTIONS),
    ("efficientnet_b0", {}, (3, 64, 64), CONVOLUTIONS),
    ("deit_tiny_patch16_224", {"img_size": 64}, (3, 64, 64), FC1),
    ("deit_tiny_patch16_224", {}, (3, 224, 224), FC1),
]
WAYS = {"ModelSpeedup": {}, "ExactSpeedup": {}, "ExactSpeedup, silence": {"extend_masks": True}}


def difference(left: nn.Module, right: nn.Module, shape: tuple[int, ...]) -> float:
    """Largest difference over the largest output, on random images, in float32."""
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = left.eval()(x), right.eval()(x)
    return float((expected - found).abs().max() / expected.abs().max())


def measure(name: str, arguments: dict[str, Any], shape: tuple[int, ...], entry: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = randomize_(models.build_model(name, {"num_classes": 10, **arguments})).eval()
    x = torch.randn(2, *shape)
    entries = auto_set_denpendency_group_ids(model, [{**entry, "sparse_ratio": 0.5}], x)
    pruner = L1NormPruner(model, entries)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    masked = copy.deepcopy(model)
    apply_masks_(masked, parameter_masks(masks))
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    small: dict[str, nn.Module] = {}
    checks: dict[str, dict[str, object] | None] = {}
    for _ in range(ROUNDS):
        for way, options in WAYS.items():
            kind = ModelSpeedup if way == "ModelSpeedup" else ExactSpeedup
            fresh, given = copy.deepcopy(model), copy.deepcopy(masks)  # NNI changes both
            began = time.process_time()
            speedup = kind(fresh, x, given, **options)
            small[way] = speedup.speedup_model()
            seconds[way].append(time.process_time() - began)
            checks[way] = None if kind is ModelSpeedup else speedup.check.to_dict()
    return {
        "network": name,
        "input": list(shape),
        "parameters": count_parameters(model),
        "macs": count_macs(model, x[:1]),
        "ways": {
            way: {
                "difference": difference(masked, network, shape),
                "check": checks[way],
                "parameters": count_parameters(network),
                "macs": count_macs(network, x[:1]),
                "seconds": statistics.median(seconds[way]),
            }
            for way, network in small.items()
        },
    }


def main(path: Path) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    enable()  # ModelSpeedup needs the repairs on today's PyTorch
    results = [measure(*chosen) for chosen in NETWORKS]
    write_json(
        path,
        {"environment": describe_environment(["examples/benchmarks/nni_speedup.py", str(path)], 0), "results": results},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
