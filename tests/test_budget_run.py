"""A budget of `compress`: channels leave gradually, in the order of what they are worth for their cost."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.errors import ModelError, SettingError, TrainingError
from nni_sparsevd.measure import count_macs, count_parameters
from nni_sparsevd.nn import ChannelGate, named_posteriors
from nni_sparsevd.posterior import elements
from nni_sparsevd.recipe import BudgetSettings, DataSettings, FinetuneStage, ModelSettings, Recipe, SparseStage, Stage
from nni_sparsevd.regularize import choose_cutoffs, cost_left_at, start_natural_steps_, take_natural_steps_
from nni_sparsevd.settings import make_settings
from nni_sparsevd.training import compress
from nni_sparsevd.training.gradual_removal import GradualRemoval
from nni_sparsevd.training.loop import Interrupted

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
    with pytest.raises(ModelError, match="a gate of 16 channels met 1 rows in a batch of 4"):
        gates[0].take_curvature(len(IMAGES))
    assert gates[0].take_curvature(len(IMAGES)) is None  # taken once


@pytest.mark.parametrize("prior", ["log_uniform", "log_uniform_exact", "ard"])
@pytest.mark.parametrize("curvature", [1e-7, 1e-4, 1e-2, 10.0])
def test_the_variance_comes_to_rest_where_the_evidence_lower_bound_is_largest(prior: Any, curvature: float) -> None:
    """Against a grid: N / 2 * curvature * sigma^2 + c * KL is smallest at the variance that the steps arrive at."""
    gate = ChannelGate(1, svd.PosteriorSettings(prior=prior))
    gate.mu.data.fill_(0.7)
    n_train, coefficient = 1000, 2.0
    gate.observe_()
    for step in range(800):
        # Two samples whose gradients have this mean square.
        gate._observed = [torch.tensor([[1.2], [0.8]]).sqrt() * curvature**0.5 / 2]
        take_natural_steps_([gate], 2, n_train, coefficient, step)
    grid = torch.linspace(-12, 20, 8001, dtype=torch.float64)
    kl = elements.kl_elements(grid - 2 * np.log(0.7), prior)
    objective = n_train / 2 * curvature * grid.exp() + coefficient * kl
    best = grid[objective.argmin()].item()
    assert gate.log_sigma2.item() == pytest.approx(min(best, 20.0), abs=0.02)


# What leaves next.


def test_the_way_to_the_budget_is_that_of_zhu_and_gupta() -> None:
    assert [cost_left_at(0.25, progress) for progress in (0.0, 0.5, 1.0)] == [1.0, 0.25 + 0.75 / 8, 0.25]


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
    assert (record["kind"], record["fraction"]) == (kind, 0.5)
    assert record["reached"] / record["dense"] == pytest.approx(left, abs=0.01)
    widths = {layer.out_channels for layer in compressed.masked.modules() if isinstance(layer, nn.Conv2d)}
    assert len(widths) > 2 and all(width % 4 == 0 for width in widths - {6})  # 6: a pinned stem


def test_a_run_stopped_on_its_way_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compress(recipe(), tmp_path / "whole", []).masked.state_dict()
    cut, cuts = GradualRemoval.cut_, 0

    def stop_at_the_third(removal: GradualRemoval, *arguments: Any) -> None:
        nonlocal cuts
        cuts += 1
        if cuts == 3:
            raise Interrupted("here")
        cut(removal, *arguments)

    monkeypatch.setattr(GradualRemoval, "cut_", stop_at_the_third)
    with pytest.raises(Interrupted):
        compress(recipe(), tmp_path / "run", [])
    monkeypatch.undo()
    resumed = compress(recipe(), tmp_path / "run", [], resume=True).masked.state_dict()
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_budget_that_cannot_be_met_is_an_error_and_keeps_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"budget\.macs = 0\.01 was not met: 0\.\d+ of the dense network is left"):
        compress(recipe(budget=BudgetSettings(macs=0.01, cuts=2)), tmp_path / "run", [])
    assert (tmp_path / "run" / "posterior.safetensors").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"budget": {"macs": 0.5, "parameters": 0.5}}, "set one of them"),
        ({"budget": {"macs": 0.5}, "posterior": {"granularity": "weight"}}, "posterior.granularity = 'weight'"),
        ({"budget": {"macs": 0.5}, "masks": {"ratio": 0.5}}, "masks.ratio"),
        ({"budget": {"macs": 0.5}, "sparse": {"shrink_at": 6.0}}, "sparse.shrink_at"),
        ({"budget": {"macs": 0.5}, "sparse": {"epochs": 0}}, "sparse.epochs = 0"),
    ],
)
def test_contradictions_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_settings(Recipe, values)


def test_a_budget_asks_for_gates() -> None:
    assert make_settings(Recipe, {"budget": {"macs": 0.5}}).posterior.granularity == "gate"
    assert make_settings(Recipe, {}).posterior.granularity == "weight"


def test_a_stage_that_is_too_short_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"sparse\.epochs = 1.*take at least 4 epochs"):
        compress(recipe(sparse=SparseStage(epochs=1)), tmp_path / "run", [])
    assert not (tmp_path / "run").exists()
