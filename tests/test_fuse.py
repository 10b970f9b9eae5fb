"""Fused equals unfused, and no batch norm is left where a layer could take it up."""

from typing import Any

import pytest
import timm
import torch
from shrinking import Net, image, prepared
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.errors import ShrinkError
from nni_sparsevd.shrinking import fusion
from nni_sparsevd.testing import relative_difference


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050", "test_byobnet", "ghostnet_050"])
def test_timm_networks_lose_their_norms(name: str) -> None:
    model = prepared(timm.create_model(name, num_classes=10))
    before = norms(model)
    fused = svd.fuse(model, image(32))
    assert norms(model) == before > 5 and norms(fused) == 0
    assert relative_difference(model, fused, image(32)) < 1e-10


def test_what_cannot_be_fused_stays() -> None:
    model = prepared(
        Net(
            lambda m, x: m.second(m.norm(y := m.first(x)) + y) + m.alone(m.twice(m.twice(x)))[:, :1],
            first=nn.Conv2d(3, 4, 1),
            norm=nn.BatchNorm2d(4),
            second=nn.Conv2d(4, 1, 1),
            twice=nn.Conv2d(3, 3, 1),
            alone=nn.BatchNorm2d(3),
        )
    )
    fused = svd.fuse(model, image())
    assert norms(fused) == 2 and relative_difference(model, fused, image()) == 0


def test_every_kind_of_layer() -> None:
    model = prepared(
        nn.Sequential(
            nn.ConvTranspose2d(3, 4, 2, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, groups=2),
            nn.BatchNorm2d(4, affine=False),
            nn.Flatten(),
            nn.Linear(4 * 49, 5),
            nn.BatchNorm1d(5),
        )
    )
    fused = svd.fuse(model, image())
    assert norms(fused) == 0 and relative_difference(model, fused, image()) < 1e-12
    assert torch.is_tensor(fused[0].bias) and fused[0].bias.requires_grad


def cancelling() -> tuple[nn.Module, Tensor]:
    """Two channels that nearly cancel each other behind their norm: the rounding of a fused weight is a hundredth."""
    torch.manual_seed(0)
    layer, norm, head = nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        layer.weight[1] = 3 * (1 + 1e-5) * layer.weight[0]
        norm.running_var.copy_(torch.tensor([0.7, 6.3]))
        head.weight.copy_(torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1))
    return nn.Sequential(layer, norm, head).eval(), torch.randn(2, 3, 8, 8)


def test_roundings_that_the_network_blows_up_are_no_fault() -> None:
    model, x = cancelling()
    fused = svd.fuse(model, x)
    assert norms(fused) == 0 and not svd.check(model, fused, x).ok
    assert all(value.dtype == torch.float32 for value in fused.state_dict().values())


def test_a_fault_as_small_as_roundings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = cancelling()
    absorb = fusion._absorb_norm_

    def absorb_wrongly(layer: Any, norm: Any, output_dim: int) -> None:
        absorb(layer, norm, output_dim)
        with torch.no_grad():
            layer.weight[0] *= 1 + 1e-6

    monkeypatch.setattr(fusion, "_absorb_norm_", absorb_wrongly)
    with pytest.raises(ShrinkError, match="the fused Sequential gives other outputs"):
        svd.fuse(model, x)
