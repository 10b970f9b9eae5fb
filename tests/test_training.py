"""Training: the objective, what stops a run, the choice of the threshold, deciding again."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import PartialState
from rich.console import Console
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd import data as datasets
from nni_sparsevd import models
from nni_sparsevd.errors import FileFormatError, ModelError, SettingError, TrainingError
from nni_sparsevd.files import load_tensors, save_tensors
from nni_sparsevd.masks import count_weights
from nni_sparsevd.nn import Variational, is_variational, named_posteriors
from nni_sparsevd.recipe import BudgetSettings, DataSettings, FinetuneStage, ModelSettings, Recipe, SparseStage, Stage
from nni_sparsevd.settings import MaskSettings, PosteriorSettings, make_settings
from nni_sparsevd.training import build_optimizer, choose_threshold, compress, evaluate, finetuning, loop, threshold
from nni_sparsevd.training.checkpoint import Place, read_checkpoint, take_checkpoint, write_checkpoint
from nni_sparsevd.training.gate_travel import warn_of_gates_that_cannot_arrive
from nni_sparsevd.training.memory_format import lay_out
from nni_sparsevd.training.metrics import Metrics

FILES_PAGE = Path(__file__).parents[1] / "docs" / "files.md"
PER_EPOCH = 25  # 1,293 digits to train on, 50 a batch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def recipe(**parts: Any) -> Recipe:
    return Recipe(
        **{
            "data": DataSettings(batch_size=50),
            "dense": Stage(epochs=1),
            "sparse": SparseStage(epochs=2, kl_coefficient=0.1),
            "finetune": FinetuneStage(epochs=1),
            **parts,
        }
    )


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[torch.optim.Optimizer], None]) -> None:
    """Do something just before the backward pass of the given step, counted from 1 over all stages."""
    real, count = loop.set_learning_rate, 0

    def counted(optim: torch.optim.Optimizer, rate: float) -> None:
        nonlocal count
        real(optim, rate)
        count += 1
        if count == step:
            action(optim)

    monkeypatch.setattr(loop, "set_learning_rate", counted)


# Objective and evaluation.


def test_the_kl_over_n_joins_the_gradient_of_the_mean_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[float] = []

    def noted(model: nn.Module, weight: float) -> None:
        assert all(parameter.grad is not None for parameter in model.parameters())
        weights.append(weight)

    monkeypatch.setattr(loop, "regularize_", noted)
    wanted = recipe(sparse=SparseStage(epochs=4, kl_coefficient=0.7, warmup_from=1, warmup_to=3))
    made = compress(wanted, tmp_path / "run", [])
    epochs = [step / PER_EPOCH for step in range(4 * PER_EPOCH)]
    ramp = [min(max((epoch - 1) / 2, 0.0), 1.0) for epoch in epochs]
    assert weights == pytest.approx([0.7 * part / len(made.data.train) for part in ramp])


def test_evaluation_counts_every_image_once() -> None:
    data = datasets.load_data(DataSettings())
    torch.manual_seed(0)
    model = models.create_model(ModelSettings(), 10, 1, 8).train()
    score = evaluate(model, data, data.test, batch_size=77)
    logits = model(data.normalize(data.test.images))
    assert model.training
    assert score.images == 360
    assert score.accuracy == int((logits.argmax(1) == data.test.labels).sum()) / 360
    assert score.loss == pytest.approx(F.cross_entropy(logits, data.test.labels).item(), rel=1e-5)
    assert score.to_dict()["error_percent"] == pytest.approx(100 - 100 * score.accuracy, abs=1e-3)


# A whole run.


def test_a_run_learns_and_keeps_what_it_removed_at_zero(tmp_path: Path) -> None:
    made = compress(recipe(dense=Stage(epochs=3), finetune=FinetuneStage(epochs=2)), tmp_path / "run", ["a", "command"])
    assert evaluate(made.masked, made.data, made.data.test).accuracy > 0.9
    kinds = {type(module) for module in made.masked.modules()}
    assert kinds == {models.LeNet300100, nn.Linear, nn.ReLU}
    removed = 0
    for name, targets in made.masks.items():
        for key, mask in targets.items():
            values = made.masked.get_submodule(name).get_parameter(key)
            assert not values[mask == 0].any()
            removed += int((mask == 0).sum())
    assert removed > 10_000
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    places = [("dense", 1), ("dense", 2), ("dense", 3), ("sparse", 1), ("sparse", 2), ("finetune", 1), ("finetune", 2)]
    assert [(row["stage"], row["epoch"]) for row in rows] == places
    assert [row["step"] for row in rows[:3]] == [PER_EPOCH, 2 * PER_EPOCH, 3 * PER_EPOCH]
    kept, total = svd.masks.count_weights(made.masked, made.masks)
    assert rows[-1]["compression"] == pytest.approx(total / kept)
    history = json.loads((tmp_path / "run" / "log_alpha.json").read_text())
    assert [row["epoch"] for row in history["epochs"]] == [1, 2]
    sizes = {name: sum(counts) for name, counts in history["epochs"][0]["counts"].items()}
    assert sizes == {"fc1": 19200, "fc2": 30000, "fc3": 1000}
    assert len(history["edges"]) == 81
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["command"] == ["a", "command"]
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("epoch", [1, 2])
def test_weights_that_are_not_finite_never_reach_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """The last step of an epoch has a finite loss and spoils the weights: only they tell."""

    def spoil(optim: torch.optim.Optimizer) -> None:
        optim.param_groups[0]["lr"] = float("nan")

    at_step(monkeypatch, epoch * PER_EPOCH, spoil)
    with pytest.raises(TrainingError, match=r"not finite|no longer finite") as caught:
        compress(recipe(dense=Stage(epochs=3)), tmp_path / "run", [])
    kept = read_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    if epoch == 1:
        assert kept is None
        assert "no checkpoint" in str(caught.value)
        return
    assert kept is not None
    assert kept.place == Place("dense", PER_EPOCH, PER_EPOCH)
    assert all(value.isfinite().all() for value in kept.tensors.values())
    assert "checkpoint.safetensors" in str(caught.value)


def test_a_loss_that_is_not_finite_stops_the_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(optim: torch.optim.Optimizer) -> None:
        optim.param_groups[0]["lr"] = float("nan")

    at_step(monkeypatch, PER_EPOCH + 3, spoil)
    with pytest.raises(TrainingError, match=r"dense\.learning_rate"):
        compress(recipe(dense=Stage(epochs=3)), tmp_path / "run", [])
    kept = read_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    assert kept is not None
    assert kept.place.step == PER_EPOCH


def test_a_collapse_is_explained_unless_it_is_wanted(tmp_path: Path) -> None:
    doomed = recipe(dense=Stage(), sparse=SparseStage(epochs=2, kl_coefficient=300, learning_rate=0.03))
    with pytest.raises(TrainingError, match=r"collapse in epoch \d.*warmup_from.*dense\.epochs.*kl_coefficient"):
        compress(doomed, tmp_path / "run", [])
    wanted = doomed.model_copy(update={"masks": MaskSettings(allow_empty=True)})
    made = compress(wanted, tmp_path / "wanted", [])
    assert evaluate(made.masked, made.data, made.data.test).accuracy < 0.2


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SettingError, match="not empty"):
        compress(recipe(), tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(SettingError, match="nothing to resume"):
        compress(recipe(), tmp_path / "nowhere", [], resume=True)


def test_another_recipe_does_not_resume_and_a_damaged_checkpoint_says_so(tmp_path: Path) -> None:
    short = recipe(dense=Stage(epochs=1), sparse=SparseStage(epochs=1), finetune=FinetuneStage())
    compress(short, tmp_path / "run", [])
    other = short.model_copy(update={"seed": 4, "dense": Stage(epochs=1, learning_rate=0.1)})
    with pytest.raises(SettingError, match=r"dense\.learning_rate.*seed|seed.*dense\.learning_rate"):
        compress(other, tmp_path / "run", [], resume=True)
    path = tmp_path / "run" / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"checkpoint\.safetensors: altered"):
        compress(short, tmp_path / "run", [], resume=True)
    path.write_bytes(content[:-1000])
    with pytest.raises(FileFormatError, match=r"checkpoint\.safetensors: not a whole"):
        compress(short, tmp_path / "run", [], resume=True)


@pytest.mark.parametrize("holdout", [0.0, 1.0])
def test_without_held_out_or_training_images_there_is_no_recipe(holdout: float) -> None:
    with pytest.raises(SettingError, match=r"data\.holdout"):
        make_settings(Recipe, {"data": {"holdout": holdout}})


def test_a_checkpoint_holds_what_its_documentation_says(tmp_path: Path) -> None:
    """docs/files.md names every key of the header, and every kind of tensor."""
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, Stage(optimizer="madgrad"))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    place = Place("sparse", 3, per_epoch=2)
    taken = take_checkpoint(place, model, optimizer, torch.zeros(3, dtype=torch.float64), resized=True)
    write_checkpoint(tmp_path / "checkpoint.safetensors", taken)
    tensors, metadata = load_tensors(tmp_path / "checkpoint.safetensors")
    header = json.loads(metadata["nni_sparsevd.checkpoint"])
    section = FILES_PAGE.read_text().partition("## The checkpoint")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`(\w+)`", section))
    assert header.keys() == {"place", "scalars", "sizes"}
    assert {*header, "stage", "per_epoch", *header["scalars"]} <= documented
    assert header["place"] == {"stage": "sparse", "step": 3, "per_epoch": 2}
    assert header["sizes"][""]["out_features"] == 2
    kinds = {name.partition(".")[0] for name in tensors}
    assert {"model", "optimizer", "running"} <= kinds
    assert all(f"`{kind}." in section for kind in kinds - {"running"})


# Threshold and metrics.


def fake_scores(monkeypatch: pytest.MonkeyPatch, needed: int) -> None:
    """Accuracy 0.9, less 0.1 for every weight fewer than needed: a curve known beforehand."""

    def score(model: nn.Module, masks: svd.Masks, *_: object) -> object:
        kept = sum(int(targets["weight"].sum()) for targets in masks.values())
        return type("Score", (), {"accuracy": 0.9 - 0.1 * max(0, needed - kept)})

    monkeypatch.setattr(threshold, "evaluate_baked", score)


@pytest.mark.parametrize(("tolerance", "kept"), [(0.0, 5), (0.15, 4), (0.25, 3)])
def test_the_largest_compression_within_the_tolerance_wins(
    monkeypatch: pytest.MonkeyPatch, tolerance: float, kept: int
) -> None:
    model = svd.sparsify_(nn.Linear(8, 1), init_log_sigma2=0.0)
    with torch.no_grad():  # log alpha = 0.25, 0.75, ..., 3.75: one weight more for every step of the grid
        model.weight.copy_((-0.5 * (0.25 + 0.5 * torch.arange(8))).exp()[None])
    fake_scores(monkeypatch, needed=5)
    data = datasets.load_data(DataSettings())
    curve = choose_threshold(model, "held_out", MaskSettings(tolerance=tolerance), data, torch.zeros(1, 8))
    assert int((model.log_alpha() < curve.chosen).sum()) == kept
    assert list(curve.thresholds) == sorted(curve.thresholds)
    assert list(curve.compression) == sorted(curve.compression, reverse=True)
    fixed = choose_threshold(model, 1.7, MaskSettings(), data, torch.zeros(1, 8))
    assert fixed.chosen == 1.7
    assert fixed.accuracy[fixed.thresholds.index(1.7)] == pytest.approx(0.7)


def test_the_threshold_of_the_posterior_is_the_one_that_ships(tmp_path: Path) -> None:
    """What was validated after every epoch, what the curve chose and what the posterior computes: one decision."""
    settings = recipe(posterior=PosteriorSettings(threshold=1.5), finetune=FinetuneStage())
    made = compress(settings, tmp_path / "run", [])
    assert json.loads((tmp_path / "run" / "curve.json").read_text())["chosen"] == 1.5
    posterior = svd.sparsify_(models.create_model(settings.model, 10, 1, 8), settings.posterior)
    posterior.load_state_dict(load_tensors(tmp_path / "run" / "posterior.safetensors")[0])
    expected = svd.compute_masks(posterior)
    assert made.masks.keys() == expected.keys()
    for name, targets in expected.items():
        assert torch.equal(made.masks[name]["weight"], targets["weight"]), name
    kept, total = count_weights(made.masked, made.masks)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["stage"] == "sparse" and last["sparsity"] == 1 - kept / total
    images = made.data.normalize(made.data.holdout.images)
    with torch.no_grad():
        assert torch.equal(posterior.eval()(images), made.masked(images))
    at_3 = svd.compute_masks(posterior, MaskSettings(threshold=3.0))
    assert count_weights(posterior, at_3)[0] > kept


def row(stage: str, step: int) -> dict[str, Any]:
    values = dict.fromkeys(("loss", "kl", "accuracy", "sparsity", "compression", "seconds"), 0.5)
    return {"stage": stage, "epoch": step, "step": step, **values}


def test_metrics_past_the_resumed_place_are_dropped(tmp_path: Path) -> None:
    console = Console(quiet=True)
    with Metrics(tmp_path, console, {}) as metrics:
        for stage in ("dense", "sparse"):
            for step in range(1, 4):
                metrics.record(row(stage, step))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "spar')  # a kill in the middle of a line
    with Metrics(tmp_path, console, {"dense": 99, "sparse": 2}) as metrics:
        metrics.record(row("sparse", 3))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [(s, n) for s in ("dense", "sparse") for n in (1, 2, 3)]


def test_metrics_on_a_full_disk_say_so(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Metrics(tmp_path, Console(quiet=True), {}) as metrics:
        metrics.path = Path("/dev/full")
        with pytest.raises(FileFormatError, match=r"/dev/full.*No space left"):
            metrics.record(row("dense", 1))


# Layout, snapshots.


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_is_a_layout_and_nothing_else(channels: int) -> None:
    images = torch.randn(4, channels, 8, 8)
    laid = datasets.to_channels_last(images)
    assert torch.equal(laid, images) and laid.permute(0, 2, 3, 1).is_contiguous()
    layer = nn.Conv2d(channels, 6, 3)
    assert layer(laid).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(laid), layer(images))


def test_training_channels_last_ends_where_training_channels_first_does(tmp_path: Path) -> None:
    # Not fewer channels: without AVX-512 the layout would be left alone.
    model = ModelSettings(name="resnet18_small", arguments={"channels": [8, 8, 8, 8]})
    ended = []
    dense = Stage(epochs=1, optimizer="sgd", learning_rate=0.002)  # Adam turns rounding into whole steps
    rest = {"sparse": SparseStage(epochs=0), "finetune": FinetuneStage(), "masks": MaskSettings(ratio=0.0)}
    for last in (False, True):
        settings = recipe(
            model=model, dense=dense, data=DataSettings(limit=200, batch_size=20), channels_last=last, **rest
        )
        compress(settings, tmp_path / str(last), [])
        ended.append(load_tensors(tmp_path / str(last) / "dense.safetensors")[0])
    for name, value in ended[0].items():
        torch.testing.assert_close(ended[1][name], value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("processor", ["AVX2", "AVX512"])
def test_where_pytorch_would_crash_images_do_not_lie_channels_last(
    processor: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    PartialState()  # `compress` has it: of several processes, one warns
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    images = torch.randn(2, 3, 8, 8)
    cut = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Conv2d(7, 9, 1, stride=2))
    svd.sparsify_(cut)
    others = [nn.Conv2d(8, 9, 1, stride=2), nn.Conv2d(3, 9, 2, stride=2), nn.Conv2d(3, 9, 1)]
    for harmless in others:
        assert lay_out(images, harmless, channels_last=True).is_contiguous(memory_format=torch.channels_last)
    crashes = processor == "AVX2"
    for _ in range(2):
        assert (lay_out(images, cut, channels_last=True) is images) == crashes
    assert capsys.readouterr().err.count("in the backward pass of 1, a strided convolution") == crashes


def test_snapshots_are_what_would_ship_after_each_epoch(tmp_path: Path) -> None:
    settings = recipe(sparse=SparseStage(epochs=2, kl_coefficient=0.1, snapshots=("fc2", "fc3")))
    compress(settings, tmp_path / "run", [])
    made = [load_tensors(tmp_path / "run" / "snapshots" / f"000{epoch}.safetensors")[0] for epoch in (1, 2)]
    assert [set(each) for each in made] == [{"fc2", "fc3"}] * 2
    end = load_tensors(tmp_path / "run" / "posterior.safetensors")[0]
    kept = end["fc2.log_sigma2"] - 2 * end["fc2.weight"].abs().log() < 3
    torch.testing.assert_close(made[1]["fc2"], (end["fc2.weight"] * kept).half())
    assert not torch.equal(made[0]["fc2"], made[1]["fc2"])


def test_blocks_of_weights_are_refused_where_gates_learn_alone() -> None:
    gates = {"posterior": {"granularity": "gate"}, "masks": {"structure": "n:m"}}
    with pytest.raises(SettingError, match=r"masks.structure = 'n:m' decides about weights"):
        make_settings(Recipe, gates)


def test_a_ratio_removes_channels_where_gates_learn_alone(tmp_path: Path) -> None:
    """The structure is left at its default, single weights, of which a ratio has none to rank here."""
    gates = {"posterior": PosteriorSettings(granularity="gate"), "masks": MaskSettings(ratio=0.5)}
    done = compress(recipe(sparse=SparseStage(epochs=1, kl_coefficient=0.1), **gates), tmp_path / "run", [])
    small, plan = svd.shrink(done.masked, done.example_inputs)
    assert plan.removed == (300 + 100) // 2
    assert small.fc1.out_features + small.fc2.out_features == 200


GATES = {"posterior": PosteriorSettings(granularity="gate")}


@pytest.mark.parametrize(
    ("changes", "steps", "is_told"),
    [
        (GATES, 90, True),  # 0.23 of the way
        (GATES, 450, False),
        ({**GATES, "masks": MaskSettings(ratio=0.5)}, 90, False),
        ({**GATES, "budget": BudgetSettings(macs=0.5)}, 90, False),
        ({**GATES, "sparse": SparseStage(learning_rate=5e-4, gate_rate=50.0)}, 90, False),
        ({**GATES, "sparse": SparseStage(learning_rate=5e-4, optimizer="sgd")}, 90, False),
        ({}, 90, False),  # weights near 0 need not go far
    ],
)
def test_gates_that_cannot_reach_the_threshold_are_told_before_training(
    changes: dict[str, Any], steps: int, is_told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Recipe(**{"sparse": SparseStage(learning_rate=5e-4, epochs=3), **changes})
    PartialState()  # `compress` has it: of several processes, one warns
    warn_of_gates_that_cannot_arrive(settings, steps)
    assert ("Take sparse.epochs = 14 or more, or sparse.gate_rate = 44" in capsys.readouterr().err) == is_told


def test_gates_that_are_told_to_be_too_slow_do_not_arrive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what the warning asks for, they do."""
    rate = 2e-4
    slow, fast = (SparseStage(epochs=2, learning_rate=rate, gate_rate=gate_rate) for gate_rate in (30.0, 600.0))
    done = compress(recipe(sparse=slow, **GATES), tmp_path / "slow", [])
    assert "so nothing will be removed" in capsys.readouterr().err
    assert count_weights(done.masked, done.masks)[0] == count_weights(done.dense, {})[1]
    done = compress(recipe(sparse=fast, **GATES), tmp_path / "fast", [])
    assert "nothing will be removed" not in capsys.readouterr().err
    assert count_weights(done.masked, done.masks)[0] < count_weights(done.dense, {})[1]


def test_a_snapshot_of_no_layer_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    settings = recipe(sparse=SparseStage(epochs=1, snapshots=("fc2", "act1")))
    with pytest.raises(SettingError, match="no weight posterior on act1; they are on: fc1, fc2, fc3"):
        compress(settings, tmp_path / "run", [])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("granularity", ["weight", "gate", "both"])
def test_survivors_are_tuned_with_their_noise_at_fixed_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granularity: Any
) -> None:
    """The KL goes on at full weight, what is removed has neither mean nor noise, and the end is ordinary."""
    weights, noise = [], []
    real = loop.kl_coefficient_at

    def watched(stage: SparseStage, epoch: float) -> float:
        weights.append((stage.kl_coefficient, epoch))
        return real(stage, epoch)

    real_removal = finetuning.mask_posterior_

    def kept(model: nn.Module, masks: Any) -> None:
        real_removal(model, masks)
        noise.append((model, masks))

    monkeypatch.setattr(loop, "kl_coefficient_at", watched)
    monkeypatch.setattr(finetuning, "mask_posterior_", kept)
    structure: Any = "unstructured" if granularity == "weight" else "structured"
    settings = recipe(
        dense=Stage(epochs=2),
        finetune=FinetuneStage(epochs=2, variational=True),
        posterior=PosteriorSettings(granularity=granularity),
        masks=MaskSettings(structure=structure, ratio=0.5),
    )
    done = compress(settings, tmp_path / "run", [])
    assert len(weights) == 2 * (2 * PER_EPOCH + 2)  # every step and every record of both stages
    assert {weight for weight, _ in weights} == {0.1}
    ((model, masks),) = noise
    for name, layer in named_posteriors(model):
        if isinstance(layer, Variational):
            mask = masks[name]["weight"] == 0
            assert mask.any() and (layer.log_sigma2[mask] < -39).all() and (layer.weight[mask] == 0).all()
            assert (layer.log_sigma2[~mask] > -12).all()
    assert not is_variational(done.masked)
    for name, targets in done.masks.items():
        assert (done.masked.get_submodule(name).weight[targets["weight"] == 0] == 0).all()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["accuracy"] == evaluate(done.masked, done.data, done.data.holdout).accuracy
    assert rows[-1]["stage"] == "finetune" and rows[-1]["accuracy"] > 0.5


@pytest.mark.parametrize("variational", [False, True])
def test_deciding_again_from_a_posterior_equals_deciding_at_once(tmp_path: Path, variational: bool) -> None:
    tuning = FinetuneStage(epochs=1, variational=variational)
    compress(recipe(finetune=tuning, masks=MaskSettings(threshold=1.0)), tmp_path / "whole", [])
    compress(recipe(masks=MaskSettings(threshold=3.0)), tmp_path / "first", [])
    start = SparseStage(epochs=0, kl_coefficient=0.1, checkpoint=tmp_path / "first" / "posterior.safetensors")
    settings = recipe(dense=Stage(), sparse=start, finetune=tuning, masks=MaskSettings(threshold=1.0))
    compress(settings, tmp_path / "again", [])
    for name in ("masks", "baked", "checkpoint"):
        at_once, again = (load_tensors(tmp_path / folder / f"{name}.safetensors")[0] for folder in ("whole", "again"))
        assert at_once.keys() == again.keys()
        assert all(torch.equal(at_once[key], again[key]) for key in at_once), name


def test_a_posterior_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = svd.sparsify_(models.create_model(ModelSettings(arguments={"hidden": [5, 5]}), 10, 1, 8))
    path = tmp_path / "posterior.safetensors"
    save_tensors(small.state_dict(), path)
    with pytest.raises(ModelError, match=r"posterior.safetensors: does not fit .*fc1.log_sigma2 of shape \(5, 64\)"):
        compress(recipe(sparse=SparseStage(checkpoint=path)), tmp_path / "run", [])
    assert not (tmp_path / "run").exists()
