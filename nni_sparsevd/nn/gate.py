"""One multiplicative Gaussian posterior per channel, neuron or head."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..posterior import divergence, elements
from ..settings import PosteriorSettings


class ChannelGate(nn.Module):
    """z = N(mu, exp(log_sigma2)) per channel, multiplied into the outputs of the modules that it is attached to.

    Placed after the normalization, on the last writers of a coupled channel group, z = 0 makes the channel dead at
    every reader.  A gate on several writers is one posterior: its KL counts once; each writer and sample draws its own
    noise.

    `parts` are for layers that write several things at once, such as queries, keys and values: the outputs are then as
    many blocks of channels as there are parts, and the gate scales each block whose part is True.
    """

    def __init__(
        self,
        channels: int,
        settings: PosteriorSettings | None = None,
        *,
        parts: tuple[bool, ...] = (True,),
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Make a gate whose means are 1.

        Args:
            channels: Number of channels.
            settings: Settings of the posterior; None: the defaults.
            parts: Which blocks of the outputs the gate scales.
            device: Device of the parameters.
            dtype: Type of the parameters.
        """
        super().__init__()
        self.settings = settings or PosteriorSettings()
        self.mu = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.log_sigma2 = nn.Parameter(torch.full_like(self.mu, self.settings.init_log_sigma2))
        self.threshold = self.settings.threshold
        self.kl_weight = 1.0
        self.parts = parts
        self.writers: tuple[str, ...] = ()
        """Names of the layers whose channels the gate scales."""

    def extra_repr(self) -> str:
        return f"{len(self.mu)}"

    def log_alpha(self) -> Tensor:
        """Log sigma^2 - log mu^2, shape (channels,)."""
        return elements.log_alpha(self.mu, self.log_sigma2)

    def kl(self) -> Tensor:
        """KL of all channels from the prior, times `kl_weight`: a scalar, in nats."""
        return self.kl_weight * divergence.kl(self.mu, self.log_sigma2, self.settings.prior)

    def add_kl_gradient_(self, weight: float) -> None:
        """Add the gradient of `weight` times the KL to the `.grad` of both parameters.

        Args:
            weight: Factor on the gradient, beside `kl_weight`.
        """
        divergence.add_kl_gradient_(self.mu, self.log_sigma2, weight * self.kl_weight, self.settings.prior)

    def mask(self) -> Tensor:
        """True where a channel is kept, shape (channels,)."""
        return self.log_alpha() < self.threshold

    def repeat_over_parts(self, values: Tensor, dim: int = 0) -> Tensor:
        """Repeat values of the gate's channels for every part of the outputs, with 1 for parts that it leaves alone.

        Args:
            values: One value per channel of the gate along `dim`.
            dim: The dimension of the channels.

        Returns:
            One value per output channel along `dim`.
        """
        ones = torch.ones_like(values)
        return torch.cat([values if scaled else ones for scaled in self.parts], dim)

    def forward(self, x: Tensor, dim: int = 1) -> Tensor:
        """Scale the channels of `x`: in training by a fresh z per sample, in evaluation by the means that are kept.

        Args:
            x: Outputs of a layer, shape (batch, ...), with the channels along `dim`.
            dim: The dimension of the channels.

        Returns:
            A tensor in the shape of `x`.

        Raises:
            ModelError: `x` has another number of channels.
        """
        if x.shape[dim] != len(self.mu) * len(self.parts):
            raise ModelError(
                f"a gate of {len(self.mu)} channels in {len(self.parts)} parts met {tuple(x.shape)}, channels at "
                f"dimension {dim}"
            )
        shape = [1] * x.dim()
        shape[dim] = -1
        if not self.training:
            kept = torch.where(self.mask(), self.mu, torch.zeros_like(self.mu))
            return x * self.repeat_over_parts(kept).to(x.dtype).view(shape)
        noise_shape = [1] * x.dim()
        noise_shape[0], noise_shape[dim] = x.shape[0], len(self.mu)
        noise = torch.randn(noise_shape, device=x.device, dtype=self.mu.dtype)
        z = self.mu.view(shape) + (0.5 * self.log_sigma2).exp().view(shape) * noise
        return x * self.repeat_over_parts(z, dim).to(x.dtype)

    def attach_(self, site: nn.Module, dim: int) -> None:
        """Gate the outputs of a module, as its child "gate" and a forward hook; a deep copy takes both along.

        Args:
            site: The module.
            dim: The dimension of the channels in its outputs.

        Raises:
            ModelError: The module is a Sequential, which would run the gate as a layer, or has a `gate` already.
        """
        if isinstance(site, nn.Sequential) or hasattr(site, "gate"):
            reason = "would run it as a layer" if isinstance(site, nn.Sequential) else "has a `gate` already"
            raise ModelError(f"a gate cannot be attached to this {type(site).__name__}, which {reason}")
        site.register_module("gate", self)
        site.register_forward_hook(partial(self._scale_output, dim=dim))

    def detach_(self, site: nn.Module) -> None:
        """Undo `attach_`.

        Args:
            site: The module that the gate was attached to.
        """
        del site._modules["gate"]
        for key, hook in list(site._forward_hooks.items()):
            if isinstance(hook, partial) and getattr(hook.func, "__self__", None) is self:
                del site._forward_hooks[key]

    def _scale_output(self, site: nn.Module, inputs: Any, output: Tensor, *, dim: int) -> Tensor:
        """The forward hook."""
        gated: Tensor = self(output, dim)
        return gated
