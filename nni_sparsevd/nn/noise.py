"""How noise enters a layer: its outputs are sampled, or its weights, once for a whole batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..posterior import Estimator, elements

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
    """Sample the output of an operation whose weights are N(weight, sigma2), without sampling the weights.

    The output is Gaussian with mean op(x, theta) + bias and variance op(x^2, sigma^2); the bias has no part in the
    variance (Kingma et al. 2015; the paper, sec. 3.2).

    Args:
        operation: The operation, linear in input and weight.
        x: The input.
        weight: Means of the weights.
        sigma2: Their variances, in the shape of `weight` or broadcastable to it.
        bias: The bias, or None.
        estimator: "local"; "local_detached" stops the gradient of the variance with respect to the input; "local_bf16"
            computes the variance in bfloat16.
        x_squared: What takes the place of x^2, where that is not x * x: the indices of an embedding.

    Returns:
        One sample of the output.
    """
    mean = operation(x, weight, bias)
    x = x.detach() if estimator == "local_detached" else x
    device = x.device.type
    computed_in = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if estimator != "local_bf16" and computed_in != torch.float16:
        return _add_noise(mean, operation, x.square() if x_squared is None else x_squared, sigma2, weight)
    # float16 holds neither x^2 > 65504 nor small sigma^2, so there the variance is computed in float32; and autocast
    # would turn the bfloat16 of local_bf16 into its own type.
    dtype = torch.bfloat16 if estimator == "local_bf16" else torch.float32
    with torch.autocast(device, enabled=False):
        squared = x.to(dtype).square() if x_squared is None else x_squared
        return _add_noise(mean, operation, squared, sigma2.to(dtype), weight)


def _add_noise(mean: Tensor, operation: Operation, x_squared: Tensor, sigma2: Tensor, weight: Tensor) -> Tensor:
    """A sample of N(mean, op(x^2, sigma^2)).

    With one sigma^2 per row of the weight, the deviation is sigma * sqrt(op(sum of x^2 over the inputs, 1)): just as
    exact, for the cost of a single output channel.
    """
    per_row = elements.has_one_value_per_row(sigma2, weight) and x_squared.is_floating_point()
    if sigma2.shape == weight.shape or not per_row:
        variance = operation(x_squared, sigma2.expand_as(weight), None)
        return _SampledOutput.apply(mean, variance)  # type: ignore[no-any-return]
    inputs = 1 - weight.dim()  # dimension of the input channels, counted from the end
    groups = x_squared.shape[inputs] // weight.shape[1]
    power = x_squared.unflatten(inputs, (groups, -1)).sum(inputs)
    ones = power.new_ones(groups, 1, *weight.shape[2:])
    variance = operation(power, ones, None).unsqueeze(inputs)
    sigma = sigma2.sqrt().view(groups, -1, *[1] * (weight.dim() - 2))
    deviation = (_safe_root(variance) * sigma).flatten(inputs - 1, inputs)
    return torch.addcmul(mean, deviation.to(mean.dtype), sample_standard_normal(mean))


def _safe_root(variance: Tensor) -> Tensor:
    """Square root in float32 or wider, with a finite gradient everywhere.

    1. The 1e-8: the root has no gradient at exactly 0, where an input of zeros puts it.
    2. The clamp: fast convolutions (Winograd) may round a variance of 0 to slightly below 0.
    """
    wide = torch.promote_types(variance.dtype, torch.float32)
    return (variance.to(wide).clamp_min(0) + 1e-8).sqrt()


class _SampledOutput(torch.autograd.Function):
    """mean + sqrt(variance) * epsilon, which keeps only its slope in the variance: epsilon / (2 sqrt(variance)).

    Autograd would keep four tensors of the size of the output, and pass over them twice as often.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor) -> Tensor:
        root, noise = _safe_root(variance), sample_standard_normal(mean)
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
    """Draw independent numbers from N(0, 1) in the shape, type and memory layout of `like`."""
    if like.dim() != 4 or like.is_contiguous() or not like.is_contiguous(memory_format=torch.channels_last):
        return torch.randn_like(like)
    # On a CPU, torch fills channels-last memory number by number, many times slower than contiguous memory.
    count, channels, height, width = like.shape
    return like.new_empty(count, height, width, channels).normal_().permute(0, 3, 1, 2)


def sample_weights(theta: Tensor, log_sigma2: Tensor) -> Tensor:
    """Draw the weights once for a whole batch: theta + sigma * epsilon.

    Args:
        theta: Means of the weights, any shape.
        log_sigma2: Logarithm of the variances, in the shape of `theta` or broadcastable to it.

    Returns:
        The weights, in the shape of `theta`, with gradients to both arguments; they can be differentiated once.
    """
    return _SampledWeights.apply(theta, log_sigma2)  # type: ignore[no-any-return]


class _SampledWeights(torch.autograd.Function):
    """theta + sigma * epsilon, which keeps only sigma * epsilon.

    Autograd would keep both factors, and pass over the weights twice as often.
    """

    @staticmethod
    def forward(ctx: Any, theta: Tensor, log_sigma2: Tensor) -> Tensor:
        noise = sample_standard_normal(theta).mul_((0.5 * log_sigma2).exp_())
        ctx.save_for_backward(noise)
        ctx.shape = log_sigma2.shape
        return in_layout_of(theta, theta + noise)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        if not ctx.needs_input_grad[1]:
            return grad, None
        (noise,) = ctx.saved_tensors
        return grad, (grad * noise).mul_(0.5).sum_to_size(ctx.shape)


def in_layout_of(weight: Tensor, values: Tensor) -> Tensor:
    """Give values computed from a weight the strides of that weight.

    A kernel of one input channel lies the same way channels last or not; its strides alone say which. Torch's
    element-wise functions drop them, and a convolution then answers an image of one channel with contiguous outputs,
    which everything behind it has to convert.

    Args:
        weight: The weight.
        values: One value for each weight, or fewer that are broadcast to it.

    Returns:
        The values, copied where their strides had been lost.
    """
    is_ambiguous = weight.dim() == 4 and weight.shape[1] == 1
    if not is_ambiguous or values.shape != weight.shape or values.stride() == weight.stride():
        return values
    return torch.empty_like(weight).copy_(values)
