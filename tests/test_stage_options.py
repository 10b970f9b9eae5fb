"""What a stage can do besides: averaged weights, accumulated gradients, compiled steps."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nni_sparsevd.errors import SettingError
from nni_sparsevd.files import load_tensors, read_rows
from nni_sparsevd.recipe import Recipe
from nni_sparsevd.settings import make_settings
from nni_sparsevd.training import compress
from nni_sparsevd.training.averaging import WeightAverage


def train_dense(folder: Path, data: dict[str, object], stage: dict[str, object], **others: object) -> dict[str, Tensor]:
    """The weights after a dense stage."""
    values = {"data": data, "dense": stage, "sparse": {"epochs": 0}, "masks": {"allow_empty": True}, **others}
    compress(make_settings(Recipe, values), folder, [])
    return load_tensors(folder / "dense.safetensors")[0]


def test_a_stage_ends_with_the_average_of_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: a step keeps the part min(0.9, 1 - steps^(-2/3)) of the average."""
    steps = []
    update = WeightAverage.update

    def record(self: WeightAverage, steps_done: int) -> None:
        steps.append({name: value.clone() for name, value in self._model.state_dict().items()})
        update(self, steps_done)

    monkeypatch.setattr(WeightAverage, "update", record)
    left = train_dense(tmp_path / "run", {"limit": 200, "batch_size": 18}, {"epochs": 2, "ema": 0.9})
    assert len(steps) == 20
    for name, value in left.items():
        expected = steps[0][name]
        for count, step in enumerate(steps[1:], 1):
            kept = min(0.9, 1 - (1 + count) ** (-2 / 3))
            expected = kept * expected + (1 - kept) * step[name]
        torch.testing.assert_close(value, expected)
        assert not torch.equal(value, steps[-1][name])


def test_what_is_validated_is_the_average(tmp_path: Path) -> None:
    stage = {"epochs": 1, "ema": 0.99, "learning_rate": 0.01}
    values = {"data": {"limit": 300}, "sparse": {**stage, "kl_coefficient": 0}, "masks": {"threshold": 3.0}}
    compressed = compress(make_settings(Recipe, values), tmp_path / "run", [])
    row = read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
    holdout = compressed.data.holdout
    images, labels = compressed.data.normalize(next(iter([holdout.images]))), holdout.labels
    with torch.no_grad():
        logits = compressed.masked(images)
    assert row["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert row["held_out_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)


def test_a_network_whose_validation_fails_has_its_own_weights_again() -> None:
    network = torch.nn.Linear(2, 2)
    average, before = WeightAverage(network, 0.9), network.weight.detach().clone()
    average.update(1)
    with torch.no_grad():
        network.weight += 1

    def fail() -> None:
        with average.shown():
            assert torch.equal(network.weight, before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(network.weight, before + 1)


def test_gradients_of_several_batches_make_the_step_of_one_large_batch(tmp_path: Path) -> None:
    """90 images in an epoch: all of them at once, or in three batches; the order of a sum is all that differs."""
    stage = {"epochs": 4, "optimizer": "momentum", "learning_rate": 0.1}
    whole = train_dense(tmp_path / "whole", {"limit": 100, "batch_size": 90}, stage)
    parts = train_dense(tmp_path / "parts", {"limit": 100, "batch_size": 30}, {**stage, "accumulate": 3})
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == [1, 2, 3, 4]
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_gradient_is_no_longer_than_clip_norm(tmp_path: Path, accumulate: int) -> None:
    """One step of plain descent moves all weights together by rate times length, in the same direction."""
    data = {"limit": 100, "batch_size": 90 // accumulate}
    stage = {"epochs": 1, "optimizer": "sgd", "learning_rate": 0.1, "accumulate": accumulate}
    at_first = train_dense(tmp_path / "none", data, {"epochs": 0})
    steps = []
    for clip_norm in (None, 1e-2, 5e-3, 1e6):
        after = train_dense(tmp_path / str(clip_norm), data, {**stage, "clip_norm": clip_norm})
        steps.append(torch.cat([(after[name] - value).flatten() for name, value in at_first.items()]))
    free, clipped, shorter, unclipped = steps
    assert torch.equal(free, unclipped)
    torch.testing.assert_close(clipped, 2 * shorter, rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm(), rtol=1e-2, atol=1e-4)
    assert 1e-3 <= float(clipped.norm()) <= 2e-3 < float(free.norm())  # Nesterov's first step is 1.9 times the gradient


def test_steps_are_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend `eager` computes what is not compiled; stages where channels leave or integers are faked are not."""
    backends = []
    compiled = torch.compile

    def record(model: torch.nn.Module, backend: str) -> object:
        backends.append(backend)
        return compiled(model, backend=backend)

    monkeypatch.setattr(torch, "compile", record)
    data, stage = {"limit": 100, "batch_size": 45}, {"epochs": 1}
    plain = train_dense(tmp_path / "plain", data, stage)
    assert backends == []
    others = {"sparse": {"epochs": 1, "shrink_at": 3.0}, "quantize": {"aware": True, "epochs": 1}}
    eager = train_dense(tmp_path / "eager", data, stage, compile="eager", **others)
    assert backends == ["eager"]
    assert all(torch.equal(eager[name], value) for name, value in plain.items())


REFUSED = {
    "a backend that is none": (
        {"compile": "gcc"},
        "compile = 'gcc': no backend of torch.compile; .*inductor",
    ),
    "an average of shards": ({"shard": True, "dense": {"ema": 0.9}}, "dense.ema does not go together with shard"),
    "compiled shards": ({"shard": True, "compile": "eager"}, "compile does not go together with shard"),
    "an average of networks of several sizes": (
        {"sparse": {"ema": 0.9, "shrink_at": 3.0}},
        "sparse.ema does not go together with sparse.shrink_at",
    ),
    "fake integers in shards": ({"shard": True, "quantize": {"aware": True}}, "quantize.aware does not .* with shard"),
    "fake integers for no epoch": (
        {"quantize": {"aware": True, "epochs": 0}},
        "quantize.aware = true with quantize.epochs = 0",
    ),
    "a stage for integers without them": (
        {"quantize": {"epochs": 3}},
        "quantize.epochs counts only with quantize.aware",
    ),
    "a warm-up that ends before it begins": (
        {"sparse": {"warmup_from": 3}},
        "sparse.warmup_from = 3 is after sparse.warmup_to = 0",
    ),
    "a margin without crops": ({"data": {"margin": 2}}, "data.margin counts only with data.augment = 'crop'"),
    "a margin of timm's crops": (
        {"data": {"margin": 2, "augment": "timm"}},
        "data.margin counts only with .* found 'timm'",
    ),
    "a threshold that a ratio would pass over": (
        {"masks": {"threshold": "held_out", "ratio": 0.5}},
        "masks.threshold = 'held_out' and ratio = 0.5 both say how much goes",
    ),
    "more batches than an epoch has": (
        {"data": {"limit": 100, "batch_size": 30}, "finetune": {"accumulate": 4}},
        "finetune.accumulate = 4: an epoch has 3 batches of 30",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_training(tmp_path: Path, case: str) -> None:
    values, message = REFUSED[case]
    with pytest.raises(SettingError, match=message):
        compress(make_settings(Recipe, values), tmp_path / "run", [])
    assert not (tmp_path / "run").exists()


def test_processes_that_would_each_train_alone_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun on a machine without a GPU: both processes trained the whole run, in one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingError, match=r"one of 2 processes.*ACCELERATE_USE_CPU=1"):
        compress(make_settings(Recipe, {}), tmp_path / "run", [])


def test_without_a_compiler_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.cpp_builder.is_gcc", lambda *_: True)
    with pytest.raises(SettingError, match="needs a C\\+\\+ compiler, and there is none"):
        compress(make_settings(Recipe, {"compile": "inductor"}), tmp_path / "run", [])
