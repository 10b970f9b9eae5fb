"""A posterior on one pruning target of an NNI wrapper: how its noise enters, its KL, and the evidence on each block."""

from typing import Any

import torch
from nni.compression.base.apply_method import pruning_apply_methods
from nni.compression.base.target_space import PruningTargetSpace
from torch import Tensor, nn

from ...nn import VARIATIONAL, kl_beside_row, local_reparameterization, make_log_sigma2, sample_weights
from ...settings import PosteriorSettings
from ..patching import Patch
from .compatibility import addition, enable_once

SAMPLED = "sparse_vd_{}"
"""Our apply methods by the name of NNI's own: each draws the target from its posterior, then does what NNI's does."""


class TargetPosterior:
    """N(theta, sigma^2) on every element of a target; theta is NNI's own parameter, log sigma^2 a new one beside it.

    Both live on the wrapper, so they come and go with it: `wrap_model`, `unwrap_model` and the state dict know them.
    """

    def __init__(
        self,
        space: PruningTargetSpace,
        settings: PosteriorSettings,
        kl_weight: float,
        shared: "TargetPosterior | None" = None,
    ) -> None:
        """Attach a posterior to a target.

        Args:
            space: The target.
            settings: Settings of the posterior.
            kl_weight: Factor on its KL.
            shared: The posterior of another module's target that is the same parameter.  Both then have its variances,
                and its KL counts once.
        """
        self.shared = shared
        self.space = space
        self.settings = settings
        self.kl_weight = kl_weight
        self._wrapper: Any = space._wrapper
        self._name = f"{space._target_name}_log_sigma2"
        self._plain_forward = self._wrapper.module_forward
        self._plain_method = space.apply_method
        space.sparse_vd = self  # type: ignore[attr-defined]
        module = self._wrapper.module
        has_twin = type(module) in VARIATIONAL and space._target_name == "weight"
        if shared is not None:
            parameter = shared.log_sigma2
        elif has_twin:
            parameter = nn.Parameter(make_log_sigma2(module, settings), requires_grad=True)
        else:
            parameter = nn.Parameter(torch.full_like(self.theta, settings.init_log_sigma2), requires_grad=True)
        self._wrapper.register_parameter(self._name, parameter)
        # The padding of an embedding is a constant: it has no noise and no KL, and is never removed.
        self.padding_row: int | None = getattr(module, "padding_idx", None)
        if shared is not None and shared.padding_row is not None:
            self.padding_row = shared.padding_row
        # There are two places where noise can enter.
        # 1. In the layer's outputs, where we know how variances propagate through the layer: this samples every image
        #    by itself, with less variance in the gradient.
        # 2. In the target itself, through NNI's table of apply methods: this works for every kind of module.
        if has_twin and settings.estimator != "weight":
            self._wrapper.module_forward = self._local_forward
        else:
            space.apply_method = SAMPLED.format(self._plain_method)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A model that is learning may be sent to a new process.  There NNI looks our apply methods up by name, before
        # anything else of ours has run.
        enable_once()
        vars(self).update(state)

    @property
    def theta(self) -> Tensor:
        """The mean: the parameter that NNI masks."""
        target: Tensor = self.space.target
        return target

    @property
    def log_sigma2(self) -> nn.Parameter:
        """In the target's shape, or one value for all weights of an output channel, broadcastable to it."""
        parameter: nn.Parameter = getattr(self._wrapper, self._name)
        return parameter

    def stop_noise_(self) -> None:
        """From here on the layer computes with its masked mean, in training mode too."""
        self.space.apply_method = self._plain_method
        self._wrapper.module_forward = self._plain_forward
        module = self._wrapper.module
        if not hasattr(module, "_nni_wrapper"):  # unwrapped, a module runs what the wrapper would have called
            module.forward = self._plain_forward

    def remove_(self) -> None:
        """Take log sigma^2 off the wrapper: its state is that of any pruned layer."""
        delattr(self._wrapper, self._name)

    def kl(self) -> Tensor:
        """KL of all elements from the prior, times `kl_weight`: a scalar, in nats; 0 where another posterior has it."""
        if self.shared is not None:
            return torch.zeros((), device=self.theta.device, dtype=self.theta.dtype)
        return self.kl_weight * kl_beside_row(self.theta, self.log_sigma2, self.settings.prior, self.padding_row)

    def sum_powers(self) -> tuple[Tensor, Tensor]:
        """(sum of theta^2, sum of sigma^2) over each of the target's blocks, in float64, in the shape of its metric."""
        signal = self.theta.detach().double().square()
        noise = self._noise().detach().double().exp().expand_as(self.theta)
        scaler = self.space._scaler
        if scaler is None:  # each element is a block
            return signal, noise

        def sum_block(block: Tensor) -> Tensor:
            return block.sum(-1)

        return scaler.shrink(signal, sum_block, keepdim=True), scaler.shrink(noise, sum_block, keepdim=True)

    def draw(self, target: Tensor) -> Tensor:
        """One sample of the weights for the whole batch; in evaluation mode the mean.

        Args:
            target: The mean, which NNI may have quantized.
        """
        if not self._wrapper.module.training:
            return target
        return sample_weights(target, self._noise())

    def _noise(self) -> Tensor:
        """Log sigma^2, with a variance of zero for the padding row of an embedding, which is no weight."""
        if self.padding_row is None:
            return self.log_sigma2
        row = torch.tensor(self.padding_row, device=self.log_sigma2.device)
        return self.log_sigma2.expand_as(self.theta).index_fill(0, row, -torch.inf)

    def _local_forward(self, x: Tensor, *rest: Any) -> Tensor:
        """Sample the outputs of the layer instead of its weights: local reparameterization.

        The module's own forward runs twice: with the means it gives the outputs' mean, with the variances their
        variance.
        """
        module = self._wrapper.module
        if not module.training or not hasattr(module, "_nni_wrapper"):
            plain: Tensor = self._plain_forward(x, *rest)
            return plain
        weight, bias = module.weight, getattr(module, "bias", None)  # masked: NNI has just put them there

        def put_parameters(weight: Tensor, bias: Tensor | None) -> None:
            module.weight = weight
            if hasattr(module, "bias"):
                module.bias = bias

        def operation(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            put_parameters(weight, bias)
            output: Tensor = self._plain_forward(x, *rest)
            return output

        # A masked weight has no noise: NNI has masked the mean only.  `bypass` leaves both as they are.
        sigma2 = self._noise().exp()
        if self._plain_method != "bypass":
            sigma2 = sigma2 * self.space.mask
        squared = None if x.is_floating_point() else x  # the indices of an embedding
        # The two passes of the operation put different tensors in the place of the parameters.  At the end, even
        # after an error, the masked ones are back where NNI has put them.
        try:
            return local_reparameterization(
                operation, x, weight, sigma2, bias, self.settings.estimator, x_squared=squared
            )
        finally:
            put_parameters(weight, bias)


@addition
def apply_methods(patch: Patch) -> None:
    """Enter an apply method that draws beside each of NNI's own, as its Slim and Movement pruners have theirs."""
    for name in ("bypass", "mul", "add"):
        # `plain` is bound as a default: a closure would see the loop's last name in all three functions.
        def apply_to_sample(target: Tensor, space: Any, plain: str = name) -> Tensor:
            masked: Tensor = pruning_apply_methods[plain](space.sparse_vd.draw(target), space)
            return masked

        patch.set(pruning_apply_methods, SAMPLED.format(name), apply_to_sample)
