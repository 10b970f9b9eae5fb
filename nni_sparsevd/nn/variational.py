"""A weight posterior on one of torch's own layers: what all of them share.

A layer becomes variational by switching its class, not by being replaced: names, hooks, parameter objects, device and
every attribute that a model keeps on it stay as they are, and switching back leaves no trace.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..posterior import Estimator, divergence, elements
from ..settings import PosteriorSettings

Operation = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(input, weight, bias) -> output: what the layer does with its weight."""


def local_reparameterization(
    operation: Operation,
    x: Tensor,
    weight: Tensor,
    sigma2: Tensor,
    bias: Tensor | None,
    estimator: Estimator,
    *,
    x_squared: Tensor | None = None,
) -> Tensor:
    """One sample of the output under weights N(weight, sigma2), of an operation that is linear in input and weight.

    The output is Gaussian with mean op(x, theta) and variance op(x^2, sigma^2); the bias has no part in the variance
    (Kingma et al. 2015; the paper, sec. 3.2).  `x_squared` where it is not x * x: the indices of an embedding.
    """
    mean = operation(x, weight, bias)
    x = x.detach() if estimator == "local_detached" else x
    device = x.device.type
    half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    if estimator != "local_bf16" and not half:
        return _noisy(mean, operation, x.square() if x_squared is None else x_squared, sigma2, weight)
    # float16 holds neither x^2 > 65504 nor small sigma^2, so its variance is computed in float32; and autocast
    # would turn the bfloat16 of local_bf16 into its own type
    kind = torch.bfloat16 if estimator == "local_bf16" else torch.float32
    with torch.autocast(device, enabled=False):
        squared = x.to(kind).square() if x_squared is None else x_squared
        return _noisy(mean, operation, squared, sigma2.to(kind), weight)


def _noisy(mean: Tensor, operation: Operation, x_squared: Tensor, sigma2: Tensor, weight: Tensor) -> Tensor:
    """A sample of N(mean, op(x^2, sigma^2)).

    With one sigma^2 a row of the weight the deviation is sigma * sqrt(op(sum of x^2 over the inputs, 1)): just as
    exact, for the cost of a single output channel.
    """
    rows = elements.has_one_value_per_row(sigma2, weight) and x_squared.is_floating_point()
    if sigma2.shape == weight.shape or not rows:
        return _Sampled.apply(mean, operation(x_squared, sigma2.expand_as(weight), None))  # type: ignore[no-any-return]
    inputs = 1 - weight.dim()  # their dimension, counted from the end
    groups = x_squared.shape[inputs] // weight.shape[1]
    power = x_squared.unflatten(inputs, (groups, -1)).sum(inputs)
    reached = operation(power, power.new_ones(groups, 1, *weight.shape[2:]), None).unsqueeze(inputs)
    sigma = sigma2.sqrt().view(groups, -1, *[1] * (weight.dim() - 2))
    deviation = (_root(reached) * sigma).flatten(inputs - 1, inputs)
    return torch.addcmul(mean, deviation.to(mean.dtype), sample_standard_normal(mean))


def _root(variance: Tensor) -> Tensor:
    """Square root in float32 or wider.

    1e-8: it has no gradient at exactly 0 (an input of zeros).  The clamp: fast convolutions (Winograd) may round a
    variance of 0 to slightly below it.
    """
    wide = torch.promote_types(variance.dtype, torch.float32)
    return (variance.to(wide).clamp_min(0) + 1e-8).sqrt()


class _Sampled(torch.autograd.Function):
    """mean + sqrt(variance) * epsilon, keeping only its slope in the variance: epsilon / (2 sqrt(variance)).

    Autograd would keep four tensors of the size of the output, and pass over them twice as often.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor) -> Tensor:
        root, noise = _root(variance), sample_standard_normal(mean)
        output = torch.addcmul(mean, root.to(mean.dtype), noise)
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(torch.div(noise, root, out=root).mul_(0.5).to(variance.dtype))
        return output

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        if not ctx.needs_input_grad[1]:
            return grad, None
        (slope,) = ctx.saved_tensors
        return grad, (grad * slope).to(slope.dtype)


def sample_standard_normal(like: Tensor) -> Tensor:
    """Independent draws of N(0, 1) in the shape, type and layout of `like`.

    Into memory that is channels last, torch draws number by number on a CPU, many times slower than in one go.
    """
    if like.dim() != 4 or like.is_contiguous() or not like.is_contiguous(memory_format=torch.channels_last):
        return torch.randn_like(like)
    count, channels, height, width = like.shape
    return like.new_empty(count, height, width, channels).normal_().permute(0, 3, 1, 2)


def sample_weights(theta: Tensor, log_sigma2: Tensor) -> Tensor:
    """One draw of the weights for the whole batch: theta + sigma * epsilon; `log_sigma2` broadcasts to theta."""
    return _OneSample.apply(theta, log_sigma2)  # type: ignore[no-any-return]


class _OneSample(torch.autograd.Function):
    """Keeps sigma * epsilon alone, where autograd would keep both factors and pass over the weights twice as often."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, log_sigma2: Tensor) -> Tensor:
        noise = torch.randn_like(theta).mul_((0.5 * log_sigma2).exp_())
        ctx.save_for_backward(noise)
        ctx.shape = log_sigma2.shape
        return theta + noise

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        (noise,) = ctx.saved_tensors
        along = (grad * noise).mul_(0.5).sum_to_size(ctx.shape) if ctx.needs_input_grad[1] else None
        return grad, along


def output_dim(layer: nn.Module) -> int:
    """The dimension of `layer.weight` that holds its outputs; an embedding's are its columns."""
    return 1 if getattr(layer, "transposed", False) or isinstance(layer, nn.Embedding) else 0


def make_log_sigma2(layer: nn.Module, settings: PosteriorSettings) -> Tensor:
    """Where log sigma^2 starts: in the shape of the weight, or with 1 in all its dimensions but that of the outputs."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if settings.variance == "weight":
        return torch.full_like(weight, settings.init_log_sigma2)
    shape = [size if dim == output_dim(layer) else 1 for dim, size in enumerate(weight.shape)]
    return weight.new_full(shape, settings.init_log_sigma2)


class Variational(nn.Module):
    """Mixin: every weight has a posterior N(weight, exp(log_sigma2)).  Put it before the torch class.

    In training mode the output is sampled; in evaluation mode it is computed with the mean of the weights that are
    kept (log alpha below `threshold`), without noise: exactly what the baked layer computes.
    """

    weight: Any
    bias: Any
    log_sigma2: nn.Parameter
    settings: PosteriorSettings
    threshold: float
    """A weight whose log alpha reaches this is removed."""
    kl_weight: float
    """Factor on this layer's KL."""

    def __init__(self, *sizes: Any, settings: PosteriorSettings | None = None, **options: Any) -> None:
        """The torch layer's own arguments, and the posterior's settings."""
        super().__init__(*sizes, **options)
        self.add_posterior_(settings or PosteriorSettings())

    def add_posterior_(self, settings: PosteriorSettings) -> None:
        """Add log_sigma2 and the settings."""
        self.log_sigma2 = nn.Parameter(make_log_sigma2(self, settings), requires_grad=self.weight.requires_grad)
        self.settings = settings
        self.threshold = settings.threshold
        self.kl_weight = 1.0

    def log_alpha(self) -> Tensor:
        """Log sigma^2 - log theta^2, in the weight's shape."""
        return elements.log_alpha(self.weight, self.log_sigma2)

    def kl(self) -> Tensor:
        """KL of all weights from the prior, times `kl_weight`: a scalar."""
        return self.kl_weight * divergence.kl(self.weight, self.log_sigma2, self.settings.prior)

    def add_kl_gradient_(self, weight: float) -> None:
        """Add the gradient of `weight` times the KL to what backward has left."""
        weight *= self.kl_weight
        divergence.add_kl_gradient_(self.weight, self.log_sigma2, weight, self.settings.prior)

    def mask(self) -> Tensor:
        """True where a weight is kept, in the weight's shape."""
        return self.log_alpha() < self.threshold

    def compute_output(self, operation: Operation, x: Tensor, x_squared: Tensor | None = None) -> Tensor:
        """Output of the layer whose operation on (input, weight, bias) is linear in input and weight."""
        if not self.training:
            kept = torch.where(self.mask(), self.weight, torch.zeros_like(self.weight))
            return operation(x, kept, self.bias)
        if self.settings.estimator == "weight":
            return operation(x, sample_weights(self.weight, self.log_sigma2), self.bias)
        sigma2 = self.log_sigma2.exp()
        return local_reparameterization(
            operation, x, self.weight, sigma2, self.bias, self.settings.estimator, x_squared=x_squared
        )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """A plain layer's state dict loads too: log_sigma2 then stays as it is."""
        filled = state_dict
        if isinstance(filled, dict):
            filled.setdefault(prefix + "log_sigma2", self.log_sigma2.detach())
        super()._load_from_state_dict(filled, prefix, *rest)  # type: ignore[arg-type]
