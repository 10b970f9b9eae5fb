"""What a processor budget buys on LeNet-300-100, here and in two public implementations of Sparse VD.

Run: `python examples/benchmarks/time_to_result.py OUT.json --libraries '[nni_sparsevd, cplxmodule, pytorch_ard]'`
The other two need `pip install cplxmodule==2022.6 pytorch-ard==0.2.4` first.

One loop for all: five dense epochs, then the variational
layers of the library with Adam and a rate that falls to 0 as the budget runs out, so a cheaper step means more of them.
Each library's layers, KL and masks are used as it documents them; the threshold is chosen on held-out images alike.
"""

import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from peers import LIBRARIES, Kl
from torch import Tensor, nn

from nni_sparsevd import data as datasets
from nni_sparsevd import models
from nni_sparsevd.files import write_json
from nni_sparsevd.recipe import DataSettings
from nni_sparsevd.training import evaluate
from nni_sparsevd.training.environment import describe_environment

BATCH, RATE = 100, 2e-3
TOLERANCE = 0.002
THRESHOLDS = [step / 2 for step in range(9)]


def train_(
    model: nn.Module, data: datasets.DataSets, seed: int, kl: Kl | None = None, *, budget: float = 0.0, epochs: int = 0
) -> int:
    """Train for `budget` processor seconds or, if given, `epochs`; returns the steps."""
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    count, began, step = len(data.train), time.process_time(), 0
    per_epoch = count // BATCH
    while True:
        order = torch.randperm(count)
        for rows in order[: per_epoch * BATCH].split(BATCH):
            done = step / (epochs * per_epoch) if epochs else (time.process_time() - began) / budget
            if done >= 1:
                return step
            optimizer.param_groups[0]["lr"] = RATE * (1 - done)
            logits = model.train()(data.normalize(data.train.images[rows]))
            loss = F.cross_entropy(logits, data.train.labels[rows])
            if kl is not None:
                loss = loss + kl(model) / count
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1


def cut(plain: nn.Module, model: nn.Module, log_alpha: dict[str, Tensor], threshold: float) -> tuple[nn.Module, float]:
    """The ordinary network without the weights whose log alpha reaches the threshold, and how many times fewer."""
    means = {name: value for name, value in model.state_dict().items() if name in plain.state_dict()}
    plain.load_state_dict(means)
    kept = total = 0
    for name, values in log_alpha.items():
        weight = plain.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.data[values >= threshold] = 0
        kept, total = kept + int(weight.count_nonzero()), total + weight.numel()
    return plain, total / max(kept, 1)


def row(name: str, budget: float, data: datasets.DataSets, seed: int) -> dict[str, Any]:
    library = LIBRARIES[name]()
    torch.manual_seed(seed)
    plain = models.build_model("lenet_300_100", {})
    train_(plain, data, seed, epochs=5)
    model = models.build_model("lenet_300_100", {})
    model.load_state_dict(plain.state_dict())
    library.convert(model)
    steps = train_(model, data, seed, library.kl, budget=budget)
    with torch.no_grad():
        log_alpha = library.log_alpha(model)
        curve = []
        for threshold in THRESHOLDS:
            network, fewer = cut(plain, model, log_alpha, threshold)
            curve.append((evaluate(network, data, data.holdout).accuracy, fewer, threshold))
        best = max(accuracy for accuracy, _, _ in curve)
        accuracy, fewer, threshold = max((point for point in curve if point[0] >= best - TOLERANCE), key=lambda p: p[1])
        error = 100 - 100 * evaluate(cut(plain, model, log_alpha, threshold)[0], data, data.test).accuracy
    found = {"library": name, "budget": budget, "seed": seed, "steps": steps, "error": error, "compression": fewer,
             "threshold": threshold, "held_out_error": 100 - 100 * accuracy}  # fmt: skip
    print(found, flush=True)
    return found


def main(
    out: Path,
    libraries: list[str] = ["nni_sparsevd"],  # noqa: B006
    budgets: list[float] = [120.0, 240.0],  # noqa: B006
    seeds: list[int] = [0],  # noqa: B006
    data: Path = Path("data"),
) -> None:
    """Processor seconds of the sparse stage in `budgets`, one thread; dense epochs come on top, the same for all."""
    torch.set_num_threads(1)
    rows = []
    for seed in seeds:
        images = datasets.load_data(DataSettings(name="torch/mnist", train=data, holdout=1 / 30), seed=seed)
        rows += [row(name, budget, images, seed) for budget in budgets for name in libraries]
    write_json(
        out,
        {
            "results": rows,
            "environment": describe_environment(["examples/benchmarks/time_to_result.py", str(out)], seeds[0]),
        },
    )


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
