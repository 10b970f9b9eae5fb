"""One multiplicative posterior per channel, neuron or head."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..posterior import (
    divergence,
    draw_log_normal,
    elements,
    evidence_gain,
    log_normal_evidence_gain,
    log_normal_kl,
    log_normal_log_alpha,
    log_normal_mean,
)
from ..settings import PosteriorSettings


class ChannelGate(nn.Module):
    """A factor z per channel, multiplied into the outputs of the modules that it is attached to.

    z is N(mu, exp(log_sigma2)); with `settings.gate = "log_normal"` that is log z, restricted to z between e^-20 and 1.

    Placed after the normalization, on the last writers of a coupled channel group, z = 0 makes the channel dead at
    every reader.  A gate on several writers is one posterior: its KL counts once; each writer and sample draws its own
    noise.

    A module may write other channels, too, or a channel several times: a projection to queries, keys and values writes
    a head by several outputs.  The gate then has **places** there: for each output the channel that scales it.
    """

    def __init__(
        self,
        channels: int,
        settings: PosteriorSettings | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Make a gate whose means are 1; those of a log-normal gate are slightly below.

        Args:
            channels: Number of channels.
            settings: Settings of the posterior; None: the defaults.
            device: Device of the parameters.
            dtype: Type of the parameters.
        """
        super().__init__()
        self.settings = settings or PosteriorSettings()
        start = 1.0 if self.settings.gate == "gaussian" else 0.0
        self.mu = nn.Parameter(torch.full((channels,), start, device=device, dtype=dtype))
        self.log_sigma2 = nn.Parameter(torch.full_like(self.mu, self.settings.init_log_sigma2))
        self.threshold = self.settings.threshold
        self.kl_weight = 1.0
        self.channels_at_first = channels
        """Channels when the gate was made: `mu` gets shorter where the network shrinks."""
        self.writers: tuple[str, ...] = ()
        """Names of the layers whose channels the gate scales."""
        self._observed: list[Tensor] | None = None
        """After `observe_`: the loss's gradients at the means, one for each sample, shape (batch, channels)."""

    def extra_repr(self) -> str:
        return f"{len(self.mu)}"

    def is_log_normal(self) -> bool:
        """Whether log z, and not z, is Gaussian."""
        return self.settings.gate == "log_normal"

    def mean(self) -> Tensor:
        """E[z], shape (channels,): what a channel is multiplied by where nothing is drawn."""
        return log_normal_mean(self.mu, self.log_sigma2) if self.is_log_normal() else self.mu

    def variance(self) -> Tensor:
        """Var z, shape (channels,)."""
        if self.is_log_normal():
            return self.mean().square() * self.log_alpha().exp()
        return self.log_sigma2.exp()

    def log_alpha(self) -> Tensor:
        """Log(Var z / E[z]^2), shape (channels,); of a Gaussian z log sigma^2 - log mu^2."""
        if self.is_log_normal():
            return log_normal_log_alpha(self.mu, self.log_sigma2)
        return elements.log_alpha(self.mu, self.log_sigma2)

    def evidence_gain(self) -> Tensor:
        """Change in log evidence if a channel goes, shape (channels,), in nats and float64."""
        if self.is_log_normal():
            return log_normal_evidence_gain(self.mu, self.log_sigma2)
        return evidence_gain(self.log_alpha(), self.settings.prior)

    def kl(self) -> Tensor:
        """KL of all channels from the prior, times `kl_weight`: a scalar, in nats."""
        if self.is_log_normal():
            wide = torch.promote_types(self.mu.dtype, torch.float32)
            return self.kl_weight * log_normal_kl(self.mu, self.log_sigma2).sum().to(wide)
        return self.kl_weight * divergence.kl(self.mu, self.log_sigma2, self.settings.prior)

    def add_kl_gradient_(self, weight: float) -> None:
        """Add the gradient of `weight` times the KL to the `.grad` of both parameters.

        Args:
            weight: Factor on the gradient, beside `kl_weight`.
        """
        if self.is_log_normal():
            divergence.backpropagate_kl(self.kl, weight)
            return
        divergence.add_kl_gradient_(self.mu, self.log_sigma2, weight * self.kl_weight, self.settings.prior)

    def mask(self) -> Tensor:
        """True where a channel is kept, shape (channels,)."""
        return self.log_alpha() < self.threshold

    def spread(self, values: Tensor, site: nn.Module, dim: int = 0) -> Tensor:
        """Spread values of the gate's channels over the outputs of a module, with 1 where the gate scales nothing.

        Args:
            values: One value per channel of the gate along `dim`.
            site: A module that the gate is attached to.
            dim: The dimension of the channels.

        Returns:
            One value per output of the module along `dim`.
        """
        places = self.read_places(site)
        return _spread(values, None if places is None else places.to(values.device), dim)

    def read_places(self, site: nn.Module) -> Tensor | None:
        """For each output of a module the channel of the gate that scales it, -1 for none.

        Args:
            site: A module that the gate is attached to.

        Returns:
            Whole numbers, shape (outputs,); None where the outputs are the gate's channels.
        """
        key = self.places_name(site)
        return None if key is None else self.get_buffer(key)

    def scales_several_outputs(self) -> bool:
        """Whether a channel scales several outputs of one module, as a head does, rather than one of them."""
        for name, places in self.named_buffers(recurse=False):
            if name.startswith("places_") and bool((torch.bincount(places[places >= 0]) > 1).any()):
                return True
        return False

    def places_name(self, site: nn.Module) -> str | None:
        """The name of the buffer that `read_places` reads, None where there is none."""
        for hook in site._forward_hooks.values():
            if self._is_own_hook(hook):
                key: str | None = hook.keywords["places"]  # type: ignore[attr-defined]
                return key
        raise ModelError(f"this gate is not attached to this {type(site).__name__}")

    def renumber_(self, kept: Tensor) -> None:
        """Bring the places up to date, in place, after the gate has lost channels and its sites the outputs of these.

        Args:
            kept: The channels that are left, by their numbers before, ascending.
        """
        for name, places in self.named_buffers(recurse=False):
            if not name.startswith("places_"):
                continue
            before = torch.cat([kept.to(places), places.new_tensor([-1])])
            places.copy_((places.unsqueeze(1) == before).long().argmax(1))
            places[places == len(kept)] = -1

    def forward(self, x: Tensor, dim: int = 1, places: Tensor | None = None) -> Tensor:
        """Scale the channels of `x`: in training by a z for each sample, in evaluation by the means that are kept.

        Args:
            x: Outputs of a layer, shape (batch, ...), with the channels along `dim`.
            dim: The dimension of the channels.
            places: For each output along `dim` the channel that scales it, -1 for none; None: they are the channels.

        Returns:
            A tensor in the shape of `x`.

        Raises:
            ModelError: `x` has another number of channels.
        """
        if x.shape[dim] != len(self.mu if places is None else places):
            where = "" if places is None else f" in {len(places)} places"
            raise ModelError(
                f"a gate of {len(self.mu)} channels{where} met {tuple(x.shape)}, channels at dimension {dim}"
            )
        shape = [1] * x.dim()
        shape[dim] = -1
        if not self.training:
            kept = torch.where(self.mask(), self.mean(), torch.zeros_like(self.mu))
            return x * _spread(kept, places, 0).to(x.dtype).view(shape)
        z_shape = [1] * x.dim()
        z_shape[0], z_shape[dim] = x.shape[0], len(self.mu)
        if self._observed is None:
            z = self._draw(z_shape, shape)
        else:
            z = self.mean().view(shape).expand(z_shape)  # the same for all samples, but each has a gradient of its own
            if z.requires_grad:
                z.register_hook(self._observe)
        return x * _spread(z, places, dim).to(x.dtype)

    def _draw(self, z_shape: list[int], shape: list[int]) -> Tensor:
        """Draw z in the shape `z_shape`, to which parameters in the shape `shape` are broadcast."""
        mu, log_sigma2 = self.mu.view(shape), self.log_sigma2.view(shape)
        if self.is_log_normal():
            return draw_log_normal(mu, log_sigma2, torch.rand(z_shape, device=mu.device, dtype=torch.float64))
        noise = torch.randn(z_shape, device=mu.device, dtype=mu.dtype)
        return mu.expand(z_shape) + (0.5 * log_sigma2).exp() * noise

    def fix_(self, factors: Tensor) -> None:
        """Let the gate multiply by given factors where nothing is drawn, in place: a network drawn from the posterior.

        Args:
            factors: Shape (channels,).
        """
        self.settings = self.settings.model_copy(update={"gate": "gaussian"})
        self.mu.data.copy_(factors)

    def draw(self) -> Tensor:
        """Draw one z for each channel, shape (channels,)."""
        return self._draw([len(self.mu)], [len(self.mu)])

    def observe_(self) -> None:
        """Draw no more noise in training, and keep the loss's gradients at the means, for `take_curvature`."""
        self._observed = []

    def take_curvature(self, batch_size: int) -> Tensor | None:
        """The loss's curvature along each channel, from the gradients of one backward pass, which are then forgotten.

        It is the mean over samples of the squared gradient of the sample's loss: the diagonal of the empirical Fisher
        information, as Gauss and Newton approximate the second derivative (Khan et al. 2018, section 3). Call
        `observe_` before that pass.

        Args:
            batch_size: The number of samples, whose mean loss was differentiated.

        Returns:
            Shape (channels,); None where nothing was observed.
        """
        observed = self._observed
        if not observed:
            return None
        self._observed = []
        # 1. The gradient of a mean over the batch is that of a sample's loss divided by the size of the batch.
        # 2. Removing a channel silences it at all sites and windows at once: their gradients are added up for each
        #    sample before they are squared.
        # 3. A layer that sees no samples, such as one that makes a bias of relative positions, has one gradient for the
        #    whole batch.  Near a minimum, where those of the samples cancel, their mean square is on average its square
        #    times their number.
        if any(len(gradient) % batch_size for gradient in observed):
            return batch_size * torch.cat(observed).sum(0).square()
        per_sample = torch.zeros(batch_size, len(self.mu), dtype=self.mu.dtype, device=self.mu.device)
        for gradient in observed:
            per_sample += batch_size * gradient.view(batch_size, -1, len(self.mu)).sum(1)
        return per_sample.square().mean(0)

    def _observe(self, gradient: Tensor) -> None:
        """The hook on z, whose dimensions beside the first and that of the channels are 1."""
        if self._observed is not None:
            self._observed.append(gradient.detach().reshape(len(gradient), -1))

    def attach_(self, site: nn.Module, dim: int, places: Tensor | None = None) -> None:
        """Gate the outputs of a module, as its child "gate" and a forward hook; a deep copy takes both along.

        A module that has a gate already gets the next one as its child "gate_2", and so on.

        Args:
            site: The module.
            dim: The dimension of the channels in its outputs.
            places: For each output the channel that scales it, -1 for none; None: the outputs are the channels.

        Raises:
            ModelError: The module is a Sequential, which would run the gate as a layer, or has this gate already.
        """
        if isinstance(site, nn.Sequential) or self in site._modules.values():
            reason = "would run it as a layer" if isinstance(site, nn.Sequential) else "has it already"
            raise ModelError(f"a gate cannot be attached to this {type(site).__name__}, which {reason}")
        key = None
        if places is not None:
            key = f"places_{len(self._buffers)}"
            self.register_buffer(key, places.to(self.mu.device, torch.int64))
        _let_compiled_code_heed_hooks()
        number = 1
        while hasattr(site, _gate_name(number)):
            number += 1
        site.register_module(_gate_name(number), self)
        # Before the hooks of others: they see what the module itself returns once the gate is baked into it.
        site.register_forward_hook(partial(self._scale_output, dim=dim, places=key), prepend=True)

    def detach_(self, site: nn.Module) -> None:
        """Undo `attach_`.

        Args:
            site: The module that the gate was attached to.
        """
        for name in [name for name, module in site._modules.items() if module is self]:
            del site._modules[name]
        for key, hook in list(site._forward_hooks.items()):
            if self._is_own_hook(hook):
                del site._forward_hooks[key]

    def _is_own_hook(self, hook: Any) -> bool:
        return isinstance(hook, partial) and getattr(hook.func, "__self__", None) is self

    def _scale_output(self, site: nn.Module, inputs: Any, output: Tensor, *, dim: int, places: str | None) -> Tensor:
        """The forward hook."""
        gated: Tensor = self(output, dim, None if places is None else self.get_buffer(places))
        return gated


def _let_compiled_code_heed_hooks() -> None:
    """Make `torch.compile` look at the hooks of modules before it takes code that it has made earlier.

    By default it does not, so a network would run without its gates, silently, if its modules had been compiled before
    they got them, or a twin without gates had.
    """
    import torch._dynamo  # not at the top: it takes seconds, and only those who train have gates

    config: Any = torch._dynamo.config
    if config.skip_nnmodule_hook_guards:
        config.skip_nnmodule_hook_guards = False
        torch._dynamo.reset()  # what was made before does not look


def gates_on(site: nn.Module) -> Iterator[ChannelGate]:
    """Walk over the gates that are attached to a module, without those of the modules in it."""
    for module in site._modules.values():
        if isinstance(module, ChannelGate):
            yield module


def _gate_name(number: int) -> str:
    return "gate" if number == 1 else f"gate_{number}"


def _spread(values: Tensor, places: Tensor | None, dim: int) -> Tensor:
    if places is None:
        return values
    one = torch.ones_like(values.narrow(dim, 0, 1))
    index = torch.where(places < 0, values.shape[dim], places)
    return torch.cat([values, one], dim).index_select(dim, index)
