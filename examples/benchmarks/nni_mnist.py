"""LeNet-300-100 on MNIST through NNI.

Run: `python examples/benchmarks/nni_mnist.py OUT.json [--data DATA]`

Five dense epochs, then twenty of Sparse VD that decides by itself; about four minutes on one core.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nni
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from nni.compression import TorchEvaluator
from torch import Tensor, nn

from nni_sparsevd import data, models
from nni_sparsevd.files import write_json
from nni_sparsevd.plugins.nni import SparseVDPruner, SparseVDSettings
from nni_sparsevd.recipe import DataSettings
from nni_sparsevd.training import evaluate
from nni_sparsevd.training.environment import describe_environment

BATCH = 100
Batch = tuple[Tensor, Tensor]


def batches(images: Tensor, labels: Tensor) -> Iterator[Batch]:
    for rows in torch.randperm(len(labels)).split(BATCH):
        yield images[rows], labels[rows]


def training_step(batch: Batch, model: nn.Module) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def error_percent(model: nn.Module, sets: data.DataSets) -> float:
    return evaluate(model, sets, sets.test).to_dict()["error_percent"]


def run(folder: Path, threshold: float, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    sets = data.load_data(DataSettings(name="torch/mnist", train=folder))
    training = sets.normalize(sets.train.images), sets.train.labels

    def train(
        model: nn.Module, optimizer: Any, step: Any, scheduler: Any = None, max_steps: int = 0, epochs: Any = None
    ):
        done = 0
        while done < max_steps:
            for batch in batches(*training):
                for group in optimizer.param_groups:
                    group["lr"] = 1e-3 * (1 - done / max_steps)
                model.train()
                optimizer.zero_grad()
                step(batch, model).backward()
                optimizer.step()
                done += 1
                if done == max_steps:
                    return

    epoch = -(-len(training[1]) // BATCH)
    model = models.build_model("lenet_300_100", {})
    train(model, torch.optim.Adam(model.parameters()), training_step, max_steps=5 * epoch)
    dense, began = error_percent(model, sets), time.monotonic()

    evaluator = TorchEvaluator(train, nni.trace(torch.optim.Adam)(model.parameters()), training_step)
    settings = SparseVDSettings(n_train=len(training[1]), posterior={"estimator": "weight", "threshold": threshold})
    pruner = SparseVDPruner(model, [{"op_types": ["Linear"]}], evaluator, 20 * epoch, settings=settings)
    _, masks = pruner.compress()
    weights = [targets["weight"] for targets in masks.values()]
    return {
        "threshold": threshold,
        "dense_error_percent": dense,
        "error_percent": error_percent(model, sets),
        "weights": sum(mask.numel() for mask in weights),
        "kept": int(sum(mask.sum() for mask in weights)),
        "seconds": time.monotonic() - began,
    }


def main(out: Path, data: Path = Path("data"), seed: int = 0) -> None:
    """Run with the paper's threshold, and with 1.

    Args:
        out: where the results go, as JSON
        data: a folder that holds MNIST/raw
        seed: of the weights, the noise and the order of the data
    """
    torch.set_num_threads(1)
    results = [run(data, threshold, seed) for threshold in (3.0, 1.0)]
    write_json(
        out,
        {"environment": describe_environment(["examples/benchmarks/nni_mnist.py", str(out)], seed), "results": results},
    )


if __name__ == "__main__":
    auto_cli(main)
