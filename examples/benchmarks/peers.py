"""The public implementations of Sparse VD beside ours: how each makes a network variational, and what it says of it.

`pip install cplxmodule==2022.6 pytorch-ard==0.2.4` for the other two.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.nn import named_posteriors

Kl = Callable[[nn.Module], Tensor]
Twins = dict[type[nn.Module], type[nn.Module]]


@dataclass(frozen=True)
class Library:
    """How a library makes a network variational, and what it then says of it."""

    convert: Callable[[nn.Module], nn.Module]
    kl: Kl
    log_alpha: Callable[[nn.Module], dict[str, Tensor]]


def _swapped(model: nn.Module, twins: Twins) -> nn.Module:
    """Every linear and convolution layer replaced by its twin, with its weights."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            other = twins[nn.Linear](layer.in_features, layer.out_features)
        elif isinstance(layer, nn.Conv2d):
            sizes = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
            other = twins[nn.Conv2d](*sizes)
        else:
            continue
        other.load_state_dict(layer.state_dict(), strict=False)
        model.set_submodule(name, other)
    return model


def _log_alphas(twins: Twins) -> Callable[[nn.Module], dict[str, Any]]:
    kinds = tuple(twins.values())
    return lambda model: {name: m.log_alpha for name, m in model.named_modules() if isinstance(m, kinds)}


def _cplxmodule() -> Library:
    from cplxmodule.nn.relevance import Conv2dVD, LinearVD, penalties  # type: ignore[import-not-found]

    twins = {nn.Linear: LinearVD, nn.Conv2d: Conv2dVD}
    return Library(
        lambda model: _swapped(model, twins),
        lambda model: sum(penalties(model)),  # type: ignore[return-value,arg-type]
        _log_alphas(twins),
    )


def _pytorch_ard() -> Library:
    from torch_ard import Conv2dARD, LinearARD, get_ard_reg  # type: ignore[import-not-found]

    twins = {nn.Linear: LinearARD, nn.Conv2d: Conv2dARD}
    return Library(lambda model: _swapped(model, twins), get_ard_reg, _log_alphas(twins))


def _ours() -> Library:
    return Library(
        svd.sparsify_, svd.kl, lambda model: {name: module.log_alpha() for name, module in named_posteriors(model)}
    )


LIBRARIES = {"nni_sparsevd": _ours, "cplxmodule": _cplxmodule, "pytorch_ard": _pytorch_ard}
NEEDS = {"nni_sparsevd": "nni_sparsevd", "cplxmodule": "cplxmodule", "pytorch_ard": "torch_ard"}


def installed() -> list[str]:
    """Names of those that are here, ours first."""
    return [name for name, module in NEEDS.items() if importlib.util.find_spec(module)]
