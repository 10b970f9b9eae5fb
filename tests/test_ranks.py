"""Several processes: the same posterior on every rank, and the KL counted once."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from processes import SECONDS, run_ranks
from torch import Tensor, nn

from nni_sparsevd.files import load_tensors, save_tensors
from nni_sparsevd.recipe import (
    BudgetSettings,
    DataSettings,
    FinetuneStage,
    ModelSettings,
    QuantizeStage,
    Recipe,
    SparseStage,
    Stage,
    read_recipe,
    write_recipe,
)
from nni_sparsevd.settings import PosteriorSettings
from nni_sparsevd.training import Interrupted, compress, deciding, learner, loop
from nni_sparsevd.training.checkpoint import read_checkpoint
from nni_sparsevd.training.levels import Level
from nni_sparsevd.training.sharding import find_blocks
from nni_sparsevd.training.stage_context import StageContext


def train_rank(folder: Path, stop_at: int = 0, stopped_rank: int = -1) -> None:
    """Run or resume the folder's recipe, as one of several processes, and write down what this process holds.

    Args:
        folder: Holds recipe.toml; the run's folder and the notes of each rank are made in it.
        stop_at: The step of this call at which a termination signal comes, counted from 1; 0 for none.
        stopped_rank: The rank that gets the signal.
    """
    rank = int(os.environ["RANK"])
    write_decided_network(folder / f"rank{rank}.safetensors")
    shares = measure_shares()
    if rank == stopped_rank:  # a signal reaches one process: all stop
        terminate_at(stop_at)
    loop.AGREE_EVERY = 2  # type: ignore[misc]
    run = folder / "run"
    with contextlib.suppress(Interrupted):
        compress(read_recipe(folder / "recipe.toml"), run, [], resume=(run / "recipe.toml").exists())
    (folder / f"shares{rank}.json").write_text(json.dumps(shares))


def write_decided_network(path: Path) -> None:
    decide = deciding.decide_masks

    def write_and_decide(context: StageContext, model: nn.Module, level: Level) -> Any:
        save_tensors(model.state_dict(), path)
        return decide(context, model, level)

    deciding.decide_masks = write_and_decide


def load_ranks(folder: Path, processes: int) -> list[dict[str, Tensor]]:
    """What each process held at its decision, as `train_rank` has written it down."""
    return [load_tensors(folder / f"rank{rank}.safetensors")[0] for rank in range(processes)]


def measure_shares() -> list[float]:
    """A list that fills as networks are sharded: the share of the parameters that this process holds."""
    shares: list[float] = []
    shard_copy = learner.shard_copy

    def shard_and_measure(model: nn.Module) -> nn.Module:
        shards = shard_copy(model)
        held = sum(value.to_local().numel() for value in shards.parameters())  # type: ignore[attr-defined]
        shares.append(held / sum(value.numel() for value in model.parameters()))
        return shards

    learner.shard_copy = shard_and_measure
    return shares


def terminate_at(step: int) -> None:
    set_learning_rate = loop.set_learning_rate
    steps = itertools.count(1)

    def terminate_and_set(optimizer: torch.optim.Optimizer, rate: float) -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        set_learning_rate(optimizer, rate)

    loop.set_learning_rate = terminate_and_set


def full_batches(size: int, shard: bool = False) -> Recipe:
    """One step an epoch, so that two processes see together what one sees; and next to no noise."""
    return Recipe(
        shard=shard,
        data=DataSettings(batch_size=size, limit=100, holdout=0.2),
        posterior=PosteriorSettings(init_log_sigma2=-30.0, granularity="gate"),
        dense=Stage(),
        sparse=SparseStage(epochs=20, optimizer="sgd", learning_rate=0.05),
        finetune=FinetuneStage(),
    )


RESIDUAL = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}
"""Four narrow blocks, the last two with a projection beside them."""
shards = pytest.mark.parametrize("shard", [False, True], ids=["DDP", "FSDP2"])


@shards
def test_ranks_agree_and_count_the_kl_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: bool) -> None:
    alone: dict[str, Tensor] = {}
    decide = deciding.decide_masks

    def remember(context: StageContext, model: nn.Module, level: Level) -> Any:
        alone.update({name: value.clone() for name, value in model.state_dict().items()})
        return decide(context, model, level)

    monkeypatch.setattr(deciding, "decide_masks", remember)
    compress(full_batches(80), tmp_path / "alone", [])
    write_recipe(full_batches(40, shard), tmp_path / "recipe.toml")
    run_ranks(2, train_rank, tmp_path)
    first, second = load_ranks(tmp_path, 2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    held = [json.loads((tmp_path / f"shares{rank}.json").read_text()) for rank in range(2)]
    assert [sum(both) for both in zip(*held, strict=True)] == ([1.0] if shard else [])
    assert all(0.4 < share < 0.6 for share in held[0])
    for name, value in alone.items():
        if name.endswith("log_sigma2"):  # moved by the KL alone
            assert (value + 30).abs().min() > 0.05
            torch.testing.assert_close(first[name], value, rtol=0, atol=1e-3)
        else:
            torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-3)
    assert len([name for name in alone if name.endswith("log_sigma2")]) >= 2
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in rows] == list(range(1, 21))


def test_shards_learn_what_copies_learn(tmp_path: Path) -> None:
    """A residual network, whose blocks share gates; running statistics are the first process's either way."""
    networks = []
    for shard in (False, True):
        settings = Recipe(
            shard=shard,
            model=ModelSettings(name="resnet18", arguments=RESIDUAL),
            data=DataSettings(batch_size=20, limit=100, holdout=0.2, image_size=32),
            posterior=PosteriorSettings(granularity="both"),
            sparse=SparseStage(epochs=3, learning_rate=0.002, kl_coefficient=0.1),
        )
        folder = tmp_path / str(shard)
        write_recipe(settings, folder / "recipe.toml")
        run_ranks(2, train_rank, folder)
        networks.append(load_ranks(folder, 1)[0])
    copies, shards = networks
    assert any(".gate." in name for name in copies)
    torch.testing.assert_close(shards, copies, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "resnet18": {"BasicBlock": 8},  # layer1.0 and so on, and no part of one
        "vit_tiny_patch16_224": {"Block": 12},
        "efficientnet_b0": {"DepthwiseSeparableConv": 1, "InvertedResidual": 15},  # sequences of sequences
    }.items(),
)
def test_blocks_are_the_outermost_members_of_sequences(name: str, expected: dict[str, int]) -> None:
    model = timm.create_model(name, num_classes=10)
    assert Counter(type(block).__name__ for block in find_blocks(model)) == expected


@shards
def test_resuming_among_another_number_of_processes(tmp_path: Path, shard: bool) -> None:
    """Two, then one, then two again: what is done stays done, and the rest is done once."""
    settings = Recipe(
        shard=shard,
        data=DataSettings(batch_size=20, limit=200, holdout=0.2),
        dense=Stage(epochs=3, learning_rate=0.01),
        sparse=SparseStage(epochs=6, learning_rate=0.005, kl_coefficient=0.01),
        finetune=FinetuneStage(epochs=1),
    )
    write_recipe(settings, tmp_path / "recipe.toml")  # 4 steps an epoch for two processes, 8 for one
    places = []
    for processes, stop in ((2, (18, 1)), (1, (17, 0)), (2, ())):
        run_ranks(processes, train_rank, tmp_path, *stop)
        start = read_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
        assert start is not None
        places.append((start.place.stage, start.place.step, start.place.per_epoch))
    # 18 = 12 dense + 6, halfway through epoch 2; 17 steps on from step 12 of 48, one step into epoch 4
    assert places == [("sparse", 6, 4), ("sparse", 29, 8), ("finetune", 4, 4)]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    epochs = [(row["stage"], row["epoch"]) for row in rows]
    assert epochs == [*(("dense", e) for e in (1, 2, 3)), *(("sparse", e) for e in range(1, 7)), ("finetune", 1)]
    ranks = load_ranks(tmp_path, 2)
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    assert rows[-1]["accuracy"] > 0.5


@shards
def test_two_processes_resume_where_they_stopped(tmp_path: Path, shard: bool) -> None:
    """In the middle of an epoch, whichever of the two gets the signal; of copies also in a stage with fake integers."""
    data = DataSettings(batch_size=20, limit=200, holdout=0.2)
    quantize = QuantizeStage() if shard else QuantizeStage(aware=True, epochs=1)
    settings = Recipe(shard=shard, data=data, dense=Stage(epochs=2), sparse=SparseStage(epochs=2), quantize=quantize)
    folders = []
    for name, stops in (("whole", ((),)), ("stopped", ((5, 1), (5 if shard else 13, 0), ()))):
        folder = tmp_path / name
        write_recipe(settings, folder / "recipe.toml")
        for stop in stops:
            run_ranks(2, train_rank, folder, *stop)
        folders.append(folder / "run")
    whole, stopped = (load_tensors(folder / "checkpoint.safetensors")[0] for folder in folders)
    assert whole.keys() == stopped.keys() and all(torch.equal(whole[name], stopped[name]) for name in whole)
    rows = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in folders]
    kept = [[{k: v for k, v in row.items() if not k.endswith("seconds")} for row in run] for run in rows]
    assert kept[0] == kept[1] and len(kept[0]) == 4 + quantize.aware


def test_two_processes_shrink_alike(tmp_path: Path) -> None:
    """Begun by one process, stopped after channels were removed, and ended by two, with the same sizes on both."""
    settings = Recipe(
        model=ModelSettings(name="resnet18", arguments=RESIDUAL),
        data=DataSettings(batch_size=25, limit=1000, holdout=0.2),
        posterior=PosteriorSettings(granularity="gate", init_log_sigma2=-2.0),
        dense=Stage(epochs=2, learning_rate=5e-3),
        sparse=SparseStage(epochs=6, learning_rate=5e-3, gate_rate=30.0, hold=0.5, shrink_at=3.0),
        finetune=FinetuneStage(),
    )
    write_recipe(settings, tmp_path / "recipe.toml")  # 16 steps an epoch for two processes, 32 for one
    sizes = []
    for processes, stop in ((1, (150, 0)), (2, ())):
        run_ranks(processes, train_rank, tmp_path, *stop)
        tensors, _ = load_tensors(tmp_path / "run" / "checkpoint.safetensors")
        sizes.append(sum(value.numel() for name, value in tensors.items() if name.startswith("model.")))
    ranks = load_ranks(tmp_path, 2)
    learnt = [name for name in ranks[0] if ".running_" not in name]  # of which each has its own
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in learnt)
    dense = sum(value.numel() for value in load_tensors(tmp_path / "run" / "dense.safetensors")[0].values())
    assert dense > sizes[0] > sizes[1]


def test_two_processes_meet_a_budget_as_one_does(tmp_path: Path) -> None:
    """The same channels leave at the same steps where two processes see together what one sees."""

    def settings(batch_size: int) -> Recipe:
        return Recipe(
            data=DataSettings(batch_size=batch_size, limit=100, holdout=0.2),
            sparse=SparseStage(epochs=40, optimizer="sgd", learning_rate=0.05),
            budget=BudgetSettings(macs=0.5, cuts=2),
        )

    networks = []
    for processes, folder in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        write_recipe(settings(80 // processes), folder / "recipe.toml")
        run_ranks(processes, train_rank, folder)
        networks += load_ranks(folder, processes)
    alone, first, second = networks
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {name: value.shape for name, value in alone.items()} == {name: value.shape for name, value in first.items()}
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-3, msg=name)
    assert len(alone["fc1.weight"]) < 300


def test_the_program_runs_under_torchrun(tmp_path: Path) -> None:
    """The real launcher and fresh interpreters, which end by themselves: one process makes the results and reports."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    settings = ["--shard=true", "--data.limit=100", "--dense.epochs=1", "--sparse.epochs=1", "--finetune.epochs=0"]
    command = [*launcher, "-m", "nni_sparsevd", "compress", "--out", str(tmp_path / "run"), *settings]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("report: ") == 1
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["command"][1] == "compress"
    assert {"small.safetensors", "report.html"} <= {path.name for path in (tmp_path / "run").iterdir()}
