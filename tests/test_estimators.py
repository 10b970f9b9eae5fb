"""The local estimators' mean and variance against weights sampled one by one with torch.distributions."""

import copy
import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nni_sparsevd as svd
from nni_sparsevd.nn.noise import sample_standard_normal

SAMPLES = 4000
Reference = Callable[[Tensor, Tensor, Tensor], Tensor]  # (input, weight, bias) in torch's functions, written out again

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Reference]] = {
    "linear": (lambda: nn.Linear(5, 4), (2, 5), F.linear),
    "grouped, strided": (
        lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2),
        (1, 4, 5, 5),
        lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1, groups=2),
    ),
    "dilated": (lambda: nn.Conv1d(3, 2, 3, dilation=2), (1, 3, 8), lambda x, w, b: F.conv1d(x, w, b, dilation=2)),
    "reflected": (
        lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
        (1, 2, 4, 4),
        lambda x, w, b: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), w, b),
    ),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, groups=2),
        (1, 4, 3, 3),
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2, padding=1, groups=2),
    ),
}


def network(case: str, estimator: str, variance: str = "weight") -> tuple[nn.Module, Tensor, Reference]:
    make, shape, reference = CASES[case]
    torch.manual_seed(0)
    layer = make()
    model = svd.sparsify_(nn.Sequential(layer), estimator=estimator, variance=variance)
    with torch.no_grad():
        layer.log_sigma2.copy_(torch.randn_like(layer.log_sigma2) - 3)
        layer.bias.normal_(std=3)  # a bias in the variance would be seen
    return model, torch.randn(shape), reference


@pytest.mark.parametrize("estimator", ["local", "local_detached"])
@pytest.mark.parametrize("case", CASES)
def test_a_local_sample_has_the_gradient_of_its_formula(case: str, estimator: str) -> None:
    """In input, mean, log sigma^2 and bias; a detached variance has none in the input."""
    model, x, reference = network(case, estimator)
    model.double().train()
    layer, x = model[0], x.double().requires_grad_()
    learnt = (x, layer.weight, layer.log_sigma2, layer.bias)
    torch.manual_seed(1)
    found = model(x)
    fed = x.detach() if estimator == "local_detached" else x
    variance = reference(fed.square(), layer.log_sigma2.exp(), torch.zeros_like(layer.bias))
    torch.manual_seed(1)
    formula = reference(x, layer.weight, layer.bias) + (variance + 1e-8).sqrt() * torch.randn_like(found)
    torch.testing.assert_close(found, formula)
    pull = torch.randn_like(found)
    one, two = (torch.autograd.grad((y * pull).sum(), learnt) for y in (found, formula))
    torch.testing.assert_close(one, two)
    first = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):  # what a second derivative needs is not kept
        first.sum().backward()


def sample_outputs(model: nn.Module, x: Tensor, estimator: str) -> Tensor:
    with torch.no_grad():
        if estimator == "weight":  # one sample of the weights a batch
            return torch.stack([model(x) for _ in range(SAMPLES)])
        return model(x.repeat(SAMPLES, *[1] * (x.dim() - 1))).unflatten(0, (SAMPLES, len(x)))


@cache
def sample_reference(case: str, variance: str) -> Tensor:
    """Outputs under weights that are sampled one by one: the same for every estimator."""
    model, x, reference = network(case, "weight", variance)
    layer = model[0]
    with torch.no_grad():
        deviations = layer.log_sigma2.exp().sqrt().expand_as(layer.weight)
        weights = torch.distributions.Normal(layer.weight, deviations).sample((SAMPLES,))
        return torch.stack([reference(x, weight, layer.bias) for weight in weights])


def assert_same_moments(found: Tensor, truth: Tensor, slack: float = 0.0) -> None:
    """Within 5 standard errors everywhere: of a mean sd sqrt(2/n), of a Gaussian's variance sd^2 sqrt(4/n)."""
    deviation = truth.std(0)
    assert (deviation > 1e-2).all()
    error = (found.mean(0) - truth.mean(0)).abs() / deviation
    assert error.max() < 5 * (2 / SAMPLES) ** 0.5 + slack
    ratio = found.var(0) / truth.var(0)
    assert (ratio - 1).abs().max() < 5 * (4 / SAMPLES) ** 0.5 + slack


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("estimator", ["local", "local_detached", "local_bf16", "weight"])
@pytest.mark.parametrize("variance", ["weight", "channel"])
def test_moments_are_those_of_sampled_weights(case: str, estimator: str, variance: str) -> None:
    model, x, _ = network(case, estimator, variance)
    layer = model[0]
    outputs = 1 if getattr(layer, "transposed", False) else 0
    assert variance == "weight" or layer.log_sigma2.numel() == layer.weight.shape[outputs]
    outputs_seen = sample_outputs(model, x, estimator)
    truth = sample_reference(case, variance)
    assert_same_moments(outputs_seen, truth, slack=0.02 if estimator == "local_bf16" else 0.0)


def test_local_noise_is_independent_per_sample_and_weight_noise_is_not() -> None:
    for estimator, shared in (("local", False), ("weight", True)):
        model, x, _ = network("linear", estimator)
        y = model(x[:1].expand(3, -1))
        assert torch.allclose(y[0], y[1]) == shared


def test_same_seed_same_noise() -> None:
    for estimator in ("local", "local_bf16", "local_detached", "weight"):
        model, x, _ = network("transposed", estimator)
        torch.manual_seed(7)
        first = model(x)
        torch.manual_seed(7)
        assert torch.equal(first, model(x))
        assert not torch.equal(first, model(x))


def test_detached_variance_passes_no_gradient_to_the_input_only() -> None:
    gradients = {}
    for estimator in ("local", "local_detached"):
        model, x, _ = network("linear", estimator)
        x.requires_grad_()
        torch.manual_seed(7)
        model(x).sum().backward()
        gradients[estimator] = x.grad, model[0].weight.grad, model[0].log_sigma2.grad
    model, x, reference = network("linear", "local")
    x.requires_grad_()
    reference(x, model[0].weight, model[0].bias).sum().backward()
    torch.testing.assert_close(gradients["local_detached"][0], x.grad)  # that of the mean
    assert not torch.allclose(gradients["local"][0], x.grad)
    for detached, full in zip(gradients["local_detached"][1:], gradients["local"][1:], strict=True):
        torch.testing.assert_close(detached, full)


@pytest.mark.parametrize("case", CASES)
def test_shared_variance_has_the_gradients_of_its_copies(case: str) -> None:
    """The same network with the same sigma^2 written out for each weight: the same output, and summed gradients."""
    shared, x, _ = network(case, "local", "channel")
    whole, _, _ = network(case, "local")
    whole[0].load_state_dict(
        {**shared[0].state_dict(), "log_sigma2": shared[0].log_sigma2.expand_as(shared[0].weight).clone()}
    )
    gradients = []
    for model in (shared.double(), whole.double()):
        given = x.double().requires_grad_()
        torch.manual_seed(7)
        (model(given).square().sum() + svd.kl(model)).backward()
        found = model[0].log_sigma2.grad.sum_to_size(shared[0].log_sigma2.shape)
        gradients.append((found, model[0].weight.grad, given.grad))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("estimator", ["local", "local_bf16", "local_detached"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_nan_where_the_variance_is_zero(estimator: str, dtype: torch.dtype) -> None:
    model = svd.sparsify_(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).to(dtype), estimator=estimator)
    x = torch.zeros(2, 3, 5, 5, dtype=dtype, requires_grad=True)
    y = model(x)
    y.square().sum().backward()
    for tensor in (y, x.grad, *(p.grad for p in model.parameters())):
        assert tensor.isfinite().all()
    torch.testing.assert_close(y, model[0].bias.view(1, -1, 1, 1).expand_as(y), rtol=0, atol=1e-3)


@pytest.mark.parametrize("estimator", ["local", "local_bf16", "local_detached"])
def test_noise_survives_float16_autocast(estimator: str) -> None:
    """float16 holds neither x^2 > 65504 nor sigma^2 < 6e-8 (and 4.5e-5, the start, badly)."""
    torch.manual_seed(0)
    model = svd.sparsify_(nn.Sequential(nn.Linear(8, 4)), estimator=estimator, init_log_sigma2=-18.0)
    x = torch.full((20000, 8), 400.0)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        layer = model[0]
        noise = (model(x / 400 * 300) - F.linear(x / 400 * 300, layer.weight, layer.bias)).float()
    # sd = 300 * sqrt(8 * exp(-18)) = 0.105; float16 outputs of size ~100 are rounded to 0.06
    assert noise.isfinite().all()
    assert 0.08 < noise.std() < 0.14


@pytest.mark.parametrize("estimator", ["local", "local_bf16", "local_detached"])
def test_noise_survives_a_network_in_float16(estimator: str) -> None:
    torch.manual_seed(0)
    layer = svd.sparsify_(nn.Linear(8, 4), estimator=estimator).half()
    x = torch.full((20000, 8), 300.0, dtype=torch.float16)
    with torch.no_grad():
        noise = (layer(x) - F.linear(x, layer.weight, layer.bias)).float()
    assert noise.isfinite().all()
    assert 0.95 < noise.std() / (300 * (8 * math.exp(-10)) ** 0.5) < 1.05


@pytest.mark.parametrize("estimator", ["local", "weight"])
@pytest.mark.parametrize("weights_follow", [False, True])
def test_the_layout_in_memory_changes_no_gradient(
    estimator: str, weights_follow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With images channels last, a convolution returns the gradient of its weight so, too, however that is laid out."""

    def fixed_noise(like: Tensor) -> Tensor:  # by place in the tensor; torch draws by place in memory
        return torch.arange(like.numel()).sin().view(like.shape)

    monkeypatch.setattr("nni_sparsevd.nn.noise.sample_standard_normal", fixed_noise)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1))
    images = torch.randn(2, 4, 6, 6)
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = svd.sparsify_(copy.deepcopy(plain), estimator=estimator)
        if weights_follow:
            model.to(memory_format=layout)
        x = images.clone(memory_format=layout).requires_grad_()
        model(x).square().sum().backward()
        learned = (x, model[0].weight, model[0].log_sigma2)
        assert all(tensor.grad.stride() == tensor.stride() for tensor in learned)
        gradients.append([tensor.grad for tensor in learned])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_noise_is_normal_independent_and_laid_out_like_its_model(layout: torch.memory_format) -> None:
    like = torch.empty(50, 6, 16, 16).to(memory_format=layout)
    noise = sample_standard_normal(like)
    assert noise.stride() == like.stride()
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    rows = noise.permute(1, 0, 2, 3).flatten(1)
    assert (torch.corrcoef(rows) - torch.eye(6)).abs().max() < 0.05
    assert sample_standard_normal(torch.empty(3, 4)).shape == (3, 4)
