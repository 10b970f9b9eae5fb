"""What a training step with Sparse VD costs beside a dense one: `python examples/step_cost.py OUT.json`.

All variants of a network take turns in one process, on one thread; processor time, medians, ratios to dense.  A step
is forward, loss, KL, backward and fused Adam.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd import models
from nni_sparsevd.training.environment import environment

NETWORKS = {  # name -> (network, input shape of a batch, rounds)
    "lenet_300_100, batch 100": ("lenet_300_100", (100, 1, 28, 28), 60),
    "lenet5_caffe, batch 100": ("lenet5_caffe", (100, 1, 28, 28), 20),
    "resnet18_small (32 pixels), batch 16": ("resnet18_small", (16, 3, 32, 32), 7),
}
VARIANTS: dict[str, dict[str, str] | None] = {
    "dense": None,
    "weights, local": {"estimator": "local"},
    "weights, local_bf16": {"estimator": "local_bf16"},
    "weights, local_detached": {"estimator": "local_detached"},
    "weights, one sample": {"estimator": "weight"},
    "gates": {"granularity": "gate"},
}


def stepper(name: str, images: Tensor, settings: dict[str, str] | None) -> Callable[[], None]:
    torch.manual_seed(0)
    model: nn.Module = models.build(name, {}).train()
    if settings is not None:
        svd.sparsify_(model, example_inputs=images[:2], **settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    labels = torch.randint(10, (len(images),))

    def step() -> None:
        loss = F.cross_entropy(model(images), labels)
        if settings is not None:
            loss = loss + svd.kl(model) / 50_000
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure(name: str, shape: tuple[int, ...], rounds: int) -> dict[str, dict[str, float]]:
    images = torch.randn(shape)
    steps = {variant: stepper(name, images, settings) for variant, settings in VARIANTS.items()}
    times: dict[str, list[float]] = {variant: [] for variant in steps}
    for turn in range(rounds + 2):
        for variant, step in steps.items():
            began = time.process_time()
            step()
            if turn >= 2:  # the first two warm up
                times[variant].append(time.process_time() - began)
    medians = {variant: statistics.median(values) for variant, values in times.items()}
    return {
        variant: {"milliseconds": 1e3 * median, "ratio": median / medians["dense"]}
        for variant, median in medians.items()
    }


def main(out: Path) -> None:
    torch.set_num_threads(1)
    results = {label: measure(*row) for label, row in NETWORKS.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"results": results, "environment": environment(sys.argv, 0)}, indent=1) + "\n")
    for label, rows in results.items():
        print(label)
        for variant, row in rows.items():
            print(f"  {variant:24} {row['milliseconds']:9.2f} ms  {row['ratio']:5.2f}x")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
