"""Variational twins of torch's layers: the same names, arguments and state-dict keys, plus `log_sigma2`."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SettingError
from ..posterior import divergence
from ..settings import PosteriorSettings
from .variational import Variational


class Linear(Variational, nn.Linear):
    """`torch.nn.Linear` with a posterior on every weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self.compute_output(F.linear, x)


class Conv1d(Variational, nn.Conv1d):
    """`torch.nn.Conv1d` with a posterior on every weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self.compute_output(self._conv_forward, x)


class Conv2d(Variational, nn.Conv2d):
    """`torch.nn.Conv2d` with a posterior on every weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self.compute_output(self._conv_forward, x)


class Conv3d(Variational, nn.Conv3d):
    """`torch.nn.Conv3d` with a posterior on every weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self.compute_output(self._conv_forward, x)


class _Transposed(Variational):
    """What the transposed convolutions share: the output size is settled before the weight is used."""

    def _transpose(self, x: Tensor, output_size: list[int] | None, dims: int) -> Tensor:
        padding = self._output_padding(  # type: ignore[operator]
            x, output_size, self.stride, self.padding, self.kernel_size, dims, self.dilation
        )
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
        settings = {name: getattr(self, name) for name in ("stride", "padding", "groups", "dilation")}
        return self.compute_output(partial(function, output_padding=padding, **settings), x)


class ConvTranspose1d(_Transposed, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with a posterior on every weight."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self._transpose(x, output_size, 1)


class ConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with a posterior on every weight."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self._transpose(x, output_size, 2)


class ConvTranspose3d(_Transposed, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with a posterior on every weight."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self._transpose(x, output_size, 3)


class Embedding(Variational, nn.Embedding):
    """`torch.nn.Embedding` with a posterior on every weight.  A padding row is looked up without noise."""

    bias = None  # the others have one, and the mixin asks

    def add_posterior_(self, settings: PosteriorSettings) -> None:
        """As in the mixin; options that change the weight in the forward pass are refused."""
        for option in ("max_norm", "scale_grad_by_freq", "sparse"):
            if getattr(self, option):
                raise SettingError(f"Embedding({option}={getattr(self, option)}) cannot carry a posterior; exclude it")
        super().add_posterior_(settings)

    def forward(self, indices: Tensor) -> Tensor:
        looked_up = self.compute_output(self._look_up, indices, x_squared=indices)
        if self.padding_idx is None or not self.training:
            return looked_up
        padding = F.embedding(indices, self.weight, self.padding_idx)
        return torch.where((indices == self.padding_idx).unsqueeze(-1), padding, looked_up)

    def _look_up(self, indices: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.embedding(indices, weight, self.padding_idx)

    def kl(self) -> Tensor:
        """Without the padding row, which is a constant: a KL would move it."""
        if self.padding_idx is None:
            return super().kl()
        rows = (slice(self.padding_idx), slice(self.padding_idx + 1, None))
        log_sigma2 = self.log_sigma2.expand_as(self.weight)
        parts = [divergence.kl(self.weight[part], log_sigma2[part], self.settings.prior) for part in rows]
        return self.kl_weight * (parts[0] + parts[1])

    def add_kl_gradient_(self, weight: float) -> None:
        """Without the padding row."""
        if self.padding_idx is None:
            super().add_kl_gradient_(weight)
        else:
            divergence.backpropagate_if_trainable(weight * self.kl())

    def log_alpha(self) -> Tensor:
        """As in the mixin, with the padding row at the lowest number: it is never removed."""
        values = super().log_alpha()
        if self.padding_idx is None:
            return values
        row = torch.arange(len(values), device=values.device) == self.padding_idx
        return values.masked_fill(row[:, None], torch.finfo(values.dtype).min)


VARIATIONAL: dict[type[nn.Module], type[Variational]] = {
    nn.Linear: Linear,
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
    nn.ConvTranspose1d: ConvTranspose1d,
    nn.ConvTranspose2d: ConvTranspose2d,
    nn.ConvTranspose3d: ConvTranspose3d,
    nn.Embedding: Embedding,
}
PLAIN = {variational: plain for plain, variational in VARIATIONAL.items()}


def is_convertible(module: nn.Module) -> bool:
    """Whether `module` is exactly one of torch's layers, whose weight is its own parameter.

    A subclass may use its weight in a way of its own; torch's weight_norm and pruning compute it before every call.
    """
    return type(module) in VARIATIONAL and "weight" in module._parameters


def to_variational_(module: nn.Module, settings: PosteriorSettings) -> Variational:
    """Switch an ordinary layer to its variational twin, in place."""
    module.__class__ = VARIATIONAL[type(module)]  # type: ignore[assignment]
    assert isinstance(module, Variational)
    try:
        module.add_posterior_(settings)
    except SettingError:
        module.__class__ = PLAIN[type(module)]  # type: ignore[assignment]
        raise
    return module


def to_plain_(module: Variational) -> nn.Module:
    """Switch a variational layer back, in place: the mean stays, the posterior goes."""
    module.__class__ = PLAIN[type(module)]  # type: ignore[assignment]
    for name in ("log_sigma2", "settings", "threshold", "kl_weight"):
        delattr(module, name)
    return module
