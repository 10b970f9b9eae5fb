"""Log-normal gates: their mathematics against numerical integration, and what a gate must do whatever its posterior."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd import recipe
from nni_sparsevd.errors import SettingError
from nni_sparsevd.nn import ChannelGate, find_gates
from nni_sparsevd.posterior import (
    PRIOR_LOG_ALPHA,
    draw_log_normal,
    log_normal_evidence_gain,
    log_normal_kl,
    log_normal_log_alpha,
    log_normal_mean,
)
from nni_sparsevd.posterior.log_normal import LOG_LOWER, LOG_UPPER
from nni_sparsevd.settings import PosteriorSettings, make_settings
from nni_sparsevd.testing import randomize_

CASES = [(0.0, 0.05), (0.0, 1.0), (-3.0, 2.0), (-10.0, 5.0), (-19.0, 1.0), (5.0, 1.0), (-10.0, 60.0), (-0.5, 0.1)]
"""mu and sigma of log z: inside the interval, at its ends, beyond it, and as wide as the prior."""


def integrate_over_log_z(integrand: object, mu: float, sigma: float) -> float:
    marks = [min(max(mu + step * sigma, LOG_LOWER), LOG_UPPER) for step in (-4, -1, 0, 1, 4)]
    return float(integrate.quad(integrand, LOG_LOWER, LOG_UPPER, points=sorted(set(marks)), limit=300)[0])


def as_tensors(mu: float, sigma: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(mu, dtype=torch.float64), torch.tensor(2 * math.log(sigma), dtype=torch.float64)


@pytest.mark.parametrize(("mu", "sigma"), CASES)
def test_moments_kl_and_evidence_are_the_integrals(mu: float, sigma: float) -> None:
    mass = integrate_over_log_z(lambda u: stats.norm.pdf(u, mu, sigma), mu, sigma)

    def density(u: float) -> float:
        return float(stats.norm.pdf(u, mu, sigma)) / mass

    def average(value: object) -> float:
        return integrate_over_log_z(lambda u: density(u) * value(u) if density(u) else 0.0, mu, sigma)

    parameters = as_tensors(mu, sigma)
    mean = average(math.exp)
    assert log_normal_mean(*parameters).item() == pytest.approx(mean, rel=1e-6)
    variance = average(lambda u: (math.exp(u) - mean) ** 2)
    assert log_normal_log_alpha(*parameters).item() == pytest.approx(math.log(variance / mean**2), abs=1e-5)
    width = LOG_UPPER - LOG_LOWER
    kl = average(lambda u: math.log(density(u) * width))
    assert log_normal_kl(*parameters).item() == pytest.approx(kl, rel=1e-6, abs=1e-8)

    # BMRS, eq. 6: E_q[p~ / p] with a narrow reduced prior at the lower end, log-normal as in BMRS_N.
    narrow = 1e-4

    def ratio(u: float) -> float:
        reduced_prior = 2 * stats.norm.pdf(u, LOG_LOWER, narrow)  # cut at its own mean, it has half of the mass
        return math.exp(float(stats.norm.logpdf(u, mu, sigma)) - at_end) * width * reduced_prior

    at_end = float(stats.norm.logpdf(LOG_LOWER, mu, sigma))
    integral = integrate.quad(ratio, LOG_LOWER, LOG_LOWER + 8 * narrow)[0]
    gain = math.log(integral) + at_end - math.log(mass)
    assert log_normal_evidence_gain(*parameters).item() == pytest.approx(gain, rel=1e-3, abs=1e-2)


def test_a_posterior_that_is_the_prior_has_its_moments_no_kl_and_gains_nothing() -> None:
    parameters = as_tensors(-10.0, 1e4)
    assert log_normal_mean(*parameters).item() == pytest.approx(1 / 20, rel=1e-4)
    assert log_normal_log_alpha(*parameters).item() == pytest.approx(PRIOR_LOG_ALPHA, abs=1e-4)
    assert log_normal_kl(*parameters).item() == pytest.approx(0, abs=1e-6)
    assert log_normal_evidence_gain(*parameters).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("mu", "sigma"), CASES)
def test_what_is_drawn_has_the_distribution(mu: float, sigma: float) -> None:
    """The inverse of the distribution function, at quantiles."""
    levels = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    drawn = draw_log_normal(*as_tensors(mu, sigma), levels).log()
    ends = (LOG_LOWER - mu) / sigma, (LOG_UPPER - mu) / sigma
    found = stats.truncnorm.cdf(drawn.numpy(), *ends, mu, sigma)
    np.testing.assert_allclose(found, levels.numpy(), atol=1e-8)


def test_everything_is_finite_far_out() -> None:
    mu = torch.tensor([-300.0, -25, 0, 3, 40, 400]).repeat(5, 1).requires_grad_()
    log_sigma2 = torch.tensor([-30.0, -10, 0, 10, 25])[:, None].expand(5, 6).clone().requires_grad_()
    for function in (log_normal_mean, log_normal_log_alpha, log_normal_kl, log_normal_evidence_gain):
        values = function(mu, log_sigma2)
        assert values.isfinite().all(), function
        gradients = torch.autograd.grad(values.sum(), (mu, log_sigma2))
        assert all(gradient.isfinite().all() for gradient in gradients), function
    drawn = draw_log_normal(mu, log_sigma2, torch.rand(7, 5, 6))
    gradients = torch.autograd.grad(drawn.sum(), (mu, log_sigma2))
    assert ((drawn > 0) & (drawn <= 1)).all() and all(gradient.isfinite().all() for gradient in gradients)
    assert (log_normal_kl(mu, log_sigma2) >= -1e-9).all()


SETTINGS = PosteriorSettings(granularity="gate", gate="log_normal", threshold=0.0)


def make_gate(dtype: torch.dtype = torch.float32) -> ChannelGate:
    """Four channels, of which the second is removed."""
    made = ChannelGate(4, SETTINGS, dtype=dtype)
    with torch.no_grad():
        made.mu.copy_(torch.tensor([0.0, -12.0, -1.0, 2.0]))
        made.log_sigma2.copy_(torch.tensor([-6.0, 3.0, -4.0, -3.0]))
    assert made.mask().tolist() == [True, False, True, True]
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gate_multiplies_by_the_means_that_are_kept(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate, x = make_gate(dtype).eval(), torch.randn(3, 4, 5, dtype=dtype)
    factors = gate.mean().detach() * torch.tensor([1, 0, 1, 1], dtype=dtype)
    assert gate(x).dtype == dtype and torch.equal(gate(x), x * factors.view(1, 4, 1))
    gate.train()
    drawn = gate(torch.ones(4000, 4, dtype=dtype)).detach().double()
    error = (drawn.mean(0) - gate.mean().detach().double()).abs()
    assert (error < 5 * drawn.std(0) / 4000**0.5 + 1e-6).all()
    spread = drawn.var(0).log()
    assert spread.allclose(gate.variance().detach().double().log(), atol=0.4)
    assert (spread - 2 * drawn.mean(0).log()).allclose(gate.log_alpha().detach().double(), atol=0.4)


def test_the_kl_of_a_gate_in_half_precision_is_float32s() -> None:
    gate = make_gate(torch.bfloat16)
    assert gate.kl().dtype == torch.float32
    torch.testing.assert_close(gate.kl(), log_normal_kl(gate.mu, gate.log_sigma2).sum().float())


def test_the_gradient_of_the_kl_is_added() -> None:
    gate, twin = make_gate(), make_gate()
    (0.3 * gate.kl()).backward()
    twin.add_kl_gradient_(0.3)
    for parameter, other in zip(gate.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)
        assert (parameter.grad != 0).all()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


IMAGES = torch.randn(4, 3, 6, 6)


def gated() -> nn.Module:
    """Two of eight channels are noise."""
    torch.manual_seed(0)
    model = Net()
    randomize_(model)
    svd.sparsify_(model, SETTINGS, example_inputs=IMAGES)
    (gate,) = find_gates(model)
    with torch.no_grad():
        gate.mu[:] = -0.5
        gate.mu[[2, 5]], gate.log_sigma2[[2, 5]] = -13.0, 4.0
    return model.eval()


def test_what_is_validated_is_what_ships_and_shrinks() -> None:
    model = gated()
    expected = model(IMAGES)
    masks = svd.compute_masks(model)
    assert masks["norm"]["weight"].tolist() == [1, 1, 0, 1, 1, 0, 1, 1]
    baked = svd.bake_(copy.deepcopy(model), masks).eval()
    torch.testing.assert_close(baked(IMAGES), expected)
    small, _ = svd.shrink(baked, IMAGES)
    assert small.conv.out_channels == 6
    torch.testing.assert_close(small(IMAGES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("structure", ["unstructured", "structured"])
def test_the_evidence_decides_about_log_normal_gates(structure: str) -> None:
    model = gated()
    (gate,) = find_gates(model)
    with torch.no_grad():
        gate.mu[2], gate.log_sigma2[2] = -20.0, 1.0  # most of its mass lies near zero
        gate.mu[5], gate.log_sigma2[5] = -4.0, 1.0  # a small factor, but not zero
    masks = svd.compute_masks(model, structure=structure, threshold="evidence", example_inputs=IMAGES)
    assert masks["norm"]["weight"].tolist() == [1, 1, 0, 1, 1, 1, 1, 1]


def test_networks_drawn_from_the_posterior_scatter_around_its_mean() -> None:
    model = gated()
    (gate,) = find_gates(model)
    scales = []
    for _ in range(300):
        drawn = svd.sample_network(model)
        assert not find_gates(drawn)
        scales.append(drawn.norm.weight.detach() / model.norm.weight.detach())
    drawn_factors = torch.stack(scales).double()
    error = (drawn_factors.mean(0) - gate.mean().detach().double()).abs()
    assert (error < 5 * drawn_factors.std(0) / 300**0.5 + 1e-6).all()
    assert ((drawn_factors > 0) & (drawn_factors < 1 + 1e-6)).all() and (drawn_factors.std(0) > 0).all()


def test_a_channel_that_the_loss_does_not_need_becomes_the_prior() -> None:
    torch.manual_seed(0)
    gate = ChannelGate(2, SETTINGS)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (gate(torch.ones(20, 2))[:, 0] - 1).square().mean() * 5000 + gate.kl()
        loss.backward()
        optimizer.step()
    assert gate.mask().tolist() == [True, False]
    assert log_normal_kl(gate.mu, gate.log_sigma2)[1] < 0.1 and gate.mean()[0] > 0.9


def test_refusals() -> None:
    too_high = r"posterior\.threshold = 3 keeps log-normal gates .* Set posterior\.threshold = 0"
    with pytest.raises(SettingError, match=too_high):
        svd.sparsify_(Net(), granularity="gate", gate="log_normal", example_inputs=IMAGES)
    posterior = {"gate": "log_normal", "threshold": 0}
    with pytest.raises(SettingError, match=r"budget\.macs removes .* posterior\.gate = 'log_normal'"):
        make_settings(recipe.Recipe, {"budget": {"macs": 0.5}, "posterior": posterior})
    made = make_settings(
        recipe.Recipe,
        {"posterior": {**posterior, "granularity": "gate", "prior": "ard"}, "masks": {"threshold": "evidence"}},
    )
    assert made.resolved_threshold == "evidence"  # the prior of the gates is log-uniform
