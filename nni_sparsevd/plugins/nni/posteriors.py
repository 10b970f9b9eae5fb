"""A posterior on one pruning target of an NNI wrapper: how its noise enters, its KL, and the evidence on each block."""

from typing import Any

import torch
from nni.compression.base.apply_method import pruning_apply_methods
from nni.compression.base.target_space import PruningTargetSpace
from torch import Tensor, nn

from ...nn import VARIATIONAL, local_reparameterization, make_log_sigma2, sample_weights
from ...posterior import divergence
from ...settings import PosteriorSettings

SAMPLED = "sparse_vd_{}"
"""Apply methods of NNI that draw the target from its posterior before they do what the plain one does."""


class TargetPosterior:
    """N(theta, sigma^2) on every element of a target; theta is NNI's own parameter, log sigma^2 a new one beside it.

    Both live on the wrapper, so they come and go with it: `wrap_model`, `unwrap_model` and the state dict know them.
    """

    def __init__(self, space: PruningTargetSpace, settings: PosteriorSettings, kl_weight: float) -> None:
        self.space = space
        self.settings = settings
        self.kl_weight = kl_weight
        self._wrapper: Any = space._wrapper
        self._name = f"{space._target_name}_log_sigma2"
        self._plain_forward = self._wrapper.module_forward
        self._plain_method = space.apply_method
        space.sparse_vd = self  # type: ignore[attr-defined]
        module = self._wrapper.module
        linear = type(module) in VARIATIONAL and space._target_name == "weight"
        start = settings.init_log_sigma2
        log_sigma2 = make_log_sigma2(module, settings) if linear else torch.full_like(self.theta, start)
        self._wrapper.register_parameter(self._name, nn.Parameter(log_sigma2, requires_grad=True))
        if linear and settings.estimator != "weight":
            self._wrapper.module_forward = self._local_forward
        else:
            space.apply_method = SAMPLED.format(self._plain_method)

    @property
    def theta(self) -> Tensor:
        """The mean: the parameter that NNI masks."""
        target: Tensor = self.space.target
        return target

    @property
    def log_sigma2(self) -> nn.Parameter:
        """In the target's shape, or one for all weights of an output channel."""
        parameter: nn.Parameter = getattr(self._wrapper, self._name)
        return parameter

    def silence_(self) -> None:
        """No more noise: from here on the layer computes with its masked mean, in training too."""
        self.space.apply_method = self._plain_method
        self._wrapper.module_forward = self._plain_forward
        module = self._wrapper.module
        if not hasattr(module, "_nni_wrapper"):  # unwrapped, a module runs what the wrapper would have called
            module.forward = self._plain_forward

    def remove_(self) -> None:
        """Take log sigma^2 off the wrapper: its state is that of any pruned layer."""
        delattr(self._wrapper, self._name)

    def kl(self) -> Tensor:
        """KL of all elements from the prior, times `kl_weight`: a scalar."""
        return self.kl_weight * divergence.kl(self.theta, self.log_sigma2, self.settings.prior)

    def moments(self) -> tuple[Tensor, Tensor]:
        """(sum of theta^2, sum of sigma^2) over each of the target's blocks, in float64, in the shape of its metric."""
        scaler = self.space._scaler
        variances = self.log_sigma2.detach().double().exp().expand_as(self.theta)
        squares = self.theta.detach().double().square(), variances
        if scaler is None:
            return squares
        signal, noise = (scaler.shrink(value, lambda block: block.sum(-1), keepdim=True) for value in squares)
        return signal, noise

    def sampled(self, target: Tensor) -> Tensor:
        """One draw for the whole batch around `target`, which NNI may have quantized; nothing outside training."""
        if not self._wrapper.module.training:
            return target
        return sample_weights(target, self._noise())

    def _noise(self) -> Tensor:
        """Log sigma^2 of what is a weight: the padding row of an embedding is none."""
        padding = getattr(self._wrapper.module, "padding_idx", None)
        if padding is None:
            return self.log_sigma2
        row = torch.tensor(padding, device=self.log_sigma2.device)
        return self.log_sigma2.expand_as(self.theta).index_fill(0, row, -torch.inf)

    def _local_forward(self, x: Tensor, *rest: Any) -> Tensor:
        """The module's own forward, twice: with the mean for the mean, with the variances for the variance."""
        module = self._wrapper.module
        if not module.training or not hasattr(module, "_nni_wrapper"):
            plain: Tensor = self._plain_forward(x, *rest)
            return plain
        weight, bias = module.weight, getattr(module, "bias", None)  # what NNI has just put there: masked

        def put(weight: Tensor, bias: Tensor | None) -> None:
            module.weight = weight
            if hasattr(module, "bias"):
                module.bias = bias

        def operation(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            put(weight, bias)
            output: Tensor = self._plain_forward(x, *rest)
            return output

        sigma2 = self._noise().exp() if self._plain_method == "bypass" else self._noise().exp() * self.space.mask
        squared = None if x.is_floating_point() else x  # the indices of an embedding
        try:
            return local_reparameterization(
                operation, x, weight, sigma2, bias, self.settings.estimator, x_squared=squared
            )
        finally:
            put(weight, bias)


def register_apply_methods() -> None:
    """Enter the drawing twins of NNI's apply methods in its table: as Slim and Movement have theirs."""
    for name in ("bypass", "mul", "add"):

        def draw(target: Tensor, space: Any, plain: str = name) -> Tensor:
            masked: Tensor = pruning_apply_methods[plain](space.sparse_vd.sampled(target), space)
            return masked

        pruning_apply_methods[SAMPLED.format(name)] = draw
