"""Which sizes in the code of a network follow its channels, and what happens to those that cannot."""

from collections.abc import Callable

import pytest
import torch
from shrinking import image, prepared
from torch import Tensor, nn

from nni_sparsevd.graph import ChannelGraph, channel_graph
from nni_sparsevd.masks import apply_masks_
from nni_sparsevd.studies.zoo.trials import mask_channels
from nni_sparsevd.testing import assert_shrinks_exactly


class Heads(nn.Module):
    """Twelve channels as three heads of four, mixed head by head, and back."""

    def __init__(self, forward: Callable[["Heads", Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.what = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 2, 1), forward
        self.heads, self.dimensions, self.width, self.sizes = 3, 4, 12, [5, 7]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.what(self, self.first(x)))


def free(graph: ChannelGraph) -> list[int]:
    return [len(group) for group in graph.groups if not group.pinned]


FOLLOWED: dict[str, tuple[Callable[[Heads, Tensor], Tensor], list[int], set[tuple[str, int | None]]]] = {
    "attributes": (
        lambda m, x: x.reshape(-1, m.heads, m.dimensions, *x.shape[2:]).tanh().reshape(-1, m.width, *x.shape[2:]),
        [3, 4], {("heads", None), ("dimensions", None), ("width", None)}),
    "the rest": (
        lambda m, x: x.unflatten(1, (m.heads, -1)).tanh().flatten(1, 2), [3, 4], {("heads", None)}),
    "a list": (
        lambda m, x: torch.cat([y.tanh() for y in x.split(m.sizes, 1)], 1), [12], {("sizes", 0), ("sizes", 1)}),
    "the shape of a tensor": (
        lambda m, x: x.mean((2, 3)).view(-1, x.shape[1], 1, 1) * x, [12], set()),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED)
def test_sizes_that_are_read_somewhere_follow(name: str) -> None:
    forward, expected, origins = FOLLOWED[name]
    model = prepared(Heads(forward))
    graph = channel_graph(model, image())
    assert free(graph) == expected
    assert set(graph.size_attributes) == {("", attribute, at) for attribute, at in origins}
    masks, killed = mask_channels(model, graph, "half", 0)
    apply_masks_(model, masks)
    small, plan = assert_shrinks_exactly(model, image())
    assert plan.removed == killed > 0
    for attribute, at in origins:
        before, after = getattr(model, attribute), getattr(small, attribute)
        assert (after if at is None else after[at]) < (before if at is None else before[at])
    # numbers that know their origin stay inside the trace
    assert {type(model.heads), type(small.heads), type(model.sizes[0])} == {int}


def insist(m: Heads, x: Tensor) -> Tensor:
    y = x.unflatten(1, (m.heads, -1))
    assert y.shape[1] * y.shape[2] == 12
    return y.flatten(1, 2)


REFUSED: dict[str, Callable[[Heads, Tensor], Tensor]] = {
    "written out": lambda m, x: x.view(-1, 12, 64).tanh().view(-1, 12, 8, 8),
    "computed": lambda m, x: x.unflatten(1, (m.width // 4, -1)).flatten(1, 2),
    "insisted on": insist,
}


@pytest.mark.parametrize("name", REFUSED)
def test_sizes_that_cannot_follow_keep_their_channels_and_say_why(name: str) -> None:
    model = prepared(Heads(REFUSED[name]))
    graph = channel_graph(model, image())
    reasons = [group.pinned or "" for group in graph.groups if group.module == "first"]
    assert any("a size in the code of Heads cannot follow" in reason for reason in reasons)
    masks, _ = mask_channels(model, graph, "half", 0)
    apply_masks_(model, masks)
    assert_shrinks_exactly(model, image())


def test_two_axes_of_one_attribute_lose_the_same_channels() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.width = nn.Linear(192, 8), nn.Linear(192, 8), 8
            self.last = nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            left, right = (y.view(-1, self.width, 1) for y in (self.left(x), self.right(x)))
            return self.last(torch.cat([left, right.exp()], 1).flatten(1))

    graph = channel_graph(prepared(Two()), image())
    coupled = next(group for group in graph.groups if group.name == "left")
    assert {axis for axis in coupled.axes if axis[1] == 0} == {
        (f"{side}.{key}", 0) for side in ("left", "right") for key in ("weight", "bias")
    }
