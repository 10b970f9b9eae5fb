"""One trial: train LeNet-300-100 dense, sparsify it with the settings that NNI hands out, fine-tune, report.

Runs under NNI, started by `sweep.py`, and without it: `python trial.py` takes the default settings.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nni
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt
from nni.compression import TorchEvaluator
from torch import Tensor, nn

from nni_sparsevd import data
from nni_sparsevd.errors import SparseVDError
from nni_sparsevd.plugins.nni import SparseVDPruner, SparseVDSettings
from nni_sparsevd.recipe import DataSettings
from nni_sparsevd.settings import make_settings

BATCH = 100
Pairs = tuple[Tensor, Tensor]


def settings(parameters: dict[str, Any], **fixed: Any) -> SparseVDSettings:
    """NNI's parameters as Sparse VD's settings: `posterior.estimator` is the key `estimator` of `posterior`."""
    nested: dict[str, Any] = dict(fixed)
    for key, value in parameters.items():
        *groups, name = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    return make_settings(SparseVDSettings, nested)


def score(compression: float, error: float, dense_error: float) -> float:
    """log10 of the compression, less half of what the hold-out error (%) is above the dense one.

    So a percentage point must buy a factor of 10 ** 0.5, about 3; a smaller error buys nothing, as small hold-outs
    are noisy.  The hold-out is scored and not the test set: what chooses must not also judge.
    """
    return math.log10(compression) - 0.5 * max(0.0, error - dense_error)


def read(folder: Path | None) -> tuple[Pairs, Pairs, Pairs]:
    """(inputs, labels) for training, holding out and testing: MNIST from `folder`, else scikit-learn's digits."""
    chosen = DataSettings(holdout=0.2) if folder is None else DataSettings(name="torch/mnist", train=folder)
    sets = data.load_data(chosen)
    train, holdout, test = ((sets.normalize(s.images), s.labels) for s in (sets.train, sets.holdout, sets.test))
    return train, holdout, test


def batches(pairs: Pairs) -> Iterator[Pairs]:
    order = torch.randperm(len(pairs[1]))
    for rows in order.split(BATCH):
        yield pairs[0][rows], pairs[1][rows]


def training_step(batch: Pairs, model: nn.Module) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def train(model: nn.Module, optimizer: Any, step: Callable[..., Tensor], train: Pairs, holdout: Pairs, epochs: int):
    """Ordinary training; NNI hears of the accuracy on the hold-out after every epoch."""
    for _ in range(epochs):
        model.train()
        for batch in batches(train):
            optimizer.zero_grad()
            step(batch, model).backward()
            optimizer.step()
        nni.report_intermediate_result(100 - error_percent(model, holdout))


@torch.no_grad()
def error_percent(model: nn.Module, pairs: Pairs) -> float:
    model.eval()
    return 100 * (model(pairs[0]).argmax(1) != pairs[1]).float().mean().item()


def run(parameters: dict[str, Any], folder: Path | None, epochs: int, seed: int) -> dict[str, Any]:
    """What NNI is told at the end.  The parameters too: NNI may note down those of a concurrent trial."""
    began = time.monotonic()
    torch.set_num_threads(1)
    training, holdout, test = read(folder)
    chosen = settings(parameters, n_train=len(training[1]))
    torch.manual_seed(seed)
    pixels = training[0][0].numel()
    model: nn.Module = nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    train(model, torch.optim.Adam(model.parameters()), training_step, training, holdout, epochs)
    dense_holdout, dense_test = error_percent(model, holdout), error_percent(model, test)

    def training_of_nni(model, optimizer, step, scheduler=None, max_steps=None, max_epochs=None) -> None:
        train(model, optimizer, step, training, holdout, max_epochs)

    evaluator = TorchEvaluator(training_of_nni, nni.trace(torch.optim.Adam)(model.parameters()), training_step)
    steps = 3 * epochs * math.ceil(len(training[1]) / BATCH)
    pruner = SparseVDPruner(model, [{"op_types": ["Linear"]}], evaluator, steps, settings=chosen)
    model, masks = pruner.compress(max_epochs=3 * epochs)
    train(model, torch.optim.Adam(model.parameters(), lr=3e-4), training_step, training, holdout, max(epochs // 2, 1))

    weights = [mask["weight"] for mask in masks.values()]
    total, kept = sum(mask.numel() for mask in weights), int(sum(mask.sum() for mask in weights))
    held = error_percent(model, holdout)
    return {
        "default": score(total / kept, held, dense_holdout),
        "error_percent": error_percent(model, test),
        "dense_error_percent": dense_test,
        "holdout_error_percent": held,
        "dense_holdout_error_percent": dense_holdout,
        "compression": total / kept,
        "kept": kept,
        "seconds": time.monotonic() - began,
        "parameters": parameters,
    }


def main() -> int:
    parser = ArgumentParser(prog="trial.py", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder that holds MNIST/raw; without it, scikit-learn's digits")
    parser.add_argument(
        "--epochs", type=PositiveInt, default=20, help="dense; three times as many sparse, half to tune"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the noise and the order of the data")
    chosen = parser.parse_args()
    try:
        result = run(nni.get_next_parameter(), chosen.data, chosen.epochs, chosen.seed)
    except SparseVDError as error:
        print(f"trial.py: {error}", file=sys.stderr)
        return 1
    nni.report_final_result(result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
