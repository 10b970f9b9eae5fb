"""Whole channels of LeNet-5-Caffe on MNIST, weighed by their MACs.

Run: `python examples/benchmarks/lenet5_structured.py OUT.json`

A dense network, gates on it, shrunk; gates on the shrunk one under several pressures, each shrunk again and fine-tuned.
The held-out 5,000 of the training images chose all settings; the test images are looked at once a final network.
About 11 minutes of processor time on one core.
"""

import copy
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd import data as datasets
from nni_sparsevd import models
from nni_sparsevd.files import load_tensors, save_tensors, write_json
from nni_sparsevd.measure import count_macs, count_parameters, measure_latencies
from nni_sparsevd.recipe import DataSettings, SparseStage, Stage
from nni_sparsevd.training import build_optimizer, evaluate, learning_rate_at, set_learning_rate
from nni_sparsevd.training.environment import describe_environment

# About in proportion to MACs: a channel of conv1 costs about four of conv2, a neuron of fc1 next to nothing (its factor
# is larger than its share, for the parameters).  At 2 in place of 4, conv1 keeps a channel more.
KL_WEIGHTS = {"conv1": 4.0, "conv2": 1.0, "fc1": 0.25}
DENSE = Stage(epochs=8, learning_rate=2e-3, hold=0.3)
FIRST = SparseStage(epochs=4, learning_rate=1e-3, hold=0.5, kl_coefficient=60)
SECOND = SparseStage(epochs=8, learning_rate=2e-3, hold=0.5)
PRESSURES = (40, 60, 90, 120)
"""KL coefficients of the second round: a channel is worth a few nats, so at 1 hardly any would go in a few epochs."""
FINETUNE = Stage(epochs=30, learning_rate=2e-3, hold=0.2)
THRESHOLD = 0.0
"""Noise as strong as the signal: fine-tuning mends what that costs."""
SHIFT, FINETUNE_SHIFT = 1, 2
"""Pixels that training images move, at most.  The 3 that augment="crop" has by itself are more than so few channels
can learn; fine-tuning overfits at 1."""
BATCH = 100


def train_(model: nn.Module, stage: Stage, data: datasets.DataSets, seed: int, name: str) -> nn.Module:
    """Train through one stage, with the KL where `model` has gates."""
    model.to(memory_format=torch.channels_last)  # a third less time than torch's own order
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    optim = build_optimizer(model, stage)
    crops = DataSettings(augment="crop", margin=FINETUNE_SHIFT if stage is FINETUNE else SHIFT)
    count = len(data.train)
    steps = count // BATCH
    for epoch in range(stage.epochs):
        model.train()
        for place, rows in enumerate(torch.randperm(count, generator=generator)[: steps * BATCH].split(BATCH)):
            images = data.normalize(datasets.augment(data.train.images[rows], crops, generator))
            loss = F.cross_entropy(model(images), data.train.labels[rows])
            if isinstance(stage, SparseStage):
                loss = loss + stage.kl_coefficient / count * svd.kl(model)
            set_learning_rate(optim, learning_rate_at(stage, (epoch + place / steps) / stage.epochs))
            optim.zero_grad()
            loss.backward()
            optim.step()
        score = evaluate(model, data, data.holdout)
        print(f"{name} {epoch + 1}/{stage.epochs}: held out {100 - 100 * score.accuracy:.2f} %", flush=True)
    return model.eval()


def slimmed(model: nn.Module, stage: SparseStage, data: datasets.DataSets, seed: int, name: str) -> nn.Module:
    """Gates on a copy of `model`, trained; then without the channels that drowned, physically."""
    example = data.make_example_inputs()
    gated = svd.sparsify_(copy.deepcopy(model), granularity="gate", kl_weights=KL_WEIGHTS, example_inputs=example)
    train_(gated, stage, data, seed, name)
    masks = svd.compute_masks(gated, structure="structured", threshold=THRESHOLD, example_inputs=example)
    small, _ = svd.shrink(gated, example, masks)
    return small


def dense_network(data: datasets.DataSets, folder: Path, seed: int) -> nn.Module:
    """Trained, or read from `folder` where an earlier call with this seed and stage has left it."""
    path = folder / f"dense_{DENSE.epochs}_{seed}.safetensors"
    torch.manual_seed(seed)
    model = models.build_model("lenet5_caffe", {})
    if path.exists():
        model.load_state_dict(load_tensors(path)[0])
        return model.eval()
    train_(model, DENSE, data, seed, "dense")
    save_tensors(model.state_dict(), path)
    return model


def row(model: nn.Module, data: datasets.DataSets, **more: Any) -> dict[str, Any]:
    live = int(model.fc1.weight.detach().any(0).sum())
    return {
        **more,
        "units": [model.conv1.out_channels, model.conv2.out_channels, live, model.fc1.out_features],
        "macs": count_macs(model, data.normalize(data.train.images[:1])),
        "parameters": count_parameters(model),
        "held_out": evaluate(model, data, data.holdout).to_dict(),
        "test": evaluate(model, data, data.test).to_dict(),
    }


def main(out: Path, data: Path = Path("data"), folder: Path = Path("runs/structured"), seed: int = 0) -> None:
    """Write the results to `out`; `folder` keeps the dense network for the next call."""
    began = time.process_time()
    torch.set_num_threads(1)
    images = datasets.load_data(DataSettings(name="torch/mnist", train=data, holdout=1 / 12), seed=seed)
    dense = dense_network(images, folder, seed)
    first = slimmed(dense, FIRST, images, seed, "first round")
    networks = {"dense": dense}
    for pressure in PRESSURES:
        name = f"pressure {pressure}"
        stage = SECOND.model_copy(update={"kl_coefficient": float(pressure)})
        small = slimmed(first, stage, images, seed, name)
        networks[name] = train_(small, FINETUNE, images, seed, f"{name}, fine-tuning")
    networks = {name: network.to(memory_format=torch.contiguous_format) for name, network in networks.items()}
    results = [row(network, images, name=name) for name, network in networks.items()]
    for result in results:
        result["fewer_macs"] = results[0]["macs"] / result["macs"]
    for batch in (1, 100):  # one image takes torch longer to call for than to compute
        times = measure_latencies(networks, images.normalize(images.test.images[:batch]), rounds=100)
        for result in results:
            time_of = times[result["name"]]
            result[f"latency_batch_{batch}"] = {"milliseconds": time_of, "faster": times["dense"] / time_of}
    stages = {
        name: stage.model_dump()
        for name, stage in {"dense": DENSE, "first": FIRST, "second": SECOND, "finetune": FINETUNE}.items()
    }
    settings = {**stages, "pressures": PRESSURES, "kl_weights": KL_WEIGHTS, "threshold": THRESHOLD,
                "shift": SHIFT, "finetune_shift": FINETUNE_SHIFT, "batch_size": BATCH,
                "held_out_images": len(images.holdout)}  # fmt: skip
    seconds = time.process_time() - began
    command = ["examples/benchmarks/lenet5_structured.py", str(out), "--seed", str(seed)]
    write_json(
        out,
        {
            "settings": settings,
            "results": results,
            "processor_seconds": seconds,
            "environment": describe_environment(command, seed),
        },
    )


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
