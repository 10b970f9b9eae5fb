"""A weight posterior on a layer of torch: what all variational layers share.

A layer becomes variational by switching its class, not by being replaced: names, hooks, parameter objects, device and
every attribute that a model keeps on it stay as they are, and switching back leaves no trace.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

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
        return _in_layout_of(theta, theta + noise)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        if not ctx.needs_input_grad[1]:
            return grad, None
        (noise,) = ctx.saved_tensors
        return grad, (grad * noise).mul_(0.5).sum_to_size(ctx.shape)


def _in_layout_of(weight: Tensor, values: Tensor) -> Tensor:
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


def output_dim(layer: nn.Module) -> int:
    """The dimension of `layer.weight` that holds its outputs; those of an embedding are its columns."""
    return 1 if getattr(layer, "transposed", False) or isinstance(layer, nn.Embedding) else 0


def scaling_keys(layer: nn.Module) -> tuple[str, str]:
    """Find the parameters that scale the outputs of a layer or norm when both are scaled.

    Args:
        layer: The layer or norm.

    Returns:
        The names "weight" and "bias", whether or not the layer has both.  A layer that standardizes its weight has a
        gain behind that, which stands for the weight: timm's ScaledStdConv2d.  So have the lengths of weight norm,
        which torch keeps in the layer, or below it as a parametrization.
    """
    if isinstance(layer._parameters.get("gain"), Tensor):
        return "gain", "bias"
    if any(isinstance(hook, WeightNorm) and hook.name == "weight" for hook in layer._forward_pre_hooks.values()):
        return "weight_g", "bias"
    if parametrize.is_parametrized(layer, "weight"):
        makers = layer.get_submodule("parametrizations.weight").children()
        if [type(maker) for maker in makers] == [_WeightNorm]:
            return "parametrizations.weight.original0", "bias"
    return "weight", "bias"


def find_parameter(layer: nn.Module, key: str) -> nn.Parameter | None:
    """Find a parameter of a layer by its name within the layer; None where there is none.

    Args:
        layer: The layer or norm.
        key: One of its `scaling_keys`.
    """
    holder: nn.Module | None = layer
    *children, name = key.split(".")
    for child in children:
        holder = None if holder is None else holder._modules.get(child)
    return None if holder is None else holder._parameters.get(name)


def spread_over_parameter(values: Tensor, layer: nn.Module, key: str, parameter: Tensor) -> Tensor:
    """Bring one value per output channel into a shape that is broadcast to a parameter.

    Args:
        values: The values, shape (channels,).
        layer: The layer or norm.
        key: One of its `scaling_keys`.
        parameter: The parameter of that name.

    Returns:
        The values along the dimension of the outputs.
    """
    dim = output_dim(layer) if key == "weight" else 0
    groups = getattr(layer, "groups", 1)
    if dim == 1 and groups > 1:  # a transposed convolution: the outputs of a group beside the inputs of the group
        by_group = values.view(groups, 1, -1).expand(-1, len(parameter) // groups, -1)
        return by_group.flatten(0, 1).view(len(parameter), -1, *[1] * (parameter.dim() - 2))
    shape = [1] * parameter.dim()
    shape[dim] = -1
    return values.view(shape)


def make_log_sigma2(layer: nn.Module, settings: PosteriorSettings) -> Tensor:
    """Make the initial log sigma^2 of a layer.

    Args:
        layer: A layer with a `weight`.
        settings: Settings of the posterior.

    Returns:
        A tensor in the shape of the weight; with one variance per channel, of size 1 in all dimensions but that of the
        outputs.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if settings.variance == "weight":
        return torch.full_like(weight, settings.init_log_sigma2)
    shape = [1] * weight.dim()
    shape[output_dim(layer)] = weight.shape[output_dim(layer)]
    return weight.new_full(shape, settings.init_log_sigma2)


def require_call(layer: nn.Module, inputs: Any) -> None:
    """Do nothing: a hook that has torch call the layer, and not a fused kernel with its weight.

    In evaluation mode `nn.TransformerEncoderLayer` does not call its linear layers, unless one of them has a hook.
    """


class Variational(nn.Module):
    """Mixin: every weight has a posterior N(weight, exp(log_sigma2)).  Put it before the class of torch.

    In training mode the output is sampled.  In evaluation mode it is computed without noise, with the means of the
    weights that are kept (log alpha below `threshold`): exactly what the baked layer computes.

    A layer of your own calls `compute_output` in its `forward`; `nni_sparsevd.testing.VariationalLayerTestCase` tests
    it.
    """

    weight: Any
    bias: Any
    log_sigma2: nn.Parameter
    settings: PosteriorSettings
    threshold: float
    """A weight is removed when its log alpha reaches this."""
    kl_weight: float
    """Factor on the KL of this layer."""
    fixed_row: int | None = None
    """A row of the weight that is a constant, not learned: it has no KL and is never removed.

    The padding row of an embedding, also in the other layers that have the embedding's weight.
    """

    def __init__(self, *sizes: Any, settings: PosteriorSettings | None = None, **options: Any) -> None:
        """Make the layer with a posterior.

        Args:
            sizes: Positional arguments of the layer of torch.
            settings: Settings of the posterior; None: the defaults.
            options: Keyword arguments of the layer of torch.
        """
        super().__init__(*sizes, **options)
        self.add_posterior_(settings or PosteriorSettings())

    def add_posterior_(self, settings: PosteriorSettings) -> None:
        """Add `log_sigma2` and the settings, in place.

        Args:
            settings: Settings of the posterior.
        """
        self.log_sigma2 = nn.Parameter(make_log_sigma2(self, settings), requires_grad=self.weight.requires_grad)
        self.settings = settings
        self.threshold = settings.threshold
        self.kl_weight = 1.0
        self.register_forward_pre_hook(require_call)

    def log_alpha(self) -> Tensor:
        """Log sigma^2 - log theta^2, in the shape of the weight; the lowest number in a fixed row."""
        values = elements.log_alpha(self.weight, self.log_sigma2)
        return self.fill_fixed_row(values, torch.finfo(values.dtype).min)

    def fill_fixed_row(self, values: Tensor, filling: float) -> Tensor:
        """Replace what stands in the fixed row, where the layer has one.

        Args:
            values: One value for each weight, in the shape of the weight.
            filling: What stands in that row instead.

        Returns:
            A new tensor, or `values` where there is no such row.
        """
        if self.fixed_row is None:
            return values
        is_fixed = torch.arange(len(values), device=values.device) == self.fixed_row
        return values.masked_fill(is_fixed.view(-1, *[1] * (values.dim() - 1)), filling)

    def kl(self) -> Tensor:
        """KL of all weights but those of a fixed row from the prior, times `kl_weight`: a scalar, in nats."""
        if self.fixed_row is None:
            return self.kl_weight * divergence.kl(self.weight, self.log_sigma2, self.settings.prior)
        before, after = slice(self.fixed_row), slice(self.fixed_row + 1, None)
        log_sigma2 = self.log_sigma2.expand_as(self.weight)
        kl_before = divergence.kl(self.weight[before], log_sigma2[before], self.settings.prior)
        kl_after = divergence.kl(self.weight[after], log_sigma2[after], self.settings.prior)
        return self.kl_weight * (kl_before + kl_after)

    def add_kl_gradient_(self, weight: float) -> None:
        """Add the gradient of `weight` times the KL to the `.grad` of both parameters.

        Args:
            weight: Factor on the gradient, beside `kl_weight`.
        """
        if self.fixed_row is None:
            weight *= self.kl_weight
            divergence.add_kl_gradient_(self.weight, self.log_sigma2, weight, self.settings.prior)
        else:
            divergence.backpropagate_kl(self.kl, weight)

    def mask(self) -> Tensor:
        """True where a weight is kept, in the shape of the weight."""
        return self.log_alpha() < self.threshold

    def compute_output(self, operation: Operation, x: Tensor, x_squared: Tensor | None = None) -> Tensor:
        """Compute the output of the layer: sampled in training mode, with the kept means in evaluation mode.

        Args:
            operation: What the layer does with input, weight and bias; linear in input and weight.
            x: The input.
            x_squared: What takes the place of x^2 in the variance, where that is not x * x: the indices of an
                embedding.

        Returns:
            The output.
        """
        if not self.training:
            kept = _in_layout_of(self.weight, torch.where(self.mask(), self.weight, torch.zeros_like(self.weight)))
            return operation(x, kept, self.bias)
        if self.settings.estimator == "weight":
            return operation(x, sample_weights(self.weight, self.log_sigma2), self.bias)
        sigma2 = _in_layout_of(self.weight, self.log_sigma2.exp())
        if output_dim(self) != 0 and sigma2.shape[0] > 1:
            # One variance per row is one per output only where rows are outputs.  Here a tied layer may have made it.
            sigma2 = sigma2.expand_as(self.weight)
        return local_reparameterization(
            operation, x, self.weight, sigma2, self.bias, self.settings.estimator, x_squared=x_squared
        )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Load a plain layer's state dict, too: `log_sigma2` then stays as it is."""
        # `load_state_dict` hands its own copy of the caller's dictionary to every module, so it may be filled.
        if isinstance(state_dict, dict):
            state_dict.setdefault(prefix + "log_sigma2", self.log_sigma2.detach())
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[arg-type]
