"""Half of the MACs of a timm network on CIFAR-10 (JPEG).

Run: `python examples/benchmarks/cifar10_budget.py OUT.json`

SparseVDPruner with a budget beside two of Torch-Pruning's own: the same dense start, the same epochs before and after
the cut, the same optimizer, the same MACs.  What OUT.json has already is not done again; the start lies beside it.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from jsonargparse import auto_cli
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd import models
from nni_sparsevd.data import DataSets, augment, load_data
from nni_sparsevd.files import read_json, write_json
from nni_sparsevd.measure import count_macs, count_parameters, measure_latencies
from nni_sparsevd.plugins.torch_pruning import Budget, SparseVDPruner, SparseVDSettings
from nni_sparsevd.recipe import DataSettings
from nni_sparsevd.training import evaluate
from nni_sparsevd.training.environment import describe_environment

NAME, BATCH, FRACTION = "resnet10t", 128, 0.5
DENSE, SPARSE, TUNE = 8, 8, 4  # epochs
IMAGE = torch.zeros(2, 3, 32, 32)
CROPS = DataSettings(augment="crop_flip")


def epochs(
    model: nn.Module, data: DataSets, count: int, rate: float, between: Callable[[int], None] = lambda step: None
) -> None:
    """Train; the rate falls linearly to 0; `between` is called between backward and step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    generator = torch.Generator().manual_seed(0)
    steps = count * (len(data.train) // BATCH)
    model.train()
    for step in range(steps):
        if step % (steps // count) == 0:
            order = torch.randperm(len(data.train), generator=generator)
        rows = order[step * BATCH % len(data.train) :][:BATCH]
        images = data.normalize(augment(data.train.images[rows], CROPS, generator))
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        F.cross_entropy(model(images), data.train.labels[rows]).backward()
        between(step)
        optimizer.step()


def error_percent(model: nn.Module, data: DataSets) -> float:
    return evaluate(model, data, data.test).to_dict()["error_percent"]


def per_epoch(data: DataSets) -> int:
    return len(data.train) // BATCH


def sparse_vd(model: nn.Module, data: DataSets) -> dict[str, Any]:
    # gates alone: the KL of five million weights would outweigh what so few images say
    gates = {"granularity": "gate", "init_log_sigma2": -4.0}
    settings = SparseVDSettings(n_train=len(data.train), kl_coefficient=20.0, learning_rate=2e-3, posterior=gates)
    pruner = SparseVDPruner(
        model,
        IMAGE,
        ignored_layers=[model.get_classifier()],
        settings=settings,
        training_steps=SPARSE * per_epoch(data),
        budget=Budget(fraction=FRACTION),
    )

    def between(step: int) -> None:
        if step % per_epoch(data) == 0:
            pruner.update_regularizer()
        pruner.regularize(model)

    epochs(model, data, SPARSE, 0.02, between)
    pruner.step()
    arrival = pruner.arrival
    assert arrival is not None
    return {
        "off_percent": 100 * arrival.relative_error,
        "log_alpha": arrival.log_alpha,
        "macs_at_threshold": arrival.at_threshold,
    }


def group_norm(model: nn.Module, data: DataSets) -> dict[str, Any]:
    pruner = torch_prunings(tp.pruner.GroupNormPruner, model)
    pruner.update_regularizer()
    epochs(model, data, SPARSE, 0.02, lambda step: pruner.regularize(model))
    return cut_to_budget(model, pruner)


def magnitude(model: nn.Module, data: DataSets) -> dict[str, Any]:
    epochs(model, data, SPARSE, 0.02)
    return cut_to_budget(model, torch_prunings(tp.pruner.BasePruner, model))


def torch_prunings(kind: Any, model: nn.Module) -> Any:
    return kind(
        model,
        IMAGE,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=400,
        ignored_layers=[model.get_classifier()],
    )


def cut_to_budget(model: nn.Module, pruner: Any) -> dict[str, Any]:
    """As Torch-Pruning's own examples do: small steps until the network is as small as asked."""
    dense = count_macs(model, IMAGE[:1])
    while count_macs(model, IMAGE[:1]) > FRACTION * dense:
        pruner.step()
    return {"off_percent": 100 * (count_macs(model, IMAGE[:1]) / (FRACTION * dense) - 1)}


METHODS = {"SparseVDPruner, budget": sparse_vd, "GroupNormPruner": group_norm, "GroupMagnitudeImportance": magnitude}


def start(path: Path, data: DataSets) -> nn.Module:
    if path.exists():
        return svd.load(path)
    torch.manual_seed(0)
    model = models.build_model(NAME, {"num_classes": 10})
    epochs(model, data, DENSE, 0.05)
    svd.save(model, path)
    return model


def main(out: Path, data: Path = Path("data/cifar10"), images: int = 20_000) -> None:
    """Train the dense start and each method in turn.

    Args:
        out: where the results go, as JSON
        data: a folder with train.tar and test.tar
        images: training images that are used
    """
    torch.set_num_threads(1)
    sets = load_data(DataSettings(name="", train=data / "train.tar", test=data / "test.tar", limit=images))
    results = (
        read_json(out)
        if out.exists()
        else {"environment": describe_environment(["examples/benchmarks/cifar10_budget.py", str(out)], 0)}
    )
    results["setting"] = {"network": NAME, "images": len(sets.train), "epochs": [DENSE, SPARSE, TUNE], "batch": BATCH}
    dense = start(out.with_suffix(".safetensors"), sets)
    example = torch.zeros(1, 3, 32, 32)
    for name, method in {"dense": None, **METHODS}.items():
        if name in results:
            continue
        torch.manual_seed(0)
        model, began = start(out.with_suffix(".safetensors"), sets), time.monotonic()
        found = {} if method is None else method(model, sets)
        if method is not None:
            found["error_after_cut"] = error_percent(model, sets)
            epochs(model, sets, TUNE, 0.01)
        seconds = time.monotonic() - began
        times = measure_latencies({"dense": dense, "small": model}, example)
        results[name] = {
            **found, "error_percent": error_percent(model, sets), "macs": count_macs(model, example),
            "parameters": count_parameters(model), "latency_ratio": times["dense"] / times["small"], "seconds": seconds,
        }  # fmt: skip
        write_json(out, results)
        print(name, {key: round(value, 3) for key, value in results[name].items() if math.isfinite(value)}, flush=True)


if __name__ == "__main__":
    auto_cli(main)
