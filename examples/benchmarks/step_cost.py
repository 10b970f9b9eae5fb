"""What a training step with Sparse VD costs beside a dense one, in time and memory.

Run: `python examples/benchmarks/step_cost.py OUT.json`

All ways to train a network take turns in one process, in random order, on one thread; processor time, medians, ratios
to dense.  A step is forward, loss, backward, KL and fused Adam.  Memory is what parameters and Adam hold, and the most
that a step allocates on top.  cplxmodule and pytorch_ard take part where they are installed (see peers.py).
"""

import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from peers import LIBRARIES, Kl, installed
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import nni_sparsevd as svd
from nni_sparsevd import models
from nni_sparsevd.files import write_json
from nni_sparsevd.posterior.divergence import add_kl_gradient_
from nni_sparsevd.training.environment import describe_environment

NETWORKS = {  # name -> (network, input shape of a batch, channels last, rounds)
    "lenet_300_100, batch 100": ("lenet_300_100", (100, 1, 28, 28), False, 200),
    "lenet5_caffe, batch 100": ("lenet5_caffe", (100, 1, 28, 28), False, 60),
    "resnet18_small (32 pixels), batch 16": ("resnet18_small", (16, 3, 32, 32), False, 9),
    "channels last, batch 16": ("resnet18_small", (16, 3, 32, 32), True, 9),
    "channels last, batch 128": ("resnet18_small", (128, 3, 32, 32), True, 5),
}
WEIGHT = 1 / 50_000
After = Callable[[], object]
OURS: dict[str, dict[str, str]] = {
    "local": {"estimator": "local"},
    "local_bf16": {"estimator": "local_bf16"},
    "local_detached": {"estimator": "local_detached"},
    "one sample": {"estimator": "weight"},
    "local, σ² a channel": {"estimator": "local", "variance": "channel"},
    "one sample, σ² a channel": {"estimator": "weight", "variance": "channel"},
    "gates": {"granularity": "gate"},
}


ALONE = "KL alone"
"""A dense network that also has log sigma^2, its KL's gradient and Adam's moments, but no noise."""


def enter(way: str, model: nn.Module, images: Tensor) -> tuple[nn.Module, Kl | None, After]:
    """A dense network with the posteriors of one way to train; what it adds to the loss, and what after backward."""
    if way == "dense":
        return model, None, lambda: None
    if way in LIBRARIES:
        library = LIBRARIES[way]()
        return library.convert(model).train(), library.kl, lambda: None
    if way == ALONE:
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        noises = [nn.Parameter(torch.full_like(layer.weight, -10.0)) for layer in layers]
        for layer, noise in zip(layers, noises, strict=True):
            layer.register_parameter("log_sigma2", noise)
        pairs = [(layer.weight, noise) for layer, noise in zip(layers, noises, strict=True)]
        return model, None, lambda: [add_kl_gradient_(*pair, WEIGHT) for pair in pairs]
    model = svd.sparsify_(model, example_inputs=images[:2], **OURS[way])
    return model, None, lambda: svd.regularize_(model, WEIGHT)


def stepper(model: nn.Module, kl: Kl | None, after: After, images: Tensor) -> Callable[[], int]:
    """One training step; it returns the bytes that parameters and Adam hold."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    labels = torch.randint(10, (len(images),))

    def step() -> int:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        if kl is not None:
            loss = loss + WEIGHT * kl(model)
        loss.backward()
        after()
        optimizer.step()
        kept = [value for state in optimizer.state.values() for value in state.values()]
        return sum(tensor.nbytes for tensor in [*model.parameters(), *kept])

    return step


def peak(step: Callable[[], int]) -> int:
    """Bytes that parameters and Adam hold, and the most that a step allocates on top."""
    held = step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        highest = max(highest, allocated)
    return held + highest


def measure(name: str, shape: tuple[int, ...], channels_last: bool, rounds: int) -> dict[str, dict[str, float]]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.randn(shape).to(memory_format=layout)
    ways = ["dense", *OURS, ALONE, *installed()[1:]]
    steps = {}
    for way in ways:
        torch.manual_seed(0)
        steps[way] = stepper(*enter(way, models.build_model(name, {}).train(), images), images)
    memory = {way: peak(step) for way, step in steps.items()}
    times: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(rounds):
        for way in random.sample(ways, len(ways)):  # whatever the one before has left in the caches
            began = time.process_time()
            steps[way]()
            times[way].append(time.process_time() - began)
    medians = {way: statistics.median(values) for way, values in times.items()}
    return {
        way: {
            "milliseconds": 1e3 * median,
            "ratio": median / medians["dense"],
            "mebibytes": memory[way] / 2**20,
            "memory": memory[way] / memory["dense"],
        }
        for way, median in medians.items()
    }


def main(out: Path) -> None:
    """Measure all networks.

    Args:
        out: where the results go, as JSON.
    """
    torch.set_num_threads(1)
    results = {}
    for label, row in NETWORKS.items():
        results[label] = measure(*row)
        write_json(out, {"results": results, "environment": describe_environment(sys.argv, 0)})
        print(label)
        for way, found in results[label].items():
            print(f"  {way:26} {found['milliseconds']:9.2f} ms {found['ratio']:6.2f}x   memory {found['memory']:5.2f}x")


if __name__ == "__main__":
    auto_cli(main)
