"""Whatever a network is called with, and whatever it returns."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import nni_sparsevd as svd
from nni_sparsevd.errors import SettingError, TraceError
from nni_sparsevd.graph import as_arguments, map_leaves, name_leaves

X = torch.randn(2, 5)
Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Frozen:
    logits: Tensor
    states: list[Any] = field(default_factory=list)


class Holder:
    """Neither a container nor a dataclass."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.size = value, len(value)


class Cyclic(Holder):
    def __init__(self, value: Tensor) -> None:
        super().__init__(value)
        self.itself = self


TREES = {
    "tensor": (X, [""]),
    "list": ([X, None, 2.0], ["0", "1", "2"]),
    "dict": ({"a": X, "b": {"c": (X, "text")}}, ["a", "b.c.0", "b.c.1"]),
    "named tuple": (Pair(X, [X]), ["left", "right.0"]),
    "ordered dict": (OrderedDict(b=X, a=X), ["b", "a"]),
    "mapping": (UserDict(a=X), ["a"]),
    "dataclass": (Frozen(X, [X]), ["logits", "states.0"]),
    "object": (Holder(X), ["value", "size"]),
    "packed sequence": (
        pack_sequence([X[0], X[1]]),
        ["data", "batch_sizes", "sorted_indices", "unsorted_indices"],
    ),
    "keys that look alike": ({1: X, "1": X}, ["0", "1"]),
    "nothing": ({}, []),
}


@pytest.mark.parametrize("kind", TREES)
def test_leaves_have_names_and_trees_are_built_again(kind: str) -> None:
    tree, names = TREES[kind]
    assert [name for name, _ in name_leaves(tree)] == names
    doubled = map_leaves(lambda leaf: 2 * leaf if isinstance(leaf, Tensor) and leaf.dim() == 2 else leaf, tree)
    assert type(doubled) is type(tree)
    for (_, before), (_, after) in zip(name_leaves(tree), name_leaves(doubled), strict=True):
        if isinstance(before, Tensor) and before.dim() == 2:
            assert torch.equal(after, 2 * before)
        elif not isinstance(before, Tensor):
            assert after == before


@pytest.mark.parametrize(
    ("example_inputs", "args", "kwargs"),
    [
        (X, (X,), {}),
        ((X, None), (X, None), {}),
        ({"x": X}, (), {"x": X}),
        (UserDict(x=X), (), {"x": X}),
        (((X,), {"y": 2}), (X,), {"y": 2}),
        ((X, {"y": 2}), (X, {"y": 2}), {}),
        (((X, X), {1: X}), ((X, X), {1: X}), {}),
        ((((X, X), {"y": X}), {}), ((X, X), {"y": X}), {}),
        ([X, X], ([X, X],), {}),
        (Pair(X, X), (Pair(X, X),), {}),
    ],
)
def test_example_inputs_are_read_in_one_way(example_inputs: Any, args: Any, kwargs: Any) -> None:
    arguments = as_arguments(example_inputs)
    assert str((arguments.args, arguments.kwargs)) == str((args, kwargs))
    assert as_arguments(arguments) is arguments


def test_a_pair_of_a_tuple_and_a_dict_can_be_two_arguments() -> None:
    arguments = as_arguments((((X, X), {"y": X}), {}))
    assert len(arguments.args) == 2 and not arguments.kwargs and len(arguments.tensors) == 3
    with pytest.raises(SettingError, match=r"names of arguments, found 1; .*\(\{\.\.\.\},\)"):
        as_arguments({1: X})


class Net(nn.Module):
    """12 hidden channels, of which every other one carries a constant."""

    def __init__(self, take: Any = lambda x: x, give: Any = lambda y: y) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.take, self.give = nn.Linear(5, 12), nn.Linear(12, 3), take, give
        with torch.no_grad():
            self.first.weight[::2] = 0

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        return self.give(self.second(self.first(self.take(*inputs, **keywords)).sigmoid()))


TAKEN = {
    "keywords": (lambda x, y=None: x * y, {"x": X, "y": X}),
    "one tensor twice": (lambda x, y: x * y, (X, X)),
    "both": (lambda x, y=None: x + y, ((X,), {"y": X})),
    "dict": (lambda batch: batch["x"], ({"x": X},)),
    "list": (lambda tensors: tensors[0] + tensors[1], [X, X]),
    "None": (lambda x, y: x, (X, None)),
    "number": (lambda x, y: x * y, (X, 2.0)),
    "text": (lambda x, how: x.sin() if how == "sin" else x, (X, "sin")),
    "flag": (lambda x, how=False: x.sin() if how else x, {"x": X, "how": True}),
    "dataclass": (lambda batch: batch.logits + batch.states[0], (Frozen(X, [X]),)),
    "named tuple": (lambda batch: batch.left, Pair(X, X)),
    "object": (lambda batch: batch.value, Holder(X)),
    "packed sequence": (lambda packed: packed.data, pack_sequence([X, X[:1]])),
    "it empties its dict": (lambda batch: batch.pop("x"), ({"x": X},)),
}
GIVEN = {
    "None": lambda y: (y, None),
    "dataclass": lambda y: Frozen(y, [y, 3]),
    "number": lambda y: (y, 3, 2.5, "text"),
    "nested": lambda y: {"a": [y, {"b": y}]},
    "named tuple": lambda y: Pair(y, y),
    "object": Cyclic,
    "whole numbers and flags": lambda y: (y, y.argmax(-1), y > 0),
    "complex numbers": lambda y: torch.fft.fft(y),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_whatever_goes_in(kind: str) -> None:
    take, inputs = TAKEN[kind]
    model = Net(take)
    assert svd.make_plan(model, inputs).removed == 6
    small, plan = svd.shrink(model, inputs)
    assert plan.removed == 6
    assert svd.check(model, small, inputs).ok
    with torch.no_grad():
        small.second.bias += 0.1
    assert not svd.check(model, small, inputs).ok
    svd.sparsify_(model, granularity="gate", example_inputs=inputs)
    assert svd.shrink_(model, inputs).removed == 6


@pytest.mark.parametrize("kind", GIVEN)
def test_whatever_comes_out(kind: str) -> None:
    model = Net(give=GIVEN[kind])
    small, plan = svd.shrink(model, X)
    assert plan.removed == 6 and len(plan.groups[-1].reason) > 0
    with torch.no_grad():
        small.second.bias += 0.1
    assert not svd.check(model, small, X).ok


def test_plain_values_are_compared() -> None:
    assert not svd.check(Net(give=lambda y: (y, "a")), Net(give=lambda y: (y, "b")), X).ok
    assert not svd.check(Net(give=lambda y: (y, None)), Net(give=lambda y: (y, y)), X).ok
    assert not svd.check(Net(give=lambda y: {"a": y}), Net(give=lambda y: {"b": y}), X).ok


def test_the_channels_of_an_output_stay_whatever_holds_it() -> None:
    model = Net(give=lambda y: Frozen(y))
    with torch.no_grad():
        model.second.weight[0] = 0
    assert svd.make_plan(model, X).groups[-1].reason == "output of the network"
    with pytest.raises(TraceError, match="the output is of the class object, and what it holds is unknown"):
        svd.make_plan(Net(give=lambda y: object()), X)


def test_a_number_is_no_constant_of_the_network() -> None:
    """What is folded must not depend on a factor or a time that the next call may change."""

    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 3)
            with torch.no_grad():
                self.first.weight[:4] = 0
                self.first.bias[:2] = 0

        def forward(self, x: Tensor, time: int, scale: float = 1.0) -> Tensor:
            return self.second(self.first(x) * scale + torch.full((1, 1), float(time)) * self.first.bias)

    model = Timed()
    small, plan = svd.shrink(model, (X, 3))
    assert plan.removed == 2
    torch.testing.assert_close(small(X, 5, 0.7), model(X, 5, 0.7))
