"""The comparison asks the network that is right which inputs it takes, and says who is to blame."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.errors import ModelError, ShrinkError


class Around(nn.Module):
    """Two layers, of whose 12 hidden channels every other one is 0, and whatever is done around them."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3))
        self.around = forward
        with torch.no_grad():
            self.layers[0].weight[::2] = 0
            self.layers[0].bias[::2] = -1

    def forward(self, *inputs: Any) -> Any:
        return self.around(self.layers, *inputs)


def spread(layers: nn.Module, nodes: Tensor, edges: Tensor) -> Tensor:
    return layers(torch.zeros_like(nodes).index_add(0, edges[1], nodes[edges[0]]))


NODES, EDGES = torch.randn(7, 5), torch.randint(0, 7, (2, 11))
TAKEN = {
    "a graph of nodes and edges": (spread, (NODES, EDGES)),
    "nodes and their adjacency": (lambda m, x, adjacency: m(adjacency @ x), (NODES, torch.rand(7, 7))),
    "positions without a batch": (lambda m, x, p: m(x + p[None, :, None]), (torch.randn(2, 7, 5), torch.arange(7))),
    "frames in the batch": (lambda m, x: m(x).view(-1, 4, 3).mean(1), torch.randn(8, 5)),
    "positive inputs": (lambda m, x: m(x.log()), torch.rand(4, 5) + 0.1),
    "shares": (lambda m, x: m(torch.asin(x)), torch.rand(4, 5)),
    "a vector without a batch": (lambda m, x: m(x), torch.randn(5)),
    "sorted lengths": (
        lambda m, x, n: nn.utils.rnn.pack_padded_sequence(m(x), n, batch_first=True).data,
        (torch.randn(2, 4, 5), torch.tensor([4, 2])),
    ),
    "noise on the inputs": (lambda m, x: m(x + torch.randn_like(x)), torch.randn(4, 5)),
    "dropout that is always on": (lambda m, x: m[2](nn.functional.dropout(m[:2](x))), torch.randn(4, 5)),
    "no float64": (lambda m, x: m(x.float()), torch.randn(4, 5)),
    "scores that are masked": (
        lambda m, x: m(x).masked_fill(torch.tensor([True, False, False]), -torch.inf),
        torch.randn(4, 5),
    ),
    "it writes to its input": (lambda m, x: m(x.add_(1)), torch.randn(4, 5)),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_what_a_network_takes_is_compared(kind: str) -> None:
    forward, inputs = TAKEN[kind]
    model = Around(forward).eval()
    small, plan = svd.shrink(model, inputs)
    assert plan.removed == 6
    with torch.no_grad():
        small.layers[2].bias += 0.1  # a mistake, which the comparison has to see
    assert not svd.check(model, small, inputs).ok


def test_the_result_says_what_was_compared() -> None:
    image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    kinds = ("batches of 1", "batches of 3", "larger images", "other magnitudes")
    assert svd.check(image, image, torch.zeros(2, 3, 8, 8)).kinds == kinds
    assert "other magnitudes" in str(svd.check(image, image, torch.zeros(2, 3, 8, 8)))
    assert svd.check(image, image, torch.zeros(3, 8, 8)).kinds[0] == "the example's sizes"
    lengths = Around(TAKEN["sorted lengths"][0])
    assert svd.check(lengths, lengths, TAKEN["sorted lengths"][1]).ok


class Factor(nn.Module):
    def forward(self, x: Tensor, factor: float) -> Tensor:
        return x * factor


class OfOne(nn.Module):
    def forward(self, x: Tensor, factor: float) -> Tensor:
        return x * 0.5


def test_a_network_that_is_right_for_one_number_alone_is_found() -> None:
    result = svd.check(Factor(), OfOne(), (torch.randn(2, 3), 0.5))
    assert not result.ok and "other numbers" in result.kinds


def test_small_and_large_inputs_are_judged_by_their_own_size() -> None:
    class Bent(nn.Module):
        def __init__(self, at: float) -> None:
            super().__init__()
            self.at = nn.Parameter(torch.tensor(at, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x.abs() > 500, x + self.at, x)

    assert not svd.check(Bent(0.0), Bent(1e-3), torch.randn(2, 30)).ok
    assert svd.check(Bent(0.0), Bent(0.0), torch.randn(2, 30)).ok


class OneLayer(nn.Module):
    """A convolution of images, with a mistake of one part in 100,000 in the outputs of some samples."""

    def __init__(self, is_wrong: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 3, padding=1, dtype=torch.float64)
        self.is_wrong = is_wrong

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y + 1e-5 * self.is_wrong(x)


def largest(x: Tensor) -> Tensor:
    return x.abs().amax((1, 2, 3), keepdim=True)


MISTAKES: dict[str, Callable[[Tensor], Tensor]] = {
    "numbers near 0": lambda x: (largest(x) < 0.1) & (largest(x) > 0),
    "large numbers": lambda x: 1e3 * (largest(x) > 100),
    "one value": lambda x: (x.amax((1, 2, 3), keepdim=True) == x.amin((1, 2, 3), keepdim=True)) & (largest(x) > 0),
    "zeros": lambda x: largest(x) == 0,
    "three samples": lambda x: torch.tensor(float(len(x) == 3)),
    "the example's size": lambda x: torch.tensor(float(x.shape[-1] == 64)),
    "larger images": lambda x: torch.tensor(float(x.shape[-1] > 64)),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_in_one_kind_of_images_is_found_though_some_are_compared_together(kind: str) -> None:
    images = torch.randn(2, 3, 64, 64)
    right = OneLayer(lambda x: torch.zeros(()))
    assert svd.check(right, right, images, rounds=1).inputs == 4  # one, three, larger ones, and all that is unusual
    assert not svd.check(right, OneLayer(MISTAKES[kind]), images, rounds=1).ok


class OfOneSize(OneLayer):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2:] == (64, 64)
        return super().forward(x)


@pytest.mark.parametrize("kind", [kind for kind in MISTAKES if "size" not in kind and "larger" not in kind])
def test_images_of_one_size_are_compared_in_a_batch_of_one_and_two_of_three(kind: str) -> None:
    images = torch.randn(2, 3, 64, 64)
    right = OfOneSize(lambda x: torch.zeros(()))
    assert svd.check(right, right, images, rounds=1).inputs == 3
    assert not svd.check(right, OfOneSize(MISTAKES[kind]), images, rounds=1).ok


def test_unusual_values_are_not_put_into_one_batch_where_samples_mix() -> None:
    class Centered(OneLayer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - x.mean(0))

    right = Centered(lambda x: torch.zeros(()))
    images = torch.randn(2, 3, 64, 64)
    assert svd.check(right, right, images, rounds=1).inputs == 7
    assert not svd.check(right, Centered(MISTAKES["zeros"]), images, rounds=1).ok


def test_every_output_is_judged_by_its_own_size() -> None:
    class Two(nn.Module):
        def __init__(self, added: float) -> None:
            super().__init__()
            self.added = nn.Parameter(torch.tensor(added, dtype=torch.float64))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"boxes": 1e4 * x, "scores": x + self.added}

    assert not svd.check(Two(0.0), Two(1e-8), torch.randn(2, 3)).ok


def test_the_network_itself_is_blamed_where_it_fails() -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2))
    with pytest.raises(
        ModelError, match=r"Sequential itself fails on the example, .*\(1, 2\), in 0: index out of range"
    ):
        svd.check(model, model, torch.tensor([[1, 4]]))
    narrow = nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2))
    with pytest.raises(ShrinkError, match=r"Sequential does not run on .*\(1, 3\) \(batches of 1\).* in 1: .*mat1"):
        svd.check(nn.Linear(3, 2), narrow, torch.zeros(2, 3))


def test_the_source_of_nan_is_named() -> None:
    model = Around(lambda m, x: m[2](m[:2](x) - torch.inf + torch.inf))
    with pytest.raises(ModelError, match=r"gives NaN on the example.*the first NaN comes out of layers\.2"):
        svd.shrink(model, torch.randn(4, 5))


def test_numbers_that_python_draws_keep_the_channels_that_they_scale() -> None:
    """Each run has another number, so nothing may be folded with one of them."""

    def scale(layers: nn.Module, x: Tensor) -> Tensor:
        return layers[2](layers[:2](x) + random.random())  # type: ignore[index]

    model = Around(scale).eval()
    small, plan = svd.shrink(model, torch.randn(4, 5))
    assert plan.removed == 0 and "number" in plan.groups[0].reason
    assert svd.check(model, small, torch.randn(4, 5)).ok
