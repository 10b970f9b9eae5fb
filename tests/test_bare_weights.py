"""Weights that no layer of PyTorch's holds: matrix products with a parameter."""

from collections.abc import Callable

import pytest
import torch
from shrinking import prepared
from torch import Tensor, nn

from nni_sparsevd.testing import assert_shrinks_exactly

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
PRODUCTS: dict[str, Product] = {
    "x @ w": lambda x, w, b: x @ w + b,
    "addmm": lambda x, w, b: torch.addmm(b, x, w),
    "einsum": lambda x, w, b: torch.einsum("nd,de->ne", x, w) + b,
    "einsum with the outputs first": lambda x, w, b: torch.einsum("nd,ed->ne", x, w.T) + b,
    "transposed": lambda x, w, b: (w.T @ x.T).T + b,
    "with factors": lambda x, w, b: torch.addmm(b, x, w, beta=0.5, alpha=2.0),
}


class Bare(nn.Module):
    """A weight of the network itself between two layers; half of what it writes is dead."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.first, self.last, self.product = nn.Linear(6, 12), nn.Linear(10, 3), product
        self.w, self.b = nn.Parameter(torch.randn(12, 10)), nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.product(torch.relu(self.first(x)), self.w, self.b)))


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_weight_without_a_layer_shrinks_exactly(name: str) -> None:
    model = prepared(Bare(PRODUCTS[name]))
    with torch.no_grad():
        model.w[:, ::2] = 0
        model.b[::2] = 0
        model.first.weight[3] = 0
        model.first.bias[3] = 0
    small, plan = assert_shrinks_exactly(model, torch.zeros(4, 6).double())
    assert plan.removed == 6 and small.w.shape == (11, 5)


def test_a_weight_of_the_network_itself_has_a_group_with_its_name() -> None:
    _, plan = assert_shrinks_exactly(prepared(Bare(PRODUCTS["x @ w"])), torch.zeros(4, 6).double())
    assert [group.name for group in plan.groups] == ["first", "w", "last"]


def test_the_linear_maps_of_gpt2_shrink() -> None:
    transformers = pytest.importorskip("transformers")
    layer = transformers.pytorch_utils.Conv1D(8, 6)
    model = prepared(nn.Sequential(layer, nn.ReLU(), transformers.pytorch_utils.Conv1D(4, 8)))
    with torch.no_grad():
        model[0].weight[:, [1, 5]] = 0
        model[0].bias[[1, 5]] = 0
    small, plan = assert_shrinks_exactly(model, torch.zeros(2, 3, 6).double())
    assert plan.removed == 2 and (small[0].nf, small[0].weight.shape) == (6, (6, 6))
