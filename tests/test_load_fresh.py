"""`load` into a fresh instance of a network of one's own: buffers outside the state dict, attributes of all kinds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.errors import FileFormatError

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    """Its scale is a buffer outside the state dict, one number for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 9, 3)
        self.second = nn.Conv2d(9, 4, 1)
        self.gamma: float = 1
        self.size: tuple[int, int] | None = None
        self.mode = "plain"
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 9).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("offset", torch.linspace(0.5, 1.5, 4).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)) * self.scale) * self.gamma + self.offset


class SetsSizes(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.height, self.width = x.shape[-2:]
        self.size = (self.height, self.width)
        return super().forward(x)


class Nested(nn.Sequential):
    """The modules with such states lie inside."""

    def __init__(self) -> None:
        super().__init__(SetsSizes(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def nothing(model: nn.Module) -> None:
    pass


def a_factor(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Base):
            module.gamma = 0.5


def notes(model: nn.Module) -> None:
    for module in model.modules():
        module.best_epoch, module.history, module.run = 3, [0.5, 0.25], "first"


@pytest.mark.parametrize("change", [nothing, a_factor, notes])
@pytest.mark.parametrize("kind", [Base, SetsSizes, Nested])
@pytest.mark.parametrize("coding", [None, "exact"])
def test_what_was_cut_is_written(
    kind: type[nn.Module], change: Callable[[nn.Module], None], coding: str | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    model(X)
    change(model)
    first = model.get_submodule("first" if isinstance(model, Base) else "0.first")
    with torch.no_grad():
        first.weight[::3] = 0
        first.bias[::3] = 0
    small, plan = svd.shrink(model, X)
    assert plan.removed == 3
    path = tmp_path / "network.safetensors"
    svd.save(small, path, coding=coding)
    again = svd.load(path, model=kind())
    assert torch.equal(again(X), small(X))
    svd.save(again, path)  # and what was loaded can be saved
    assert torch.equal(svd.load(path, model=kind())(X), small(X))
    assert list(model.state_dict()) == list(kind().state_dict())  # the original's buffers stay outside


def test_an_attribute_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    model = Base()
    model.mode = 3
    svd.save(model, path)
    with pytest.raises(FileFormatError, match=r"sets \.mode to 3, there it is 'plain'"):
        svd.load(path, model=Base())
