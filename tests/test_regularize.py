"""The room that drives the KL: its weight, its pressure, and the search for the cut that meets a budget."""

import math

import pytest
import torch
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.measure import count_macs, count_parameters
from nni_sparsevd.nn import ChannelGate, named_posteriors
from nni_sparsevd.regularize import (
    Budget,
    BudgetSearch,
    Controller,
    SparseVDSettings,
    add_kl_to_loss,
    kl_weight_now,
    regularize_under_pressure_,
)


@pytest.mark.parametrize(
    ("progress", "ramp"), [(0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (0.9, 1.0), (1.0, 1.0), (None, 1.0)]
)
def test_the_kl_warms_up_where_the_end_is_known(progress, ramp):
    settings = SparseVDSettings(kl_coefficient=3.0, warmup=0.4)
    assert settings.ramp(progress) == pytest.approx(ramp)
    assert settings.kl_weight_now(progress, 50) == pytest.approx(3.0 * ramp / 50)


def test_the_weight_carries_the_factor_of_a_loss_scaler():
    assert kl_weight_now(2.0, 100) == 2.0 / 100
    assert kl_weight_now(2.0, 100, loss_scale=1024.0) == 2.0 / 100 * 1024.0


def network(granularity: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return svd.sparsify_(model, granularity=granularity, init_log_sigma2=-3.0, example_inputs=torch.randn(2, 4))


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def test_the_kl_in_the_loss_and_its_gradient_after_backward_are_the_same():
    x, weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), 0.01
    model = network("both").eval()
    loss = model(x).square().mean()
    add_kl_to_loss(loss, svd.kl(model), weight).backward()
    in_the_loss = gradients(model)
    model.zero_grad()
    model(x).square().mean().backward()
    regularize_under_pressure_(model, weight, 1.0)
    torch.testing.assert_close(gradients(model), in_the_loss)


def tied_to_embedding() -> nn.Module:
    model = nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    return svd.sparsify_(model)


def frozen_means() -> nn.Module:
    model = network("weight")
    model[0].weight.requires_grad_(False)
    return model


def log_normal_gates() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    settings = svd.PosteriorSettings(granularity="gate", gate="log_normal", threshold=0)
    return svd.sparsify_(model, settings, example_inputs=torch.randn(2, 4))


@pytest.mark.parametrize(
    "make",
    [lambda: network("both"), lambda: network("weight").bfloat16(), tied_to_embedding, frozen_means, log_normal_gates],
)
def test_the_gradient_is_added_where_autograd_is_off(make):
    model = make()
    svd.regularize_(model, 0.5)
    expected = gradients(model)
    model.zero_grad()
    with torch.no_grad():
        svd.regularize_(model, 0.5)
    assert expected
    torch.testing.assert_close(gradients(model), expected, rtol=0, atol=0)


def test_a_weight_of_zero_keeps_every_parameter_in_the_graph():
    model = network("both")
    loss = add_kl_to_loss(torch.tensor(1.0, dtype=torch.float16), svd.kl(model), 0.0)
    assert loss.dtype == torch.float16 and loss == 1
    loss.backward()
    posteriors = [module for _, module in named_posteriors(model)]
    assert all(module.log_sigma2.grad is not None for module in posteriors)


@pytest.mark.parametrize("granularity", ["weight", "gate", "both"])
def test_pressure_goes_to_the_gates_or_else_to_the_weights(granularity):
    model = network(granularity)
    expected = torch.zeros(())
    for _, module in named_posteriors(model):
        decides = isinstance(module, ChannelGate) or granularity == "weight"
        expected = expected + (3.0 if decides else 1.0) * 0.5 * module.kl()
    expected.backward()
    by_autograd = gradients(model)
    model.zero_grad()
    regularize_under_pressure_(model, 0.5, 3.0)
    torch.testing.assert_close(gradients(model), by_autograd)


def test_a_network_without_posteriors_is_left_alone():
    model = nn.Linear(2, 2)
    regularize_under_pressure_(model, 0.5, 3.0)
    assert gradients(model) == {}


def test_the_controller_presses_while_the_edge_lags_behind():
    controller = Controller(3.0)
    controller.react(-9.0, 0.0)
    assert controller.pressure == 1.0
    controller.react(-9.0, 0.5)  # where -3 is wanted
    pressed = controller.pressure
    assert pressed > 1.0
    controller.react(2.0, 0.6)
    assert controller.pressure < pressed


@pytest.mark.parametrize("sign", [1, -1])
def test_the_controller_bears_an_edge_without_end(sign):
    """Infinity: the budget is met without removing anything; minus infinity: not even by removing everything."""
    controller = Controller(3.0)
    controller.react(sign * math.inf, 0.0)
    assert (controller.pressure < 1.0) == (sign > 0)
    before = controller.pressure
    controller.react(-9.0, 0.4)  # its course begins here
    controller.react(-9.0, 0.5)
    assert controller.pressure > before


def count_bytes(model: nn.Module) -> int:
    """A cost that no budget of ours knows."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def count_macs_of_one(model: nn.Module) -> int:
    return count_macs(model, torch.randn(1, 4))


@pytest.mark.parametrize("cost", [count_parameters, count_macs_of_one, count_bytes])
def test_a_budget_is_searched_with_any_cost(cost):
    model = nn.Sequential(nn.Linear(4, 64, bias=False), nn.Linear(64, 3, bias=False))
    scores = torch.rand(64, generator=torch.Generator().manual_seed(0))

    def cut_at(cutoff: float) -> nn.Module:
        kept = int((scores > cutoff).sum())
        return nn.Sequential(nn.Linear(4, kept, bias=False), nn.Linear(kept, 3, bias=False))

    search = BudgetSearch(Budget(fraction=0.25), cost, model)
    cutoff, reached = search.find_cutoff(scores, cut_at)
    assert search.dense == cost(model)
    assert reached == cost(cut_at(cutoff)) == search.dense / 4
    assert int((scores > cutoff).sum()) == 16
