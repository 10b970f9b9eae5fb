"""The posterior's mathematics against numerical integration, scipy and float64 autograd."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, special

from nni_sparsevd.posterior import divergence, elements
from nni_sparsevd.posterior.dawson import dawson_function, dawson_integral

PRIORS = ("log_uniform", "log_uniform_exact", "ard")
GRID = np.linspace(-8, 8, 33)


def integrated_kl(log_alpha: float) -> float:
    """KL of N(theta, 1) from the log-uniform prior by quadrature of E log|w|, shifted so that it is 0 at theta = 0.

    KL = -log(2 pi e sigma^2)/2 + E log|w| + const; at sigma = 1 only E log|w| depends on theta, and at theta = 0,
    where log alpha = inf, it is -(gamma + log 2)/2.
    """
    theta = math.exp(-0.5 * log_alpha)

    def integrand(w: float) -> float:
        return math.log(abs(w)) * math.exp(-0.5 * (w - theta) ** 2) / math.sqrt(2 * math.pi)

    ends = sorted({theta - 12.0, min(0.0, theta), 0.0, theta, theta + 12.0})
    pieces = [integrate.quad(integrand, a, b, limit=400, epsabs=1e-11)[0] for a, b in pairwise(ends)]
    return sum(pieces) + (np.euler_gamma + math.log(2)) / 2


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    return torch.tensor([integrated_kl(u) for u in GRID], dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-5)])
def test_exact_kl_is_the_integral(truth: torch.Tensor, dtype: torch.dtype, tolerance: float) -> None:
    found = elements.kl_elements(torch.tensor(GRID, dtype=dtype), "log_uniform_exact")
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=tolerance)


def test_paper_kl_is_within_a_hundredth_of_the_integral(truth: torch.Tensor) -> None:
    # at small log alpha the paper's constant k1 differs from the true limit (gamma + log 2)/2 by 0.0006
    error = (elements.kl_elements(torch.tensor(GRID), "log_uniform") - truth).abs()
    assert 1e-3 < error.max() <= 0.01


def test_dawson_is_scipys() -> None:
    t = torch.cat(
        [torch.zeros(1).double(), torch.linspace(0, 12, 4001).double(), torch.logspace(-12, 15, 500).double()]
    )
    reference = torch.from_numpy(special.dawsn(t.numpy()))
    torch.testing.assert_close(dawson_function(t), reference, rtol=0, atol=3e-8)
    torch.testing.assert_close(dawson_function(t.float()).double(), reference, rtol=1e-5, atol=1e-6)
    # the slope is t * Dawson(t): its tail must be right relative to its size
    far = t > 12
    torch.testing.assert_close(dawson_function(t)[far], reference[far], rtol=1e-7, atol=0)


def test_dawsons_integral_is_the_hypergeometric_series() -> None:
    # int_0^t D = t^2/2 2F2(1, 1; 3/2, 2; -t^2), summed by quadrature of scipy's D
    points = [0.0, 0.05, 0.5, 1.0, 3.3, 9.99, 10.01, 40.0]
    reference = [integrate.quad(special.dawsn, 0, t, limit=500, epsabs=1e-12)[0] for t in points]
    found = dawson_integral(torch.tensor(points, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(reference, dtype=torch.float64), rtol=0, atol=1e-8)


def test_exact_slope_is_t_times_dawson() -> None:
    u = np.linspace(-30, 30, 301)
    t = np.exp(-0.5 * u) / math.sqrt(2)
    found = elements.kl_slope(torch.tensor(u), "log_uniform_exact")
    torch.testing.assert_close(found, torch.tensor(-t * special.dawsn(t)), rtol=0, atol=1e-7)


@pytest.mark.parametrize("prior", PRIORS)
def test_slope_is_the_derivative_of_the_value(prior: elements.Prior) -> None:
    u = torch.linspace(-12, 12, 481, dtype=torch.float64)
    step = 1e-4
    difference = elements.kl_elements(u + step, prior) - elements.kl_elements(u - step, prior)
    torch.testing.assert_close(elements.kl_slope(u, prior), difference / (2 * step), rtol=0, atol=2e-6)


@pytest.mark.parametrize("prior", PRIORS)
def test_kl_falls_to_zero(prior: elements.Prior) -> None:
    u = torch.linspace(-30, 60, 2001, dtype=torch.float64)
    value = elements.kl_elements(u, prior)
    assert (value.diff() <= 1e-12).all() and (value >= -1e-12).all()
    assert value[-1] < 1e-12
    assert (elements.kl_slope(u, prior) <= 0).all()


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    log_sigma2 = 3 * torch.randn(6, 5, generator=generator, dtype=torch.float64) - 1
    return theta.to(dtype).requires_grad_(), log_sigma2.to(dtype).requires_grad_()


@pytest.mark.parametrize("prior", PRIORS)
def test_gradient_is_autograds(prior: elements.Prior) -> None:
    theta, log_sigma2 = inputs()
    closed = torch.autograd.grad(3.0 * divergence.kl(theta, log_sigma2, prior), (theta, log_sigma2))
    values = elements.kl_elements(elements.log_alpha(theta, log_sigma2), prior)
    free = torch.autograd.grad(3.0 * values.sum(), (theta, log_sigma2))
    for a, b in zip(closed, free, strict=True):
        # the exact value is a table whose own derivative is good to 1e-6; the others agree to rounding
        torch.testing.assert_close(a, b, rtol=1e-5 if prior == "log_uniform_exact" else 1e-11, atol=1e-6)


@pytest.mark.parametrize("prior", PRIORS)
def test_gradient_is_finite_differences(prior: elements.Prior) -> None:
    theta, log_sigma2 = inputs()
    assert torch.autograd.gradcheck(lambda a, b: divergence.kl(a, b, prior), (theta, log_sigma2), eps=1e-5, atol=1e-5)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("which", [0, 1])
def test_gradient_of_one_argument_alone(prior: elements.Prior, which: int) -> None:
    pair = inputs()
    both = torch.autograd.grad(divergence.kl(*pair, prior), pair)
    pair[1 - which].requires_grad_(False)
    (alone,) = torch.autograd.grad(divergence.kl(*pair, prior), pair[which])
    assert torch.equal(alone, both[which])


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_the_extremes(prior: elements.Prior, dtype: torch.dtype) -> None:
    sizes = torch.tensor([0.0, 1e-30, 1e-19, 1e-8, 1.0, 1e3], dtype=dtype)
    levels = torch.tensor([-1e4, -200, -50, -10, 0, 10, 50, 200, 1e4], dtype=dtype)
    theta = torch.cat([sizes, -sizes]).repeat(len(levels), 1).requires_grad_()
    log_sigma2 = levels[:, None].expand_as(theta).clone().requires_grad_()
    assert elements.log_alpha(theta, log_sigma2).isfinite().all()
    value = divergence.kl(theta, log_sigma2, prior)
    value.backward()
    assert value.isfinite() and theta.grad.isfinite().all() and log_sigma2.grad.isfinite().all()
    assert (theta.grad[:, [0, 6]] == 0).all()  # by symmetry
    assert (theta.grad * theta >= 0).all() and (log_sigma2.grad <= 0).all()  # towards zero, towards more noise
    by_backward = theta.grad, log_sigma2.grad
    theta.grad = log_sigma2.grad = None
    divergence.add_kl_gradient_(theta, log_sigma2, 1.0, prior)
    torch.testing.assert_close((theta.grad, log_sigma2.grad), by_backward)


@pytest.mark.parametrize("prior", PRIORS)
def test_without_noise_the_kl_is_linear(prior: elements.Prior) -> None:
    u = torch.tensor([-1e4, -400.0, -60.0, -30.0])
    slopes = elements.kl_elements(u, prior).diff() / u.diff()
    torch.testing.assert_close(slopes, torch.full_like(slopes, -0.5))
    torch.testing.assert_close(elements.kl_slope(u, prior), torch.full_like(u, -0.5))


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(prior: elements.Prior, dtype: torch.dtype) -> None:
    theta, log_sigma2 = inputs(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = divergence.kl(theta, log_sigma2, prior)
    assert value.dtype == torch.float32
    reference = divergence.kl(theta.double(), log_sigma2.double(), prior)
    torch.testing.assert_close(value.double(), reference, rtol=1e-5, atol=0)
    value.backward()
    assert theta.grad.dtype == log_sigma2.grad.dtype == dtype


def test_log_alpha_and_snr_say_the_same() -> None:
    theta, log_sigma2 = inputs()
    torch.testing.assert_close(
        elements.log_alpha(theta, log_sigma2), -2 * elements.snr(theta, log_sigma2).log(), rtol=1e-10, atol=1e-10
    )


def test_group_log_alpha_is_the_ratio_of_sums() -> None:
    theta, log_sigma2 = inputs()
    by_hand = torch.log(log_sigma2.exp().sum(1) / theta.square().sum(1))
    torch.testing.assert_close(elements.group_log_alpha(theta, log_sigma2, 1), by_hand)
    single = elements.group_log_alpha(theta[..., None], log_sigma2[..., None], 2)
    torch.testing.assert_close(single, elements.log_alpha(theta, log_sigma2))
    assert elements.group_log_alpha(torch.zeros(2, 3), torch.full((2, 3), -50.0), 1).isfinite().all()


def test_group_log_alpha_of_half_precision_weights_is_float32s() -> None:
    theta, log_sigma2 = torch.full((2, 3), 1e-3).half(), torch.full((2, 3), -10.0).half()
    found = elements.group_log_alpha(theta, log_sigma2, 1)
    torch.testing.assert_close(found, elements.group_log_alpha(theta.float(), log_sigma2.float(), 1))


@pytest.mark.parametrize("prior", PRIORS)
def test_the_kl_of_a_weight_that_is_no_number_is_none(prior: str) -> None:
    """Of the exact prior it was an IndexError, and on a GPU the end of the process."""
    log_alpha = torch.tensor([math.nan, 1.0])
    for function in (elements.kl_elements, elements.kl_slope):
        assert function(log_alpha, prior).isnan().tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_log_alpha_of_half_precision_weights_is_float32s(dtype: torch.dtype) -> None:
    """Otherwise float16, whose smallest number is 6e-5, would hide every weight below 0.008."""
    theta, log_sigma2 = torch.tensor([1e-3, 0.1], dtype=dtype), torch.tensor([-10.0, -10.0], dtype=dtype)
    found = elements.log_alpha(theta, log_sigma2)
    torch.testing.assert_close(found, elements.log_alpha(theta.float(), log_sigma2.float()))


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("shape", [(5, 1), (1, 5), (1, 1)])
def test_a_shared_variance_counts_as_its_copies(prior: elements.Prior, shape: tuple[int, int]) -> None:
    """Along rows, along columns or for all, in a square matrix, where sizes do not tell which; and in pieces."""
    draw = torch.Generator().manual_seed(0)
    for columns in (5, divergence.CHUNK_SIZE + 7):
        theta = torch.randn(5, columns, generator=draw, dtype=torch.float64, requires_grad=True)
        width = shape if shape[1] == 1 else (1, columns)
        shared = torch.randn(width, generator=draw, dtype=torch.float64, requires_grad=True)
        found = torch.autograd.grad(divergence.kl(theta, shared, prior), (theta, shared))
        free = torch.autograd.grad(divergence.kl(theta, shared.expand_as(theta).clone(), prior), (theta, shared))
        torch.testing.assert_close(found, free)


@pytest.mark.parametrize("prior", PRIORS)
def test_no_weights_have_no_kl(prior: elements.Prior) -> None:
    """A process may hold none of a small layer."""
    for shape in ((0, 4), (0, 1)):
        theta, log_sigma2 = torch.zeros(0, 4, requires_grad=True), torch.zeros(shape, requires_grad=True)
        value = divergence.kl(theta, log_sigma2, prior)
        value.backward()
        assert value == 0 and theta.grad is not None and theta.grad.shape == theta.shape
