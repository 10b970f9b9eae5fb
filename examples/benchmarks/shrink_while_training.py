"""What shrinking during training saves.

Run: `python examples/benchmarks/shrink_while_training.py OUT.json DATA`

A ResNet-18 of a quarter of the width on CIFAR-10, whole channels, from scratch: dense; with gates, cut at the end; with
gates, and `shrink_` after every epoch, of what is above the threshold or of what is far above it.  The same images in
the same order, the same number of steps; processor seconds of the steps and of the shrinking, on one thread.
"""

import sys
import time
from pathlib import Path

import torch
from jsonargparse import auto_cli

import nni_sparsevd as svd
from nni_sparsevd import data as datasets
from nni_sparsevd import models
from nni_sparsevd.files import write_json
from nni_sparsevd.measure import count_macs, count_parameters
from nni_sparsevd.recipe import DataSettings, ModelSettings, SparseStage
from nni_sparsevd.settings import PosteriorSettings
from nni_sparsevd.studies.bench import read_league
from nni_sparsevd.studies.bench.arena import Arena, cross_entropy
from nni_sparsevd.studies.bench.league import League
from nni_sparsevd.training import (
    build_optimizer,
    derive_seed,
    kl_coefficient_at,
    learning_rate_at,
    set_learning_rate,
)
from nni_sparsevd.training.environment import describe_environment

THRESHOLD = PosteriorSettings().threshold
LATER = 6.0
"""Log alpha from which a channel is taken for dead for good; some of those just above the threshold come back."""
WAYS = {"dense": None, "gates": None, "gates, shrinking": THRESHOLD, f"gates, shrinking from log α {LATER:g}": LATER}
"""Way -> log alpha from which a channel goes while the network trains."""
NETWORK = ModelSettings(name="resnet18_small", arguments={"channels": [16, 32, 64, 128]})


def trained(way: str, data: datasets.DataSets, played: League, stage: SparseStage, seed: int) -> dict[str, object]:
    """Train from scratch one way; what it cost, epoch by epoch, and what came of it."""
    torch.manual_seed(seed)
    model = models.create_model(played.model, data.num_classes, data.in_chans, data.image_size)
    ground = Arena(played, seed, data, model)
    example, dense_macs = ground.example, ground.dense_macs
    if way != "dense":
        svd.sparsify_(model, example_inputs=example, granularity="gate", init_log_sigma2=-6.0)
    optim = build_optimizer(model, stage)
    total, spent, epochs, small = stage.epochs * ground.per_epoch, 0.0, [], model
    for step in range(total):
        began = time.process_time()
        batch = ground.batch(step)
        torch.manual_seed(derive_seed(seed, "noise", step))
        model.train()
        loss = cross_entropy(batch, model)
        set_learning_rate(optim, learning_rate_at(stage, step / total))
        optim.zero_grad()
        loss.backward()
        if way != "dense":
            svd.regularize_(model, kl_coefficient_at(stage, step / ground.per_epoch) / len(data.train))
        optim.step()
        ends = (step + 1) % ground.per_epoch == 0
        if ends and WAYS[way] is not None:
            svd.shrink_(model, example, optim, threshold=WAYS[way])
        spent += time.process_time() - began
        if ends:
            small, _ = svd.shrink(model, example)
            epochs.append({"seconds": round(spent, 2), "macs": count_macs(small, example[:1])})
    return {
        "way": way,
        "seed": seed,
        "error": 100 * (1 - ground.score_test(small).accuracy),
        "dense_macs": dense_macs,
        "macs": epochs[-1]["macs"],
        "parameters": count_parameters(small),
        "seconds": round(spent, 2),
        "epochs": epochs,
    }


def main(
    out: Path, data: Path, images: int = 5000, epochs: int = 30, kl_coefficient: float = 1.0, seeds: int = 3
) -> None:
    """Train dense, with gates, and with gates that shrink on the way, early or late.

    Args:
        out: where the results go, as JSON.
        data: the folder that holds cifar10/train.tar and cifar10/test.tar.
        images: how many of the training images.
        epochs: of each training.
        kl_coefficient: weight of the KL in units of 1/N; it warms up over the first third.
        seeds: how many.
    """
    torch.set_num_threads(1)
    settings = DataSettings(
        name="", train="cifar10/train.tar", test="cifar10/test.tar", limit=images, augment="crop_flip", batch_size=50
    ).resolve_paths(data)
    stage = SparseStage(
        epochs=epochs, learning_rate=3e-3, hold=0.5, kl_coefficient=kl_coefficient, warmup_to=epochs / 3, gate_rate=10.0
    )
    played = read_league("cifar10_channels").model_copy(update={"model": NETWORK, "data": settings})
    rows = []
    for seed in range(seeds):
        sets = datasets.load_data(settings, 32, seed)
        for way in WAYS:
            rows.append(trained(way, sets, played, stage, seed))
            print({key: value for key, value in rows[-1].items() if key != "epochs"}, flush=True)
            write_json(out, {"environment": describe_environment(sys.argv, 0), "results": rows})


if __name__ == "__main__":
    auto_cli(main)
