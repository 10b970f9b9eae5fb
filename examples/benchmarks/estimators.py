"""What each estimator of the noise does to error and compression.

Run: `python examples/benchmarks/estimators.py OUT.json DATA`

LeNet-300-100 and LeNet-5-Caffe on part of MNIST, by the recipe of `nni-sparsevd compress`: dense, then full KL, cut at
log alpha 3, no fine-tuning.  Rows that OUT.json has are not trained again.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from jsonargparse import auto_cli
from step_cost import OURS

from nni_sparsevd.files import read_json, write_json
from nni_sparsevd.masks import count_weights
from nni_sparsevd.recipe import DataSettings, ModelSettings, Recipe, SparseStage, Stage
from nni_sparsevd.settings import PosteriorSettings
from nni_sparsevd.training import compress, evaluate
from nni_sparsevd.training.environment import describe_environment

WAYS = {way: PosteriorSettings.model_validate(settings) for way, settings in OURS.items() if "estimator" in settings}
EPOCHS = {"lenet_300_100": (5, 25), "lenet5_caffe": (3, 12)}  # dense, sparse


def trained(network: str, way: str, seed: int, data: DataSettings) -> dict[str, object]:
    """Compress once; test error and how many times fewer weights."""
    dense, sparse = EPOCHS[network]
    recipe = Recipe(
        model=ModelSettings(name=network),
        data=data,
        posterior=WAYS[way],
        seed=seed,
        dense=Stage(epochs=dense, hold=0.5),
        sparse=SparseStage(epochs=sparse, learning_rate=2e-3),
    )
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        done = compress(recipe, Path(folder) / "run", sys.argv)
    kept, total = count_weights(done.masked, done.masks)
    error = 100 * (1 - evaluate(done.masked, done.data, done.data.test).accuracy)
    seconds = round(time.process_time() - began, 1)
    return {
        "network": network,
        "way": way,
        "seed": seed,
        "error": error,
        "compression": total / kept,
        "seconds": seconds,
    }


def main(out: Path, data: Path, images: int = 20_000, seeds: int = 3) -> None:
    """Train every way on both networks.

    Args:
        out: where the results go, as JSON.
        data: the folder that holds MNIST/raw.
        images: how many of the training images.
        seeds: how many.
    """
    torch.set_num_threads(1)
    settings = DataSettings(name="torch/mnist", train=data, limit=images, holdout=0.05)
    rows = read_json(out)["results"] if out.exists() else []
    known = {(row["network"], row["way"], row["seed"]) for row in rows}
    for seed in range(seeds):
        for network in EPOCHS:
            for way in WAYS:
                if (network, way, seed) not in known:
                    rows.append(trained(network, way, seed, settings))
                    print(rows[-1], flush=True)
                    write_json(out, {"environment": describe_environment(sys.argv, 0), "results": rows})


if __name__ == "__main__":
    auto_cli(main)
