"""The law of resuming: a run that was killed, at any moment, ends bit-identical to one that was not."""

import itertools
import json
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Child
from timm.models import register_model
from torch import nn

from nni_sparsevd import files
from nni_sparsevd.files import load_tensors, read_rows
from nni_sparsevd.recipe import (
    DataSettings,
    FinetuneStage,
    ModelSettings,
    QuantizeStage,
    Recipe,
    SparseStage,
    Stage,
    TeacherSettings,
    read_recipe,
    write_recipe,
)
from nni_sparsevd.settings import MaskSettings, PosteriorSettings
from nni_sparsevd.training import Interrupted, compress, loop
from nni_sparsevd.training.checkpoint import read_checkpoint

MINUTES = 0.001
"""Between checkpoints: 60 ms, so that some kills come right after one and others several steps later."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def recipe(**changes: object) -> Recipe:
    """25 steps an epoch, 125 in all."""
    parts = {
        "data": DataSettings(batch_size=20, limit=560),
        "dense": Stage(epochs=1),
        "sparse": SparseStage(epochs=2, kl_coefficient=0.1, warmup_to=1.0),
        "finetune": FinetuneStage(epochs=2),
        "masks": MaskSettings(threshold="held_out", tolerance=0.02),
        "checkpoint_minutes": MINUTES,
        **changes,
    }
    return Recipe.model_validate(parts)


def results(folder: Path) -> dict[str, object]:
    """All that a run leaves, less the times and places in it."""
    left: dict[str, object] = {}
    names = ["dense", "baked", "masks", "checkpoint"]
    for name in [
        *names,
        *(name for name in ("tuned", "quantized", "twin") if (folder / f"{name}.safetensors").exists()),
    ]:
        tensors, _ = load_tensors(folder / f"{name}.safetensors")
        left |= {f"{name}.{key}": value.contiguous().numpy().tobytes() for key, value in tensors.items()}
    for name in ("curve", "log_alpha"):
        left[name] = json.loads((folder / f"{name}.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    left["rows"] = [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in rows]
    return left


def differing(whole: dict[str, object], resumed: dict[str, object]) -> list[str]:
    return sorted(key for key in whole.keys() | resumed.keys() if whole.get(key) != resumed.get(key))


def run_and_die(folder: Path, how: str, at: int) -> None:
    """Run or resume in a process that kills itself at the `at`-th step, or as it writes the `at`-th file."""
    place, name = {"step": (loop, "set_learning_rate"), "write": (os, "replace")}[how]
    real, count = getattr(place, name), itertools.count(1)

    def call_or_die(*arguments: object) -> object:
        if next(count) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    setattr(place, name, call_or_die)
    compress(read_recipe(folder.parent / "recipe.toml"), folder, [], resume=(folder / "recipe.toml").exists())


def test_killed_three_times_and_none_the_worse(tmp_path: Path) -> None:
    """A real SIGKILL at random steps of three processes in a row, the last one while it writes a file."""
    write_recipe(recipe(), tmp_path / "recipe.toml")
    compress(recipe(), tmp_path / "whole", [])
    dice = random.Random(os.environ.get("RESUME_SEED", "7"))
    killed = tmp_path / "killed"
    plan = [("step", dice.randint(5, 40)), ("step", dice.randint(5, 40)), ("write", dice.randint(2, 6))]
    for how, at in plan:
        code, output = Child(run_and_die, killed, how, at).wait()
        assert code == -signal.SIGKILL, f"{plan}: {output}"
        assert (killed / "recipe.toml").exists()
    made = compress(recipe(), killed, [], resume=True)
    assert differing(results(tmp_path / "whole"), results(killed)) == [], plan
    again = compress(recipe(), killed, [], resume=True)  # a finished run is not run again
    for name, value in made.masked.state_dict().items():
        assert torch.equal(value, again.masked.state_dict()[name])


class PowerFailureError(Exception):
    """Not one of ours."""


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    real, count = loop.set_learning_rate, 0

    def counted(optim: torch.optim.Optimizer, rate: float) -> None:
        nonlocal count
        count += 1
        real(optim, rate)
        if count == step:
            action()

    monkeypatch.setattr(loop, "set_learning_rate", counted)


def fail() -> None:
    raise PowerFailureError


class SmallCNN(nn.Sequential):
    """Convolutions, batch norms and dropout."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        layers: list[nn.Module] = []
        for width in (8, 16, 16):
            layers += [nn.Conv2d(in_chans, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2)]
            in_chans = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_chans, num_classes))


@register_model
def resumed_cnn(pretrained: bool = False, **arguments: Any) -> nn.Module:
    return SmallCNN(arguments["num_classes"], arguments["in_chans"])


CNN = ModelSettings(name="resumed_cnn")
VIT = ModelSettings(
    name="vit_tiny_patch16_224",
    arguments={"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 1, "num_heads": 3},
)
TINY_PHOTOS = DataSettings(batch_size=50, limit=500, image_size=8)
"""9 steps an epoch."""
DYING_GATES = PosteriorSettings(granularity="gate", init_log_sigma2=1.0)
GATES_AT_THE_THRESHOLD = PosteriorSettings(granularity="gate", init_log_sigma2=3.0)
"""Some are past it after an epoch, even with an optimizer that moves them little."""
CASES: dict[str, dict[str, Any]] = {
    "batch norm, dropout, augmentation": {
        "model": CNN,
        "data": DataSettings(batch_size=50, limit=500, image_size=8, augment="crop_flip"),
    },
    "loader processes and timm's augmentation": {
        "data": DataSettings(
            limit=200,
            batch_size=20,
            image_size=8,
            augment="timm",
            aa="rand-m5",
            mixup=0.2,
            cutmix=1.0,
            re_prob=0.3,
            smoothing=0.1,
            workers=2,
        ),
        "sparse": SparseStage(epochs=2),
        "finetune": FinetuneStage(epochs=1),
    },
    "gates": {"posterior": PosteriorSettings(granularity="both")},
    "one weight sample": {"posterior": PosteriorSettings(estimator="weight", prior="log_uniform_exact")},
    "no dense stage": {"dense": Stage()},
    "fine-tuning with noise": {"finetune": FinetuneStage(epochs=2, variational=True)},
    "channels last": {"model": CNN, "channels_last": True, "data": TINY_PHOTOS},
    "no fine-tuning": {"finetune": FinetuneStage(), "sparse": SparseStage(epochs=3)},
    "shrinking": {
        "model": CNN,
        "data": TINY_PHOTOS,
        "posterior": DYING_GATES,
        "sparse": SparseStage(epochs=3, gate_rate=100.0, shrink_at=3.0),
    },
    "shrinking a transformer": {
        "model": VIT,
        "data": TINY_PHOTOS,
        "posterior": PosteriorSettings(granularity="both"),
        "sparse": SparseStage(epochs=3, kl_coefficient=50.0, learning_rate=0.03, shrink_at=3.0),
    },
    "shrinking in bf16": {
        "posterior": DYING_GATES,
        "sparse": SparseStage(epochs=3, gate_rate=100.0, shrink_at=3.0),
        "precision": "bf16",
    },
    "averaged weights and accumulated gradients": {
        "posterior": PosteriorSettings(granularity="both"),
        "dense": Stage(epochs=1, ema=0.9),
        "sparse": SparseStage(epochs=2, ema=0.9, accumulate=2),
        "finetune": FinetuneStage(epochs=1, ema=0.9, accumulate=3),
    },
    "a dense twin": {
        "twin": True,
        "teacher": TeacherSettings(weight=0.5),
        "sparse": SparseStage(epochs=1),
        "finetune": FinetuneStage(epochs=1),
    },
    "fake integers": {
        "model": CNN,
        "data": TINY_PHOTOS,
        "sparse": SparseStage(epochs=1),
        "finetune": FinetuneStage(),
        "quantize": QuantizeStage(aware=True, epochs=2, ema=0.9, accumulate=2),
        "twin": True,
    },
    "shrinking, then fine-tuning with noise": {
        "posterior": PosteriorSettings(granularity="both"),
        "sparse": SparseStage(epochs=3, kl_coefficient=50.0, learning_rate=0.03, shrink_at=3.0),
        "finetune": FinetuneStage(epochs=2, variational=True),
    },
}
STOPS = {"a dense twin": (31, 9), "fake integers": (20, 6), "averaged weights and accumulated gradients": (5, 8, 8)}
"""Steps that a process takes before it fails, where the usual ones come too early."""
OPTIMIZERS = ("momentum", "lamb", "nadamw", "adafactor", "rmsproptf", "adan", "lion", "madgrad", "lookahead_adamw")
for _name in OPTIMIZERS:
    # Adafactor's state depends on how many axes a weight has; that of the others has its weight's shape.
    _convolves = _name in ("momentum", "adafactor")
    _epochs = 3 if _convolves else 2  # channels of convolutions leave after the second one
    _sparse = CASES["shrinking"]["sparse"].model_copy(update={"epochs": _epochs, "optimizer": _name})
    STOPS[_name] = (9, 22) if _convolves else (9, 13)
    CASES[_name] = {
        "model": CNN if _convolves else ModelSettings(),
        "data": TINY_PHOTOS,
        "posterior": GATES_AT_THE_THRESHOLD,
        "dense": Stage(epochs=1, optimizer=_name),
        "sparse": _sparse,
        "finetune": FinetuneStage(),
    }


@pytest.mark.parametrize("case", CASES)
def test_everything_that_learns_is_in_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    if CASES[case].get("precision"):
        from accelerate.state import AcceleratorState

        # Accelerate keeps the precision of a process's first run
        monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    fewer = {
        "data": DataSettings(batch_size=50, limit=500),
        "masks": MaskSettings(allow_empty=True),
        "checkpoint_minutes": 1e-9,
    }
    every_step = recipe(**{**fewer, **CASES[case]})  # 9 steps an epoch
    # A run that is never stopped needs no checkpoint at each step, which takes as long as the step.
    compress(every_step.model_copy(update={"checkpoint_minutes": 60.0}), tmp_path / "whole", [])
    if every_step.sparse.shrink_at is not None:
        rows = [row for row in read_rows(tmp_path / "whole" / "metrics.jsonl") if row["stage"] == "sparse"]
        assert rows[-2]["compression"] > 1, "no channel has left before the last epoch: the case would say nothing"
    for step in STOPS.get(case, (9, 13, 11)):
        with monkeypatch.context() as patch:
            stop_at(patch, step, fail)
            with pytest.raises(PowerFailureError):
                compress(every_step, tmp_path / "cut", [], resume=(tmp_path / "cut").exists())
        assert not any(child.daemon for child in multiprocessing.active_children()), "loader processes are left"
    compress(every_step, tmp_path / "cut", [], resume=True)
    assert differing(results(tmp_path / "whole"), results(tmp_path / "cut")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    seldom = recipe(checkpoint_minutes=60.0)
    compress(seldom, tmp_path / "whole", [])
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        stop_at(patch, 35, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted, match=r"sparse after step 10 of 50.*--resume"):
            compress(seldom, tmp_path / "cut", [])
    assert signal.getsignal(number) is before
    kept = read_checkpoint(tmp_path / "cut" / "checkpoint.safetensors")
    assert kept is not None
    assert (kept.place.stage, kept.place.step) == ("sparse", 10)
    compress(seldom, tmp_path / "cut", [], resume=True)
    assert differing(results(tmp_path / "whole"), results(tmp_path / "cut")) == []


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later checkpoint cannot be written: the one before is whole, no rubbish is left, the run goes on from it."""
    frugal = recipe(checkpoint_minutes=60.0)
    compress(frugal, tmp_path / "whole", [])
    real, count = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal count
        count += 1
        if count == 8:
            raise OSError(28, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(files.FileFormatError, match="No space left on device"):
            compress(frugal, tmp_path / "cut", [])
    assert not [path for path in (tmp_path / "cut").iterdir() if path.name.startswith(".")]
    assert read_checkpoint(tmp_path / "cut" / "checkpoint.safetensors") is not None
    compress(frugal, tmp_path / "cut", [], resume=True)
    assert differing(results(tmp_path / "whole"), results(tmp_path / "cut")) == []
