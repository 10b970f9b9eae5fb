"""Networks in float16 and bfloat16 shrink, and are judged by the rounding of their own type."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.errors import ModelError, ShrinkError
from nni_sparsevd.shrinking import CheckResult


def sigmoids() -> tuple[nn.Module, Tensor]:
    layers = (nn.Conv2d(3, 9, 3), nn.Sigmoid(), nn.Conv2d(9, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    return nn.Sequential(*layers), torch.randn(1, 3, 12, 12)


def batch_norms() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Conv2d(3, 9, 3, bias=False), nn.BatchNorm2d(9), nn.Hardswish(), nn.Conv2d(9, 4, 1))
    with torch.no_grad():
        model[1].bias.normal_()
    return model, torch.randn(2, 3, 12, 12)


def bordered() -> tuple[nn.Module, Tensor]:
    """The constants of padded convolutions are carried by one channel."""
    return nn.Sequential(nn.Conv2d(3, 9, 1), nn.SiLU(), nn.Conv2d(9, 4, 3, padding=1)), torch.randn(1, 3, 12, 12)


def large_constants() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Linear(6, 30), nn.Softplus(), nn.Linear(30, 30), nn.GELU(), nn.Linear(30, 2))
    with torch.no_grad():
        model[0].bias.mul_(30)
    return model, torch.randn(3, 6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [sigmoids, batch_norms, bordered, large_constants])
@pytest.mark.parametrize("seed", range(3))
def test_half_precision_is_judged_by_its_own_rounding(
    make: Callable[[], tuple[nn.Module, Tensor]], dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    model, x = make()
    model, x = model.eval().to(dtype), x.to(dtype)
    with torch.no_grad():
        model[0].weight[::3] = 0
        exact = model.double()(x.double())
        noise = float((model.to(dtype)(x).double() - exact).abs().max())
    small, plan = svd.shrink(model, x)
    assert plan.removed >= 2 and all(value.dtype == dtype for value in small.parameters())
    result = svd.check(model, small, x)
    assert result.ok and result.half is not None
    epsilon = torch.finfo(dtype).eps * float(exact.abs().max())
    with torch.no_grad():
        assert float((small(x).double() - exact).abs().max()) <= 3 * max(noise, epsilon)


class Casting(nn.Module):
    """Sigmoids that are computed, or only stored for a moment, in another type."""

    def __init__(self, dtype: torch.dtype, slope: float) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
        self.type, self.slope = dtype, slope

    def forward(self, x: Tensor) -> Tensor:
        y = self.slope * self.first(x).sigmoid().to(self.type)
        return self.second(y.to(x.dtype))


@pytest.mark.parametrize("slope", [1.0, 0.7])
@pytest.mark.parametrize(
    ("dtype", "coarser"),
    [(torch.float32, torch.float16), (torch.float32, torch.bfloat16), (torch.float64, torch.float32)],
)
def test_a_constant_that_the_code_rounds_stays(dtype: torch.dtype, coarser: torch.dtype, slope: float) -> None:
    torch.manual_seed(0)
    model = Casting(coarser, slope).to(dtype).eval()
    with torch.no_grad():
        model.first.weight[:4] = 0
        model.first.bias[:4] = torch.tensor([0.3, -0.2, 0.0, -1000.0])  # sigmoid(0) is 1/2, which any type holds
    _, plan = svd.shrink(model, torch.zeros(2, 3, 8, 8, dtype=dtype))
    assert plan.removed == (2 if slope == 1 else 1)


def test_a_type_as_fine_as_that_of_the_network_rounds_nothing() -> None:
    torch.manual_seed(0)
    model = Casting(torch.float32, 0.7).bfloat16().eval()
    with torch.no_grad():
        model.first.weight[:4] = 0
    _, plan = svd.shrink(model, torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16))
    assert plan.removed == 4


class CastingInput(nn.Module):
    """Layers in half precision that get their numbers in no other type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers, self.type = sigmoids()[0].to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x.to(self.type))
        return y.float()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_that_runs_in_half_precision_alone_is_compared_in_it(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = CastingInput(dtype).eval(), torch.randn(1, 3, 12, 12)
    with torch.no_grad():
        model.layers[0].weight[::3] = 0
    small, plan = svd.shrink(model, x)
    assert plan.removed == 3 and svd.check(model, small, x).ok


def test_what_rounds_coarsely_inside_is_refused_by_an_error_of_ours() -> None:
    class Autocast(Casting):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = self.first(x).sigmoid()
            return self.second(y.float())  # so that the network does not run in float64

    torch.manual_seed(0)
    model = Autocast(torch.float32, 1.0).eval()
    with torch.no_grad():
        model.first.weight[:4] = 0
    with pytest.raises(ShrinkError, match="gives other outputs"):
        svd.shrink(model, torch.zeros(2, 3, 8, 8))


def test_a_mistake_that_rounding_would_hide_is_found() -> None:
    torch.manual_seed(0)
    model, x = sigmoids()
    model, x = model.eval().bfloat16(), x.bfloat16()
    wrong = nn.Sequential(*model)
    assert svd.check(model, wrong, x).ok
    with torch.no_grad():
        wrong = svd.shrink(model, x)[0]
        wrong[4].bias += 0.1
    assert not svd.check(model, wrong, x).ok


def test_a_network_that_gives_nan_is_named_in_half_precision_too() -> None:
    layers = nn.Sequential(nn.Linear(2, 3), nn.Hardtanh(-2.0, -1.0), nn.BatchNorm1d(3)).bfloat16().eval()
    layers[2].running_var.fill_(-1.0)
    with pytest.raises(ModelError, match=r"gives NaN on the example.*the first NaN comes out of 2"):
        svd.shrink(layers, torch.zeros(1, 2).bfloat16())


def test_the_verdict_goes_into_json() -> None:
    model = nn.Linear(2, 2).half()
    result: CheckResult = svd.check(model, model, torch.zeros(1, 2).half())
    assert result.to_dict()["ok"] is True
