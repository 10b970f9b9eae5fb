"""A weight that is not known to be 0 counts as used: one that the network computes from its input, or one of NaN."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import randomize_
from torch import Tensor, nn

import nni_sparsevd as svd


class Mixed(nn.Module):
    """A kernel that is mixed from the input, for the one sample of a batch, and a layer that reads what it writes."""

    def __init__(
        self, kernel: tuple[int, ...], convolve: Callable[..., Tensor], reader: nn.Module, grouped: bool = False
    ):
        super().__init__()
        self.route = nn.Linear(3, 4)
        self.kernels = nn.Parameter(torch.randn(4, *kernel))
        self.convolve, self.groups = convolve, 3 if grouped else 1
        self.reader, self.head = reader, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        routes = self.route(x.flatten(2).mean(2)).sigmoid()
        kernel = (routes[0] @ self.kernels.flatten(1)).view(self.kernels.shape[1:])
        mixed = self.convolve(x[:1], kernel, padding=1, groups=self.groups)
        return self.head(F.relu(self.reader(F.relu(mixed))).flatten(2).mean(2))


MIXED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv2d": (lambda: Mixed((6, 3, 3, 3), F.conv2d, nn.Conv2d(6, 8, 1)), (1, 3, 8, 8)),
    "conv1d": (lambda: Mixed((6, 3, 3), F.conv1d, nn.Conv1d(6, 8, 1)), (1, 3, 8)),
    "conv3d": (lambda: Mixed((6, 3, 3, 3, 3), F.conv3d, nn.Conv3d(6, 8, 1)), (1, 3, 4, 4, 4)),
    "transposed": (lambda: Mixed((3, 6, 3, 3), F.conv_transpose2d, nn.Conv2d(6, 8, 1)), (1, 3, 8, 8)),
    "grouped": (lambda: Mixed((6, 1, 3, 3), F.conv2d, nn.Conv2d(6, 8, 1), grouped=True), (1, 3, 8, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_a_kernel_made_from_the_input_is_used(name: str) -> None:
    make, shape = MIXED[name]
    torch.manual_seed(0)
    model = randomize_(make()).double()
    x = torch.randn(shape).double()
    assert svd.make_plan(model, x).removed == 0  # nothing is dead
    with torch.no_grad():
        model.reader.weight[::4] = 0  # two channels that are constants, which the head's bias absorbs
    small, plan = svd.shrink(model, x)
    assert plan.removed == 2
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_weight_of_nan_is_used() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    with torch.no_grad():
        model[2].weight[0, :, 1, 1] = float("nan")
        model[2].weight[1:] = 0  # the only output that reads anything is the first one
    assert svd.make_plan(model, torch.randn(1, 3, 8, 8)).removed == 0
