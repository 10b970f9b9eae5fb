"""Variational twins of torch's layers: the same names, arguments and state-dict keys, and one parameter more,
`log_sigma2`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError, SettingError
from ..settings import PosteriorSettings
from .subclasses import DerivedLayer, make_twin, repeats_parent
from .variational import Variational, require_call


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
    """What the transposed convolutions share: the output size is computed before the weight is used."""

    def _transpose(self, x: Tensor, output_size: list[int] | None, dims: int) -> Tensor:
        padding = self._output_padding(  # type: ignore[operator]
            x, output_size, self.stride, self.padding, self.kernel_size, dims, self.dilation
        )
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
        options = {name: getattr(self, name) for name in ("stride", "padding", "groups", "dilation")}
        return self.compute_output(partial(function, output_padding=padding, **options), x)


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
    """`torch.nn.Embedding` with a posterior on every weight but those of the padding row.

    As in torch, the padding row is a constant: it is looked up without noise, has no KL, and is never removed.
    """

    bias = None  # the mixin hands `self.bias` to every layer's operation

    def add_posterior_(self, settings: PosteriorSettings) -> None:
        """Add `log_sigma2` and the settings, in place.

        Args:
            settings: Settings of the posterior.

        Raises:
            SettingError: An option of the embedding changes the weight in the forward pass, or makes sparse gradients.
        """
        for option in ("max_norm", "scale_grad_by_freq", "sparse"):
            if getattr(self, option):
                raise SettingError(f"Embedding({option}={getattr(self, option)}) cannot carry a posterior; exclude it")
        super().add_posterior_(settings)
        self.fixed_row = self.padding_idx

    def forward(self, indices: Tensor) -> Tensor:
        looked_up = self.compute_output(self._look_up, indices, x_squared=indices)
        if self.padding_idx is None or not self.training:
            return looked_up
        padding = F.embedding(indices, self.weight, self.padding_idx)
        return torch.where((indices == self.padding_idx).unsqueeze(-1), padding, looked_up)

    def _look_up(self, indices: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.embedding(indices, weight, self.padding_idx)


# One entry per layer: the contract test of `nni_sparsevd.testing` runs over all of them.
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


def register_layer(plain: type[nn.Module], variational: type[Variational]) -> None:
    """Let `sparsify_` convert a layer of your own, and `bake_` convert it back.

    Args:
        plain: The ordinary class of the layer, with a parameter `weight`.
        variational: Its variational twin, which inherits from `Variational` and then from `plain`, adds no parameters
            of its own, and calls `compute_output` in its `forward`.

    Raises:
        ModelError: `variational` does not inherit from `plain`, or `plain` has a variational twin already.
    """
    if not issubclass(variational, plain):
        raise ModelError(f"{variational.__name__} does not inherit from {plain.__name__}: it is no twin of it")
    if VARIATIONAL.get(plain, variational) is not variational:
        raise ModelError(f"{plain.__name__} is registered with {VARIATIONAL[plain].__name__} already")
    VARIATIONAL[plain] = variational


def _plain_class(module: Variational) -> type[nn.Module]:
    if isinstance(module, DerivedLayer):
        return module.plain_class
    for plain, variational in VARIATIONAL.items():
        if type(module) is variational:
            return plain
    raise ModelError(f"{type(module).__name__} has no ordinary twin; register_layer names it")


def is_convertible(module: nn.Module) -> bool:
    """Whether `module` is a layer of torch or one that is registered, with a weight that is its own parameter.

    1. A subclass may use its weight in another way than the layer that it inherits from; it is converted where its
       forward pass is its parent's operation, on a zero-padded input perhaps.
    2. torch's weight_norm and pruning compute the weight anew before every call, and would overwrite what is removed.

    Args:
        module: Any module.
    """
    if "weight" not in module._parameters or isinstance(module, Variational):
        return False
    return type(module) in VARIATIONAL or repeats_parent(module)


def to_variational_(module: nn.Module, settings: PosteriorSettings) -> Variational:
    """Switch an ordinary layer to its variational twin, in place.

    Args:
        module: A layer for which `is_convertible` is true.
        settings: Settings of the posterior.

    Returns:
        `module`.

    Raises:
        SettingError: The layer cannot carry a posterior; it is then what it was.
    """
    plain: Any = type(module)
    twin = VARIATIONAL[plain] if plain in VARIATIONAL else make_twin(plain)
    module.__class__ = twin  # type: ignore[assignment]
    assert isinstance(module, Variational)
    try:
        module.add_posterior_(settings)
    except SettingError:
        module.__class__ = plain
        raise
    return module


def to_plain_(module: Variational) -> nn.Module:
    """Switch a variational layer back to torch's, in place, with the means as its weights.

    Args:
        module: A variational layer.

    Returns:
        `module`.
    """
    module.__class__ = _plain_class(module)  # type: ignore[assignment]
    for name in ("log_sigma2", "settings", "threshold", "kl_weight"):
        delattr(module, name)
    vars(module).pop("fixed_row", None)  # only layers with such a row have it of their own
    for key, hook in list(module._forward_pre_hooks.items()):
        if hook is require_call:
            del module._forward_pre_hooks[key]
    return module


def share_posterior_(layer: Variational, others: Sequence[Variational]) -> None:
    """Give layers that have one weight one posterior, in place.

    Args:
        layer: The layer whose log sigma^2 all of them use from here on.
        others: The other layers; their weight is that of `layer`.
    """
    fixed_rows = [member.fixed_row for member in (layer, *others) if member.fixed_row is not None]
    for member in (layer, *others):
        member.log_sigma2 = layer.log_sigma2
        member.kl_weight = layer.kl_weight
        if fixed_rows:
            member.fixed_row = fixed_rows[0]
