"""A budget of `compress`: channels leave gradually, in the order of what they are worth for their cost."""

import copy
import itertools
import json
import math
import shutil
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.cli import main
from nni_sparsevd.errors import SettingError, SparseVDWarning, TrainingError
from nni_sparsevd.export import LatencyMeter, latency, open_exported
from nni_sparsevd.files import load_tensors
from nni_sparsevd.graph import as_arguments
from nni_sparsevd.measure import count_macs, count_parameters
from nni_sparsevd.nn import ChannelGate, named_posteriors
from nni_sparsevd.posterior import elements
from nni_sparsevd.recipe import (
    BudgetSettings,
    DataSettings,
    FinetuneStage,
    ModelSettings,
    QuantizeStage,
    Recipe,
    SparseStage,
    Stage,
)
from nni_sparsevd.regularize import (
    Budget,
    GradualPruner,
    GradualRemoval,
    Reach,
    choose_cutoffs,
    cost_left_at,
    count_gate_costs,
    measure_reach,
    plan_stretches,
    start_natural_steps_,
    take_natural_steps_,
)
from nni_sparsevd.report import write_report
from nni_sparsevd.results import find_network_folder, finish_run
from nni_sparsevd.results.runtimes import read_networks
from nni_sparsevd.settings import make_settings
from nni_sparsevd.training import (
    Compressed,
    Interrupted,
    Score,
    TunedLevel,
    compress,
    evaluate,
    loop,
    stage_context,
)
from nni_sparsevd.training.levels import Level, choose_level
from nni_sparsevd.training.network_files import write_network
from nni_sparsevd.training.twin import list_twin_stages

IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))


def gated_network() -> nn.Module:
    return svd.sparsify_(small_network(), granularity="gate", example_inputs=IMAGES)


def find_gates(model: nn.Module) -> list[ChannelGate]:
    return [module for _, module in named_posteriors(model) if isinstance(module, ChannelGate)]


def recipe(**parts: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": ModelSettings(name="lenet5_caffe"),
        "data": DataSettings(batch_size=50, limit=500, image_size=16),
        "dense": Stage(epochs=1, learning_rate=3e-3),
        "sparse": SparseStage(epochs=4, learning_rate=3e-3),
        "finetune": FinetuneStage(epochs=1),
        "budget": BudgetSettings(macs=0.4, cuts=3),
    }
    return Recipe(**{**values, **parts})


# Variances that follow the curvature.


def test_the_curvature_is_the_mean_squared_gradient_of_each_sample() -> None:
    model = gated_network().eval()  # batch norms by their running statistics: samples are independent
    gates = find_gates(model)
    for gate in gates:
        gate.train()  # draws, with next to no noise
        gate.log_sigma2.data.fill_(-40.0)
    start_natural_steps_(model)
    labels = torch.tensor([0, 1, 2, 3])
    nn.functional.cross_entropy(model(IMAGES), labels).backward()
    observed = [gate.take_curvature(len(IMAGES)) for gate in gates]
    expected = [torch.zeros_like(gate.mu) for gate in gates]
    for image, label in zip(IMAGES, labels, strict=True):  # d loss / d mu of one sample alone
        model.zero_grad()
        nn.functional.cross_entropy(model(image[None]), label[None]).backward()
        for total, gate in zip(expected, gates, strict=True):
            assert gate.mu.grad is not None
            total += gate.mu.grad.square() / len(IMAGES)
    for curvature, reference in zip(observed, expected, strict=True):
        assert curvature is not None
        torch.testing.assert_close(curvature, reference, rtol=1e-3, atol=1e-9)
    assert gates[0].take_curvature(1) is not None
    assert gates[0].take_curvature(1) is None  # taken once


def test_a_layer_that_sees_no_samples_has_the_curvature_of_the_whole_batch() -> None:
    """A gate on what is made of positions, against the mean square of the samples' gradients, which cancel."""
    torch.manual_seed(0)
    batch_size, batches = 7, 4000
    gate = ChannelGate(2)
    gate.observe_()
    positions = torch.randn(5, 2)  # 5 rows for 7 samples
    samples = torch.randn(batches, batch_size)
    observed = []
    for factors in samples:
        (factors.mean() * gate(positions).sum()).backward()
        observed.append(gate.take_curvature(batch_size))
    mean_square = (samples.square().mean() * positions.sum(0).square()).detach()
    torch.testing.assert_close(torch.stack(observed).mean(0), mean_square, rtol=0.1, atol=0)


def test_gates_that_take_natural_steps_draw_no_noise() -> None:
    torch.manual_seed(0)
    gate = ChannelGate(3)
    gate.log_sigma2.data.fill_(0.0)
    images = torch.randn(2, 3, 4, 4)
    assert not torch.equal(gate(images), images)
    start_natural_steps_(gate)
    gate(images).sum().backward()
    assert torch.equal(gate(images), images)
    observed = gate.take_curvature(2)  # of a mean over two samples
    assert observed is not None
    torch.testing.assert_close(observed, (2 * images.sum((2, 3))).square().mean(0))


@pytest.mark.parametrize("prior", ["log_uniform", "log_uniform_exact", "ard"])
def test_the_variance_comes_to_rest_where_the_evidence_lower_bound_is_largest(prior: Any) -> None:
    """Against a grid: N / 2 * curvature * sigma^2 + c * KL is smallest at the variance that the steps arrive at."""
    curvatures = torch.tensor([1e-7, 1e-4, 1e-2, 10.0])  # one for each channel
    gate = ChannelGate(len(curvatures), svd.PosteriorSettings(prior=prior))
    gate.mu.data.fill_(0.7)
    n_train, coefficient = 1000, 2.0
    gate.observe_()
    for step in range(800):
        # Two samples whose gradients have this mean square.
        gate._observed = [torch.tensor([[1.2], [0.8]]).sqrt() * curvatures.sqrt() / 2]
        take_natural_steps_([gate], 2, n_train, coefficient, step)
    grid = torch.linspace(-12, 20, 8001, dtype=torch.float64)
    kl = elements.kl_elements(grid - 2 * np.log(0.7), prior)
    objectives = n_train / 2 * curvatures.double()[:, None] * grid.exp() + coefficient * kl
    best = grid[objectives.argmin(1)].clamp(max=20.0).float()
    torch.testing.assert_close(gate.log_sigma2.detach(), best, rtol=0, atol=0.02)


def test_a_channel_that_seldom_fires_is_worth_what_it_is_worth_on_average() -> None:
    """Channels of one mean curvature have one variance, whether it comes evenly or from a single batch."""
    gate = ChannelGate(2)
    gate.observe_()
    for step in range(40):
        seldom = 40.0 if step == 30 else 0.0
        gate._observed = [torch.tensor([1.0, seldom]).sqrt().mul(1e-3).expand(2, 2) / 2]
        take_natural_steps_([gate], 2, 1000, 1.0, step)
    evenly, seldom = gate.log_sigma2.tolist()
    assert evenly == pytest.approx(seldom, abs=0.1)


# What leaves next.


def test_the_way_to_the_budget_is_that_of_zhu_and_gupta() -> None:
    assert [cost_left_at(0.25, progress) for progress in (0.0, 0.5, 1.0)] == [1.0, 0.25 + 0.75 / 8, 0.25]


def test_levels_share_the_steps_by_the_logarithm_of_what_they_take_away() -> None:
    first, second = plan_stretches((0.5, 0.125), 601, reached_at=0.5, cuts=4)
    assert (first.first, first.last_cut, first.end) == (0, 100, 200)
    assert (second.first, second.last_cut, second.end) == (200, 400, 601)
    assert [step for step in range(602) if first.is_due(step)] == [25, 50, 75, 100]
    assert [step for step in range(602) if second.is_due(step)] == [250, 300, 350, 400]
    left = [first.part_left_at(step) for step in (0, 50, 100)] + [second.part_left_at(step) for step in (200, 300, 400)]
    assert left == pytest.approx([1, 0.5 + 0.5 / 8, 0.5, 0.5, 0.125 + 0.375 / 8, 0.125])


def test_each_level_has_the_whole_schedule_of_the_rate() -> None:
    stretches = plan_stretches((0.5, 0.125), 601, reached_at=0.5, cuts=4)
    removal = GradualRemoval("parameters", stretches, small_network(), IMAGES, 8)
    assert [removal.find_progress(step) for step in (0, 100, 199)] == [0, 0.5, 199 / 200]
    assert [removal.find_progress(step) for step in (200, 600)] == [0, 400 / 401]


def test_channels_leave_by_their_worth_over_their_cost_in_blocks() -> None:
    model = gated_network()
    first, second = find_gates(model)
    with torch.no_grad():
        first.log_sigma2.copy_(torch.linspace(-2, -1, 16))
        second.log_sigma2.copy_(torch.linspace(-6, -5, 24))  # worth more, and each channel costs less
    everything = float(count_macs(svd.bake_(gated_network()), IMAGES[:1]))
    assert choose_cutoffs(model, IMAGES, "macs", 0.0, 8) == {}
    cutoffs = choose_cutoffs(model, IMAGES, "macs", 1.0, 8)
    assert set(cutoffs) == {first}
    assert int((first.log_alpha() >= cutoffs[first]).sum()) == 8
    cutoffs = choose_cutoffs(model, IMAGES, "macs", everything, 8)
    lost = [int((gate.log_alpha() >= cutoffs[gate]).sum()) for gate in (first, second)]
    assert lost == [8, 16]  # the last block of each stays
    assert int((first.log_alpha() >= choose_cutoffs(model, IMAGES, "parameters", 1.0, 5)[first]).sum()) == 1  # 16 -> 15


def test_a_gate_costs_what_its_removal_saves_also_where_channels_leave_in_groups() -> None:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU(), nn.Conv2d(16, 8, 1)]
    dense = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(128, 5))
    model = svd.sparsify_(copy.deepcopy(dense), granularity="gate", example_inputs=IMAGES)
    costs = count_gate_costs(model, IMAGES, "macs")
    assert [len(gate.mu) for gate in costs] == [4, 4, 4, 8]  # positions in a group, groups, positions, channels
    for place, (gate, cost) in enumerate(costs.items()):
        cut = copy.deepcopy(model)
        with torch.no_grad():
            find_gates(cut)[place].log_sigma2[0] = 9.0
        small, _ = svd.shrink(cut, IMAGES)
        assert cost / len(gate.mu) == count_macs(dense, IMAGES[:1]) - count_macs(small, IMAGES[:1])


class WindowNetwork(nn.Module):
    """Layers on four windows of each image, which stand in the batch dimension, as in timm's Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(1, 8, 1), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2).reshape(-1, 16, 8)
        tokens = self.second(self.first(tokens).relu()).relu().reshape(-1, 64, 8)
        return self.head(tokens.mean(1))


def test_windows_in_the_batch_dimension_cost_what_they_cost() -> None:
    model = svd.sparsify_(WindowNetwork(), granularity="gate", example_inputs=IMAGES)
    costs = count_gate_costs(model, IMAGES, "macs")
    per_channel = [cost / len(gate.mu) for gate, cost in costs.items()]
    assert per_channel == [64 * (8 + 8)]  # of the first layer of the two; the code of the network fixes the others


class AttentionNetwork(nn.Module):
    """Two heads, queries and keys of 4 dimensions, values of 6; the products are operators of their own, or one."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 12), nn.Linear(12, 3)
        self.heads, self.fused = 2, fused

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1, 2)
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.mT).softmax(-1) @ v
        y: Tensor = self.head(mixed.transpose(1, 2).flatten(2)).mean(1)
        return y


@pytest.mark.parametrize("fused", [False, True])
def test_a_gate_costs_what_products_of_tensors_spend_on_it_too(fused: bool) -> None:
    model = svd.sparsify_(AttentionNetwork(fused), granularity="gate", example_inputs=IMAGES)
    costs = {len(gate.mu): cost for gate, cost in count_gate_costs(model, IMAGES, "macs").items()}
    # 8 tokens of 8 dimensions: each dimension of a head is written for each token, and multiplied for each pair.
    assert costs[4] / 4 == 2 * 2 * (8 * 8 + 8 * 8 / 2)  # of queries and keys, in two heads
    assert costs[6] / 6 == 2 * (8 * 8 + 8 * 8 + 8 * 3)  # of values
    assert costs[2] / 2 == (costs[4] + costs[6]) / 2  # a head has all of its dimensions


class ShiftedNetwork(nn.Module):
    """A parameter adds to what the first layer writes, place by place: its channels do not die with their gate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 1), nn.Conv2d(16, 64, 3, padding=1)
        self.head, self.shift = nn.Linear(64, 4), nn.Parameter(torch.zeros(1, 16, 8, 8))

    def forward(self, images: Tensor) -> Tensor:
        x = self.second(self.first(images) + self.shift).relu()
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def test_gates_that_remove_nothing_are_named_and_others_meet_the_budget() -> None:
    torch.manual_seed(0)
    model = ShiftedNetwork()
    with pytest.warns(SparseVDWarning, match=r"channels of first \(16\) stay, even where their gates close"):
        pruner = GradualPruner(model, IMAGES, Budget(fraction=0.5), n_train=100, steps=40, round_to=4, cuts=2)
    with torch.no_grad():
        model.shift.normal_()  # as training would change it
        model.first.gate.log_sigma2.copy_(torch.linspace(8, 9, 16))  # worth the least
        model.second.gate.log_sigma2.copy_(torch.linspace(-9, -8, 64))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(40):
        pruner.remove_(optimizer)
    assert pruner.part_left() <= 0.5 and model.first.out_channels == 16


def test_of_channels_without_influence_one_stays() -> None:
    model = gated_network()
    gates = find_gates(model)
    gates[1].observe_()
    for step in range(20):
        gates[1]._observed = [torch.zeros(4, 24)]
        take_natural_steps_([gates[1]], 4, 1000, 1.0, step)
    everything = float(count_macs(svd.bake_(gated_network()), IMAGES[:1]))
    cutoffs = choose_cutoffs(model, IMAGES, "macs", everything, 1)
    assert int((gates[1].log_alpha() < cutoffs[gates[1]]).sum()) == 1


@pytest.mark.parametrize(("left", "leaves"), [(24, 1), (12, 0)])
def test_channels_of_a_gate_that_has_few_left_count_more(left: int, leaves: int) -> None:
    """Both gates cost the same per channel; the second is worth less by a third, or more, where half of it has gone."""
    model = gated_network()
    gates = find_gates(model)
    gates[1].channels_at_first = 24 * 24 // left
    costs = count_gate_costs(model, IMAGES, "macs")
    per_channel = [costs[gate] / len(gate.mu) for gate in gates]
    with torch.no_grad():
        gates[0].log_sigma2.fill_(-3 - math.log(1.5 * per_channel[0] / per_channel[1]))
        gates[1].log_sigma2.fill_(-3)
    assert set(choose_cutoffs(model, IMAGES, "macs", 1.0, 8)) == {gates[leaves]}


# Whole runs.


@pytest.mark.parametrize(("kind", "count"), [("macs", count_macs), ("parameters", count_parameters)])
def test_a_run_meets_its_budget_in_multiples(tmp_path: Path, kind: str, count: Any) -> None:
    settings = recipe(
        model=ModelSettings(name="resnet10t", arguments={"channels": [16, 16, 24, 24], "stem_width": 8}),
        budget=make_settings(BudgetSettings, {kind: 0.5, "cuts": 3, "round_to": 4}),
    )
    compressed = compress(settings, tmp_path / "run", [])
    arguments = (compressed.example_inputs,) if kind == "macs" else ()
    left = count(compressed.masked, *arguments) / count(compressed.dense, *arguments)
    assert 0.4 < left <= 0.525
    record = json.loads((tmp_path / "run" / "budget.json").read_text())
    (level,) = record["levels"]
    assert (record["kind"], level["part"]) == (kind, 0.5)
    assert level["reached"] / record["dense"] == pytest.approx(left, abs=0.01)
    widths = {layer.out_channels for layer in compressed.masked.modules() if isinstance(layer, nn.Conv2d)}
    assert len(widths) > 2 and all(width % 4 == 0 for width in widths - {6})  # 6: a pinned stem


def test_dead_channels_of_a_pre_trained_network_stay_where_they_fill_a_multiple(tmp_path: Path) -> None:
    network = timm.create_model("lenet5_caffe", num_classes=10, img_size=16)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for writer, reader in itertools.pairwise(layers):  # neither end of such a channel has a gradient
            writer.weight[0] = 0
            writer.bias[0] = 0
            reader.weight[:, 0] = 0
    svd.save(network, tmp_path / "pre_trained.safetensors")
    model = ModelSettings(name="lenet5_caffe", checkpoint=tmp_path / "pre_trained.safetensors")
    settings = recipe(model=model, dense=Stage(epochs=0), budget=BudgetSettings(macs=0.9, cuts=1, round_to=2))
    compressed = compress(settings, tmp_path / "run", [])
    finish_run(compressed, tmp_path / "run")
    small = svd.load(tmp_path / "run" / "small.safetensors")
    widths = [len(layer.weight) for layer in small.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert widths != [20, 50, 500, 10] and not any(width % 2 for width in widths)


LEVELS = {
    "data": DataSettings(batch_size=50, limit=400, image_size=16),
    "sparse": SparseStage(epochs=11, learning_rate=1e-3),
    "finetune": FinetuneStage(epochs=(1, 2), learning_rate=(5e-4, 1e-3)),
    "budget": BudgetSettings(macs=(0.6, 0.3), cuts=2),
    "checkpoint_minutes": 1e-9,
}
"""7 steps an epoch; the level 0.6 is left after 33 of the 77 steps of the sparse stage."""


def compress_whole(folder: Path) -> Compressed:
    return compress(recipe(**LEVELS), folder, [])


def read_all(folder: Path) -> dict[str, object]:
    """All that a run leaves, less times and places in it."""
    left: dict[str, object] = {}
    for path in folder.rglob("*.safetensors"):
        tensors, _ = load_tensors(path)
        name = path.relative_to(folder)
        left |= {f"{name} {key}": value.contiguous().numpy().tobytes() for key, value in tensors.items()}
    for name in ("budget", "log_alpha"):
        left[name] = json.loads((folder / f"{name}.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    left["rows"] = [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in rows]
    return left


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Compressed, dict[str, object]]:
    """A run of two levels, and what was in its folder before the end."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "levels"
    compressed = compress_whole(folder)
    left = read_all(folder)
    finish_run(compressed, folder)
    return folder, compressed, left


class PowerFailureError(Exception):
    """Not one of ours."""


def run_for(monkeypatch: pytest.MonkeyPatch, folder: Path, steps: int, **changes: Any) -> None:
    """Begin or go on, and fail at this step from now."""
    real, count = loop.set_learning_rate, itertools.count(1)

    def step_or_fail(optimizer: torch.optim.Optimizer, rate: float) -> None:
        if next(count) == steps:
            raise PowerFailureError
        real(optimizer, rate)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "set_learning_rate", step_or_fail)
        with pytest.raises(PowerFailureError):
            compress(recipe(**{**LEVELS, **changes}), folder, [], resume=folder.exists())


def test_a_run_of_levels_stopped_anywhere_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: tuple[Path, Compressed, dict[str, object]]
) -> None:
    """On the way to either level, between them, and in the fine-tuning of either, which follow 7 + 77 steps."""
    _, compressed, whole = finished
    folder = tmp_path / "run"
    for steps in (15, 24, 20, 30, 3, 12):  # after 14, 37, 56, 85, 87 and 98 of 105 steps
        run_for(monkeypatch, folder, steps)
    resumed = compress(recipe(**LEVELS), folder, [], resume=True)
    left = read_all(folder)
    assert sorted(key for key in whole.keys() | left.keys() if whole.get(key) != left.get(key)) == []
    assert resumed.chosen.level.part == compressed.chosen.level.part
    for one, other in zip(compressed.levels, resumed.levels, strict=True):
        assert one.held_out == other.held_out
        states = one.masked.state_dict(), other.masked.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_run_killed_while_it_writes_a_level_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: tuple[Path, Compressed, dict[str, object]]
) -> None:
    for name in ("posterior", "tuned"):
        with monkeypatch.context() as patch:

            def write_or_fail(model: nn.Module, path: Path, *, resized: bool = False, name: str = name) -> None:
                write_network(model, path, resized=resized)
                if path == tmp_path / "run" / "levels" / "0.6" / f"{name}.safetensors":
                    raise PowerFailureError

            patch.setattr(stage_context, "write_network", write_or_fail)
            with pytest.raises(PowerFailureError):
                compress(recipe(**LEVELS), tmp_path / "run", [], resume=(tmp_path / "run").exists())
    compress(recipe(**LEVELS), tmp_path / "run", [], resume=True)
    left, whole = read_all(tmp_path / "run"), finished[2]
    assert sorted(key for key in whole.keys() | left.keys() if whole.get(key) != left.get(key)) == []


def test_a_finished_run_of_levels_is_tuned_for_integers_wherever_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: tuple[Path, Compressed, dict[str, object]]
) -> None:
    """In the stage of either level, each of 7 steps; what was exported before is forgotten, and what is cut stays."""
    tuning = QuantizeStage(aware=True, epochs=1)
    whole, stopped = (Path(shutil.copytree(finished[0], tmp_path / name)) for name in ("whole", "stopped"))
    (whole / "exports.json").write_text("{}")
    compressed = compress(recipe(**LEVELS, quantize=tuning), whole, [], resume=True)
    assert not (whole / "exports.json").exists()
    for steps in (4, 8):
        run_for(monkeypatch, stopped, steps, quantize=tuning)
    compress(recipe(**LEVELS, quantize=tuning), stopped, [], resume=True)
    expected, left = read_all(whole), read_all(stopped)
    assert sorted(key for key in expected.keys() | left.keys() if expected.get(key) != left.get(key)) == []
    for before, after in zip(finished[1].levels, compressed.levels, strict=True):
        states = before.masked.state_dict(), after.masked.state_dict()
        assert states[0].keys() == states[1].keys()
        for name, value in states[0].items():
            assert value.shape == states[1][name].shape and bool((states[1][name][value == 0] == 0).all())
            assert not torch.equal(value, states[1][name])


def test_each_level_has_a_network_of_its_cost(finished: tuple[Path, Compressed, dict[str, object]]) -> None:
    folder, compressed, _ = finished
    front = json.loads((folder / "result.json").read_text())["front"]
    assert [row["level"] for row in front] == [None, 0.6, 0.3]
    dense = count_macs(compressed.dense, compressed.example_inputs[:1])
    assert front[0]["macs"] == dense
    for tuned, row in zip(compressed.levels, front[1:], strict=True):
        small = svd.load(folder / "levels" / f"{row['level']}" / "small.safetensors")
        assert count_macs(small, compressed.example_inputs[:1]) == row["macs"] <= row["level"] * dense
        assert row["held_out"] == evaluate(small, compressed.data, compressed.data.holdout).accuracy
        assert row["test"] == evaluate(small, compressed.data, compressed.data.test).accuracy
        assert row["chosen"] == (tuned is compressed.chosen)
    assert front[1]["macs"] > front[2]["macs"]


def test_each_level_is_tuned_for_its_own_epochs_at_its_own_rate(
    finished: tuple[Path, Compressed, dict[str, object]],
) -> None:
    folder, _, _ = finished
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates: dict[str, list[float]] = {row["stage"]: [] for row in rows}
    for row in rows:
        rates[row["stage"]].append(row["learning_rate"])
    # The rate falls to 0 over a stage, linearly: after 6 of 7 steps, or of 14.
    assert rates["finetune_0.6"] == pytest.approx([5e-4 / 7])
    assert rates["finetune_0.3"] == pytest.approx([1e-3 * 8 / 14, 1e-3 / 14])
    assert "1 to 2 of fine-tuning" in write_report(folder).with_suffix(".md").read_text()


def test_a_twin_is_tuned_for_as_long_as_the_longest_level_at_the_rate_of_the_largest() -> None:
    stages = list_twin_stages(recipe(**LEVELS, twin=True))
    assert (stages["twin_finetune"].epochs, stages["twin_finetune"].learning_rate) == (2, 5e-4)


def test_a_channel_costs_what_is_spent_on_it_where_it_is_written_and_read(
    finished: tuple[Path, Compressed, dict[str, object]],
) -> None:
    folder, _, _ = finished
    for level in ("0.6", "0.3"):
        layers = json.loads((folder / "levels" / level / "result.json").read_text())["layers"]
        writer, reader = layers[:2]
        macs = [layer["cost"]["shrunk"]["macs"] for layer in (writer, reader)]
        assert writer["channel_macs"] * writer["outputs"] == pytest.approx(sum(macs))
        assert writer["loss_rise"] > 0


def test_the_network_of_a_run_is_the_smallest_that_is_accurate_enough() -> None:
    def choose(*accuracies: float) -> float | None:
        tuned = []
        for part, accuracy in zip((0.5, 0.25, 0.125), accuracies, strict=True):
            tuned.append(TunedLevel(Level(part, Path()), nn.Identity(), {}, accuracy))
        return choose_level(tuned, 0.9, 0.01).level.part

    assert [choose(0.9, 0.9, 0.8), choose(0.8, 0.9, 0.92), choose(0.85, 0.86, 0.5)] == [0.25, 0.125, 0.25]
    # A larger level that was trained for longer than the dense network says what there is to lose.
    assert [choose(0.95, 0.945, 0.92), choose(0.95, 0.93, 0.92)] == [0.25, 0.5]


def test_the_level_is_chosen_by_a_flag(
    finished: tuple[Path, Compressed, dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, compressed, _ = finished
    Image.new("L", (16, 16)).save(tmp_path / "photo.png")
    chosen = compressed.chosen.level.part
    for level in (None, 0.9 - (chosen or 0)):  # 0.6 and 0.3, in either order
        flags = [] if level is None else [f"--level={level:g}"]
        file = tmp_path / f"{level}.pt2"
        assert main(["export", str(folder), f"--to={file}", *flags]) == 0
        assert json.loads((folder / "exports.json").read_text())[file.name]["level"] == pytest.approx(level or chosen)
        exported = sum(tensor.numel() for tensor in torch.export.load(file).state_dict.values())
        small = svd.load(folder / "levels" / f"{level or chosen:g}" / "small.safetensors")
        assert exported == sum(tensor.numel() for tensor in small.state_dict().values())
        assert main(["predict", str(folder), str(tmp_path / "photo.png"), *flags]) == 0
        assert main(["check", str(folder), *flags]) == 0
    capsys.readouterr()
    for command in (["check", str(folder)], ["predict", str(folder), "x"], ["export", str(folder), "--to=x.onnx"]):
        assert main([*command, "--level=0.4"]) == 2
        assert "--level=0.4: the run in" in capsys.readouterr().err
    for command in (["predict", "a.safetensors", "x"], ["export", "a.safetensors", "--to=x.onnx"]):
        assert main([*command, "--level=0.4"]) == 2


def test_what_is_measured_are_the_levels_of_the_result(
    finished: tuple[Path, Compressed, dict[str, object]], tmp_path: Path
) -> None:
    """A run that went on with other settings may have left out a level, whose folder is still there."""
    folder = Path(shutil.copytree(finished[0], tmp_path / "run"))
    result = json.loads((folder / "result.json").read_text())
    result["front"] = [row for row in result["front"] if row["level"] != 0.3]
    (folder / "result.json").write_text(json.dumps(result))
    assert list(read_networks(folder, finished[1].data)) == ["dense", "shrunk 0.6"]


SHORT = {
    "dense": Stage(),
    "sparse": SparseStage(epochs=5),
    "finetune": FinetuneStage(epochs=1),
    "data": DataSettings(batch_size=10, limit=300, image_size=16),
}


def let_be_scored_by(score: Callable[..., Score], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make up the accuracy of the dense network and of the levels."""
    monkeypatch.setattr(stage_context, "evaluate", score)


def test_a_tolerance_finds_the_smallest_network_within_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The accuracy is made up: it falls where less than half of the 56,080 parameters is left."""

    def score(model: nn.Module, data: object, split: Sized) -> Score:
        parameters = count_parameters(model)
        return Score(0.9 if parameters > 28000 else 0.89 if parameters > 8000 else 0.5, 0.0, len(split))

    let_be_scored_by(score, monkeypatch)
    monkeypatch.setattr("nni_sparsevd.recipe.budget.LADDER", (0.5, 0.25, 0.125))
    settings = recipe(**SHORT, budget=BudgetSettings(tolerance=0.02, cuts=2), twin=True)
    compressed = compress(settings, tmp_path / "run", [])
    accuracies = [tuned.held_out for tuned in compressed.levels]
    assert accuracies[-1] == 0.5 and min(accuracies[:-1]) == 0.89  # what is out of the tolerance ends the search
    assert compressed.chosen is compressed.levels[-2] and not compressed.missed
    assert len(accuracies) < len(settings.budget.levels)
    again = compress(settings, tmp_path / "run", [], resume=True)
    assert [tuned.held_out for tuned in again.levels] == accuracies
    for one, other in zip(compressed.levels, again.levels, strict=True):
        for name, value in one.masked.state_dict().items():
            assert torch.equal(value, other.masked.state_dict()[name])


def test_a_search_goes_by_the_most_accurate_network_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dense network was trained too little: half of it has 0.8, a quarter 0.7, which is better than dense, too."""

    def score(model: nn.Module, data: object, split: Sized) -> Score:
        parameters = count_parameters(model)
        return Score(0.6 if parameters > 50000 else 0.8 if parameters > 8000 else 0.7, 0.0, len(split))

    let_be_scored_by(score, monkeypatch)
    monkeypatch.setattr("nni_sparsevd.recipe.budget.LADDER", (0.5, 0.25, 0.125))
    compressed = compress(recipe(**SHORT, budget=BudgetSettings(tolerance=0.02, cuts=2)), tmp_path / "run", [])
    assert [tuned.held_out for tuned in compressed.levels] == [0.8, 0.7]
    assert compressed.chosen is compressed.levels[0]


def test_a_tolerance_that_no_network_keeps_is_an_error_after_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_be_scored_by(lambda model, data, split: Score(count_parameters(model) / 1e6, 0.0, 1), monkeypatch)
    monkeypatch.setattr("nni_sparsevd.recipe.budget.LADDER", (0.5, 0.25))
    settings = recipe(**SHORT, budget=BudgetSettings(tolerance=0.001, cuts=2))
    compressed = compress(settings, tmp_path / "run", [])
    assert len(compressed.levels) == 1
    assert "budget.tolerance = 0.001: no network is accurate enough" in compressed.missed


def test_a_budget_of_latency_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that never says the same twice: a resumed run still ends with the same network."""
    readings = itertools.count()

    def make_meter(dense: nn.Module, example_inputs: Tensor) -> Callable[[nn.Module], float]:
        macs = count_macs(dense, example_inputs)

        def measure(model: nn.Module) -> float:
            jitter = 1 + 0.02 * (next(readings) % 7 - 3) / 3
            return (0.2 + 0.8 * count_macs(model, example_inputs) / macs) * jitter

        return measure

    settings = recipe(budget=BudgetSettings(latency=0.5, cuts=3))
    with pytest.raises(SettingError, match=r"budget\.latency: compress needs make_meter"):
        compress(settings, tmp_path / "none", [])
    whole = compress(settings, tmp_path / "whole", [], make_meter=make_meter)
    dense, left = (count_macs(model, whole.example_inputs) for model in (whole.dense, whole.masked))
    assert 0.2 + 0.8 * left / dense < 1.05 * 0.5
    account = json.loads((tmp_path / "whole" / "budget.json").read_text())
    assert account["kind"] == "latency in onnxruntime" and account["levels"][0]["reached"] < 1.05 * 0.5
    cut = GradualRemoval.cut_

    def cut_and_fail(removal: GradualRemoval, *arguments: Any) -> None:
        cut(removal, *arguments)
        raise Interrupted("before the checkpoint")

    measured = json.loads((tmp_path / "whole" / "latency.json").read_text())
    monkeypatch.setattr(GradualRemoval, "cut_", cut_and_fail)
    with pytest.raises(Interrupted):
        compress(settings, tmp_path / "run", [], make_meter=make_meter)
    monkeypatch.undo()
    before = json.loads((tmp_path / "run" / "latency.json").read_text())
    assert list(before) == list(measured)[: len(before)] != []
    compress(settings, tmp_path / "run", [], resume=True, make_meter=make_meter)
    after = json.loads((tmp_path / "run" / "latency.json").read_text())
    assert before.items() <= after.items()


def test_a_meter_says_what_a_runtime_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two networks of one layer, the second with a thirty-second of the multiplications.

    How much faster it is depends on the processor and on what else it does, so only the direction is asserted.
    """
    monkeypatch.setattr(latency, "ROUNDS", 4)
    images = torch.randn(1, 64, 24, 24)
    large, small = (nn.Conv2d(64, channels, 3, padding=1).eval() for channels in (256, 8))
    for runtime in ("pytorch", "onnxruntime"):
        assert 0 < LatencyMeter(runtime, large, images).measure_part(small) < 1
        assert LatencyMeter(runtime, small, images).measure_part(large) > 1
    with pytest.raises(SettingError, match="runtime 'abacus': there are onnxruntime"):
        LatencyMeter("abacus", large, images)


def test_a_meter_compares_integers_with_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that gives each byte of a file a second, a part of the time is one of the bytes."""
    opened: list[bytes] = []
    seconds: dict[nn.Module, int] = {}

    def open_and_note(path: Path) -> nn.Module:
        opened.append(path.read_bytes())
        network = open_exported(path)
        seconds[network] = len(opened[-1])
        return network

    def run(network: nn.Module, arguments: Any, calls: int) -> float:
        arguments.call(network)
        return float(calls * seconds[network])

    monkeypatch.setattr(latency, "open_exported", open_and_note)
    monkeypatch.setattr(latency, "_run", run)
    images = torch.randn(1, 64, 24, 24)
    large, small = (nn.Conv2d(64, channels, 3, padding=1).eval() for channels in (256, 64))
    part = LatencyMeter("onnxruntime", large, images, int8=True).measure_part(small)
    assert part == pytest.approx(len(opened[1]) / len(opened[0]))
    # A byte a weight, and the names of the operators that make integers.
    assert all(b"QuantizeLinear" in content for content in opened)
    assert all(len(content) < 2.0 * weights for content, weights in zip(opened, (147_456, 36_864), strict=True))
    with pytest.raises(SettingError, match="'pytorch' has no int8"):
        LatencyMeter("pytorch", large, images, int8=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"macs": 0.5, "precision": "int8"}, "is for budget.latency, which is not set"),
        ({"latency": 0.5, "precision": "int8", "runtime": "pytorch"}, "PyTorch has no int8 here"),
    ],
)
def test_a_precision_that_nothing_would_be_measured_in_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        make_settings(BudgetSettings, settings)


def test_one_bad_reading_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is removed for it would not come back."""
    meter = LatencyMeter("pytorch", nn.Linear(8, 8), torch.zeros(1, 8))
    readings = iter([0.5, 1.17, 0.48])
    monkeypatch.setattr(latency, "_compare", lambda *_: next(readings))
    assert meter.measure_part(nn.Linear(8, 8)) == 0.5


def test_a_disturbed_turn_does_not_make_the_turns_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call takes a millisecond, and the first turn of each length a tenth of a second more."""
    seen: set[int] = set()

    def run(network: nn.Module, arguments: Any, calls: int) -> float:
        disturbance = 0.0 if calls in seen else 0.1
        seen.add(calls)
        return disturbance + 1e-3 * calls

    monkeypatch.setattr(latency, "_run", run)
    assert latency._count_calls(nn.Identity(), as_arguments(IMAGES)) == 16


def test_a_budget_out_of_reach_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    message = r"budget\.macs = 0\.01 cannot be met: once every channel of lenet5_caffe that may go has gone, 0\.\d+ of"
    with pytest.raises(SettingError, match=message):
        compress(recipe(budget=BudgetSettings(macs=0.01, cuts=2)), tmp_path / "run", [])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("kind", "count"), [("macs", count_macs), ("parameters", count_parameters)])
def test_the_least_that_can_be_left_is_what_a_network_of_single_blocks_costs(kind: Any, count: Any) -> None:
    model = gated_network()
    before = copy.deepcopy(model.state_dict())
    smallest = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    smallest.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)])
    arguments = (IMAGES[:1],) if kind == "macs" else ()
    expected = count(smallest, *arguments) / count(small_network(), *arguments)
    assert measure_reach(model, IMAGES, kind, 8) == Reach(expected, ())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_budget_that_was_not_met_is_an_error_and_keeps_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What can be reached in latency is not known before.
    monkeypatch.setattr("nni_sparsevd.training.starting_network.measure_reach", lambda *_: Reach(0.0, ()))
    with pytest.raises(TrainingError, match=r"budget\.macs = 0\.01 was not met: 0\.\d+ of the dense network is left"):
        compress(recipe(budget=BudgetSettings(macs=0.01, cuts=2)), tmp_path / "run", [])
    assert (tmp_path / "run" / "posterior.safetensors").exists()


def test_levels_that_are_met_are_finished_where_another_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {
        "model.name": "lenet5_caffe",
        "data.batch_size": 25,
        "data.limit": 300,
        "data.image_size": 16,
        "sparse.epochs": 20,
        "budget.macs": "[0.5,0.02]",
        "budget.cuts": 2,
    }
    typed = [f"--{key}={value}" for key, value in flags.items()]
    assert main(["compress", f"--out={tmp_path / 'run'}", *typed]) == 1
    printed = capsys.readouterr()
    assert "budget.macs = 0.02 cannot be met" in printed.err  # said before training
    assert "budget.macs = 0.02 was not met" in printed.err
    assert "Budget: 0." in printed.out and "0.5, 0.02 were allowed" in printed.out
    assert (find_network_folder(tmp_path / "run") / "small.safetensors").exists()
    assert not (tmp_path / "run" / "levels" / "0.02" / "small.safetensors").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"budget": {"macs": 0.5, "parameters": 0.5}}, "set one of them"),
        ({"budget": {"macs": [0.5, 0.25, 0.5]}}, r"one part or several different ones, found \[0.5, 0.5, 0.25\]"),
        ({"budget": {"macs": []}}, "one part or several different ones"),
        ({"budget": {"macs": 0.5}, "masks": {"threshold": 2.0}}, "masks.threshold"),
        ({"budget": {"macs": 0.5}, "posterior": {"granularity": "weight"}}, "posterior.granularity = 'weight'"),
        ({"budget": {"macs": 0.5}, "posterior": {"threshold": 2.0}}, "posterior.threshold = 2"),
        ({"budget": {"macs": 0.5}, "masks": {"ratio": 0.5}}, "masks.ratio"),
        ({"budget": {"macs": 0.5}, "masks": {"remember_norms": True}}, "masks.remember_norms"),
        ({"budget": {"macs": 0.5}, "sparse": {"shrink_at": 6.0}}, "sparse.shrink_at"),
        ({"budget": {"macs": 0.5}, "sparse": {"epochs": 0}}, "sparse.epochs = 0"),
        ({"finetune": {"epochs": [1, 2]}}, r"finetune.epochs = \[1, 2\]: .* one for each of them, .*; there is 1"),
        (
            {"budget": {"macs": [0.5, 0.2]}, "finetune": {"learning_rate": [1e-3]}},
            r"finetune.learning_rate = \[0.001\]: .* from large to small; there are 2",
        ),
        (
            {"budget": {"macs": [0.2, 0.5]}, "finetune": {"epochs": [1, 2]}},
            r"from the largest level to the smallest: write budget.macs = \[0.5, 0.2\] in that order",
        ),
    ],
)
def test_contradictions_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_settings(Recipe, values)


def test_a_budget_asks_for_gates() -> None:
    assert make_settings(Recipe, {"budget": {"macs": 0.5}}).posterior.granularity == "gate"
    assert make_settings(Recipe, {}).posterior.granularity == "weight"


@pytest.mark.parametrize(("levels", "accumulate", "epochs"), [(0.4, 1, 4), (0.4, 3, 11), ((0.5, 0.25, 0.125), 1, 11)])
def test_a_stage_that_is_too_short_is_refused_before_training(
    tmp_path: Path, levels: Any, accumulate: int, epochs: int
) -> None:
    """Of nine batches in an epoch; three for a step leave three steps."""
    short = SparseStage(epochs=epochs - 1, accumulate=accumulate)
    with pytest.raises(SettingError, match=rf"sparse\.epochs = {epochs - 1}: .*take at least {epochs} epochs"):
        compress(recipe(sparse=short, budget=BudgetSettings(macs=levels)), tmp_path / "run", [])
    assert not (tmp_path / "run").exists()
