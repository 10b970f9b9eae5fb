"""How a stage moves: the weight of the KL, the learning rate, the seeds, and the optimizer's groups."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.errors import SettingError
from nni_sparsevd.recipe import SparseStage, Stage
from nni_sparsevd.training import build_optimizer, derive_seed, kl_coefficient_at, learning_rate_at, set_learning_rate

# Schedules.


@pytest.mark.parametrize(("epoch", "weight"), [(0, 0), (5, 0), (12.5, 1), (20, 2), (99, 2)])
def test_the_kl_warms_up_linearly(epoch: float, weight: float) -> None:
    assert kl_coefficient_at(SparseStage(warmup_from=5, warmup_to=20, kl_coefficient=2), epoch) == weight


def test_without_warm_up_the_kl_is_full_at_once() -> None:
    assert kl_coefficient_at(SparseStage(), 0) == 1
    assert kl_coefficient_at(SparseStage(warmup_from=3, warmup_to=3), 3) == 1
    assert kl_coefficient_at(SparseStage(warmup_from=3, warmup_to=3), 2.9) == 0


def test_the_rate_holds_then_falls_to_exactly_nothing() -> None:
    stage = Stage(learning_rate=0.5, hold=0.6)
    rates = [learning_rate_at(stage, progress) for progress in (0, 0.6, 0.8, 1)]
    assert rates == pytest.approx([0.5, 0.5, 0.25, 0])
    assert rates[-1] == 0


def test_the_rate_warms_up_from_a_hundredth_and_falls_as_half_a_cosine() -> None:
    stage = Stage(learning_rate=2.0, warmup=0.2, schedule="cosine")
    rates = [learning_rate_at(stage, progress) for progress in (0, 0.1, 0.2, 0.4, 0.6, 0.8, 1)]
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([torch.zeros(1)], lr=2.0), T_max=4)
    falling = []
    for _ in range(5):
        falling.append(reference.get_last_lr()[0])
        reference.optimizer.step()
        reference.step()
    assert rates == pytest.approx([0.02, 1.01, *falling])
    assert rates[-1] == 0
    assert learning_rate_at(Stage(learning_rate=2.0, warmup=0.2, hold=0.5), 0.5) == 2.0


def test_seeds_depend_on_the_place_and_on_nothing_else() -> None:
    seeds = {derive_seed(seed, stage, step) for seed in range(3) for stage in "ab" for step in range(100)}
    assert len(seeds) == 600


# Optimizer.


def test_decay_is_for_weights_and_gates_have_a_rate_of_their_own() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    svd.sparsify_(model, granularity="both", example_inputs=torch.randn(1, 1, 8, 8))
    model[3].bias.requires_grad_(False)
    made = build_optimizer(model, SparseStage(weight_decay=0.1, optimizer="adamw", gate_rate=7))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    group_of = {names[id(p)]: (g["weight_decay"], g["scale"]) for g in made.param_groups for p in g["params"]}
    assert group_of.pop("0.weight") == group_of.pop("3.weight") == (0.1, 1)
    gates = {name: value for name, value in group_of.items() if "gate" in name}
    assert set(gates.values()) == {(0.0, 7)}
    assert {name.rpartition(".")[2] for name in gates} == {"mu", "log_sigma2"}
    rest = {name: value for name, value in group_of.items() if "gate" not in name}
    assert set(rest.values()) == {(0.0, 1)}
    assert rest.keys() == {"0.bias", "0.log_sigma2", "1.weight", "1.bias", "3.log_sigma2"}
    set_learning_rate(made, 0.01)
    assert {group["lr"] for group in made.param_groups} == {0.01, 0.07}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_rates_of_layers_are_timms_and_posteriors_have_those_of_their_layer(name: str) -> None:
    model = timm.create_model(name, num_classes=4)
    groups = param_groups_layer_decay(
        model, 0.1, model.no_weight_decay() if name == "test_vit" else (), layer_decay=0.5
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    expected = {names[p]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len({scale for scale, _ in expected.values()}) > 2
    svd.sparsify_(model, granularity="both", example_inputs=torch.zeros(1, *model.pretrained_cfg["input_size"]))
    made = build_optimizer(model, SparseStage(weight_decay=0.1, layer_decay=0.5, gate_rate=7))
    set_learning_rate(made, 2.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names[p]: (g["lr"] / 2, g["weight_decay"]) for g in made.param_groups for p in g["params"]}
    assert found.keys() == set(names.values())
    for name, (scale, decay) in found.items():
        owner, _, key = name.rpartition(".")
        if ".gate" in name:
            assert scale in {7 * other for other, _ in expected.values()} and decay == 0
        elif key == "log_sigma2":
            assert (scale, decay) == (expected[f"{owner}.weight"][0], 0)
        else:
            assert (scale, decay) == expected[name]


def test_a_network_whose_layers_nobody_knows_has_no_rates_of_layers() -> None:
    with pytest.raises(SettingError, match="timm does not know the layers of Sequential"):
        build_optimizer(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), Stage(layer_decay=0.5))


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(SettingError, match=r"adma.*adamw"):
        build_optimizer(nn.Linear(2, 2), Stage(optimizer="adma"))
