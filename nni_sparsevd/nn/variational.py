"""A weight posterior on a layer of torch: what all variational layers share.

A layer becomes variational by switching its class, not by being replaced: names, hooks, parameter objects, device and
every attribute that a model keeps on it stay as they are, and switching back leaves no trace.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..posterior import Prior, divergence, elements
from ..settings import PosteriorSettings
from .noise import Operation, in_layout_of, local_reparameterization, sample_weights
from .output_axes import output_dim


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


def kl_beside_row(theta: Tensor, log_sigma2: Tensor, prior: Prior, fixed_row: int | None) -> Tensor:
    """KL of all weights from the prior, but those of a row that is a constant.

    Args:
        theta: Means of the weights, any shape.
        log_sigma2: Logarithm of the variances, in the shape of `theta` or broadcastable to it.
        prior: The prior.
        fixed_row: The row, along the first dimension; None: there is none.

    Returns:
        A scalar with gradient, in nats.
    """
    if fixed_row is None:
        return divergence.kl(theta, log_sigma2, prior)
    before, after = slice(fixed_row), slice(fixed_row + 1, None)
    log_sigma2 = log_sigma2.expand_as(theta)
    kl_before = divergence.kl(theta[before], log_sigma2[before], prior)
    return kl_before + divergence.kl(theta[after], log_sigma2[after], prior)


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
        return self.kl_weight * kl_beside_row(self.weight, self.log_sigma2, self.settings.prior, self.fixed_row)

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
            kept = in_layout_of(self.weight, torch.where(self.mask(), self.weight, torch.zeros_like(self.weight)))
            return operation(x, kept, self.bias)
        if self.settings.estimator == "weight":
            return operation(x, sample_weights(self.weight, self.log_sigma2), self.bias)
        sigma2 = in_layout_of(self.weight, self.log_sigma2.exp())
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
