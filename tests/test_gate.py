"""The channel gate: what it multiplies, where it sits, and that it leaves no trace."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.errors import SparseVDError
from nni_sparsevd.nn import ChannelGate, named_posteriors
from nni_sparsevd.posterior import elements
from nni_sparsevd.settings import PosteriorSettings

PRIORS = ("log_uniform", "log_uniform_exact", "ard")
SHAPES = [((3, 4), 1), ((3, 4, 5), 1), ((3, 4, 5, 6), 1), ((3, 5, 4), -1), ((3, 5, 6, 4), -1), ((3, 5, 4, 6), 2)]


def gate(log_sigma2: float = -1.0, prior: str = "log_uniform", dtype: torch.dtype = torch.float32) -> ChannelGate:
    """Four channels, of which the second is removed."""
    made = ChannelGate(4, PosteriorSettings(prior=prior, init_log_sigma2=log_sigma2), dtype=dtype)
    with torch.no_grad():
        made.mu.copy_(torch.tensor([1.0, 1e-3, -0.7, 2.0]))
    assert made.mask().tolist() == [True, False, True, True]
    return made


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_evaluation_multiplies_by_the_kept_means(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    y = gate().eval()(x, dim)
    factors = torch.tensor([1.0, 0.0, -0.7, 2.0]).to(dtype)
    assert y.dtype == dtype and torch.equal(y.movedim(dim, -1), x.movedim(dim, -1) * factors)


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_training_draws_once_per_sample_and_channel(shape: tuple[int, ...], dim: int) -> None:
    factors = gate()(torch.ones(shape), dim).movedim(dim, 1).reshape(3, 4, -1)
    assert torch.equal(factors, factors[:, :, :1].expand_as(factors))  # the same at all positions
    z = factors[:, :, 0]
    assert len(z.unique()) == z.numel()  # different for every sample and channel


def test_training_moments() -> None:
    made, n = gate(), 40000
    z = made(torch.ones(n, 4)).detach()
    sigma = made.log_sigma2.exp().sqrt()
    assert ((z.mean(0) - made.mu).abs() < 5 * sigma / n**0.5).all()
    assert ((z.var(0) / sigma**2 - 1).abs() < 5 * (2 / n) ** 0.5).all()


def test_starts_as_the_identity() -> None:
    x = torch.randn(2, 4, 3)
    assert torch.equal(ChannelGate(4).eval()(x), x)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_and_kl(prior: str, training: bool, dtype: torch.dtype) -> None:
    made = gate(prior=prior, dtype=dtype).train(training)
    made.kl_weight = 3.0
    by_hand = 3.0 * elements.kl_elements(elements.log_alpha(made.mu, made.log_sigma2), prior).sum()
    torch.testing.assert_close(made.kl(), by_hand)
    (made(torch.randn(5, 4, 3, dtype=dtype)).square().sum() + made.kl()).backward()
    for parameter in made.parameters():
        assert parameter.grad.isfinite().all() and (parameter.grad != 0).all()


def test_bfloat16_autocast_keeps_the_inputs_type() -> None:
    made, layer = gate(), nn.Linear(6, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = made(layer(torch.randn(3, 6)))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert made.mu.grad.dtype == torch.float32


def test_channels_last_is_preserved() -> None:
    x = torch.randn(2, 4, 5, 6).contiguous(memory_format=torch.channels_last)
    for training in (True, False):
        assert gate().train(training)(x).is_contiguous(memory_format=torch.channels_last)


def test_attach_and_detach_leave_no_trace() -> None:
    site = nn.BatchNorm2d(4).eval()
    x = torch.randn(2, 4, 3, 3)
    before, keys, attributes = site(x), list(site.state_dict()), set(vars(site))
    made = gate().eval()
    made.attach_(site, 1)
    assert torch.equal(site(x), made(before)) and not torch.equal(site(x), before)
    assert "gate.mu" in site.state_dict()
    made.detach_(site)
    assert torch.equal(site(x), before) and list(site.state_dict()) == keys
    assert set(vars(site)) == attributes and not site._forward_hooks


def test_another_hook_survives_detach() -> None:
    site, made, calls = nn.Linear(4, 4), gate(), []
    site.register_forward_hook(lambda *_: calls.append(1))
    made.attach_(site, -1)
    made.detach_(site)
    site(torch.randn(2, 4))
    assert calls == [1]


def shared() -> tuple[nn.Module, ChannelGate]:
    """One gate behind two layers, as on the two writers of a residual sum."""
    torch.manual_seed(0)
    model, made = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Conv1d(3, 4, 1)}), gate()
    made.attach_(model["a"], -1)
    made.attach_(model["b"], 1)
    return model, made


def test_one_gate_on_two_sites_is_one_posterior() -> None:
    model, made = shared()
    assert [found for _, found in named_posteriors(model)] == [made]
    assert torch.equal(svd.kl(model), made.kl())
    assert sum(parameter is made.mu for parameter in model.parameters()) == 1
    model.eval()
    x = torch.randn(2, 5, 3)
    a, b = model["a"](x), model["b"](x.mT)
    assert (a[..., 1] == 0).all() and (b[:, 1] == 0).all() and (a[..., 0] != 0).all() and (b[:, 0] != 0).all()


def test_deepcopy_is_independent() -> None:
    model, made = shared()
    twin = copy.deepcopy(model.eval())
    assert twin["a"].gate is twin["b"].gate and twin["a"].gate is not made
    x = torch.randn(2, 3)
    before = model["a"](x)
    assert torch.equal(twin["a"](x), before)
    with torch.no_grad():
        twin["a"].gate.mu.fill_(5.0)
    assert torch.equal(model["a"](x), before) and not torch.equal(twin["a"](x), before)
    twin["a"].gate.detach_(twin["a"])
    assert not twin["a"]._forward_hooks and model["a"]._forward_hooks


@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_a_graph_break(training: bool) -> None:
    torch._dynamo.reset()
    site = nn.BatchNorm2d(4)
    gate().attach_(site, 1)
    site.train(training)
    x = torch.randn(3, 4, 2, 2)
    twin = torch.compile(copy.deepcopy(site), fullgraph=True, backend="eager")
    torch.manual_seed(1)
    expected = site(x)
    torch.manual_seed(1)
    assert torch.equal(twin(x), expected)


def test_refuses_the_wrong_number_of_channels() -> None:
    for shape in ((2, 5, 3), (2, 1, 3)):  # the second would broadcast in silence
        for training in (True, False):
            with pytest.raises(SparseVDError, match="4 channels"):
                gate().train(training)(torch.randn(shape))


def test_refuses_a_site_that_has_this_gate_or_would_run_it_as_a_layer() -> None:
    taken, made = nn.Linear(4, 4), gate()
    made.attach_(taken, -1)
    for site in (taken, nn.Sequential(nn.Linear(4, 4))):
        with pytest.raises(SparseVDError, match="gate"):
            made.attach_(site, -1)


def test_two_gates_on_one_site_multiply_and_come_off_one_by_one() -> None:
    site, first, second = nn.Linear(3, 4), gate().eval(), gate().eval()
    x = torch.randn(2, 3)
    plain = site(x)
    first.attach_(site, -1)
    second.attach_(site, -1)
    assert {"gate.mu", "gate_2.mu"} < set(site.state_dict())
    torch.testing.assert_close(site(x), plain * torch.tensor([1.0, 0.0, 0.49, 4.0]))
    first.detach_(site)
    assert torch.equal(site(x), second(plain, -1))


PLACES = torch.tensor([0, 1, -1, -1, 0, 1])
"""Queries, keys and values of two dimensions: the gate scales queries and values."""


def test_a_gate_with_places_scales_some_outputs_and_leaves_others() -> None:
    made = ChannelGate(2, PosteriorSettings(init_log_sigma2=-1.0))
    with torch.no_grad():
        made.mu.copy_(torch.tensor([0.5, 1e-3]))
    x = torch.ones(3, 5, 6)
    assert torch.equal(made.eval()(x, -1, PLACES), torch.tensor([0.5, 0, 1, 1, 0.5, 0]).expand(3, 5, 6))
    drawn = made.train()(x, -1, PLACES)
    assert torch.equal(drawn[..., :2], drawn[..., 4:]) and torch.equal(drawn[..., 2:4], x[..., :2])
    assert not torch.equal(drawn[0, 0, :2], drawn[1, 0, :2])
    with pytest.raises(SparseVDError, match="2 channels in 6 places"):
        made(torch.ones(3, 5, 4), -1, PLACES)


def test_a_gate_with_places_is_folded_and_masked_where_it_scales() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 6)
    model, weight = nn.Sequential(layer), layer.weight.detach().clone()
    made = ChannelGate(2, PosteriorSettings())
    with torch.no_grad():
        made.mu.copy_(torch.tensor([0.5, 1e-3]))
    made.attach_(layer, -1, PLACES)
    model.eval()
    x = torch.randn(3, 4)
    expected = model(x)
    assert svd.compute_masks(model)["0"]["bias"].tolist() == [1, 0, 1, 1, 1, 0]
    svd.bake_(model)
    torch.testing.assert_close(model(x), expected)
    assert torch.equal(layer.weight[2:4], weight[2:4]) and not layer.weight[[1, 5]].any()


def test_places_are_renumbered_when_channels_leave() -> None:
    site, made = nn.Linear(3, 6), ChannelGate(4)
    made.attach_(site, -1, torch.tensor([3, 0, -1, 2, 3, 0]))
    made.renumber_(torch.tensor([0, 2, 3]))
    assert made.read_places(site).tolist() == [2, 0, -1, 1, 2, 0]


@pytest.mark.parametrize("training", [False, True])
def test_code_compiled_without_gates_is_not_run_for_a_network_that_has_them(training: bool) -> None:
    config: Any = torch._dynamo.config
    with config.patch(skip_nnmodule_hook_guards=True):  # the default of torch
        torch._dynamo.reset()
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).train(training)
        compiled: Any = torch.compile(model, backend="eager")
        x = torch.randn(3, 4)
        dense = compiled(x)
        svd.sparsify_(model, granularity="gate", example_inputs=x)
        with torch.no_grad():
            for gate in (module for module in model.modules() if isinstance(module, ChannelGate)):
                gate.log_sigma2[:3] = 5.0
        torch.manual_seed(0)
        gated = compiled(x)
        torch.manual_seed(0)
        torch.testing.assert_close(gated, model(x))
        assert not torch.equal(gated, dense)
        if not training:
            svd.bake_(model)
            torch.testing.assert_close(compiled(x), gated)


def test_gates_take_the_mode_of_the_network() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    x = torch.randn(3, 4)
    svd.sparsify_(model, granularity="gate", example_inputs=x)
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(x), model(x))
