"""The check can say no, and a plan is a value."""

import copy
import importlib
import json
from collections.abc import Callable

import pytest
import torch
from shrinking import (
    SMALL,
    Net,
    half_constant,
    image,
    prepared,
)
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.errors import ShrinkError
from nni_sparsevd.shrinking.apply import apply_plan_


def sabotaged() -> tuple[nn.Module, nn.Module]:
    """A network, and the same after a plan that cuts a channel which is alive."""
    model = prepared(SMALL["mlp"](), "rows")
    plan = svd.make_plan(model, image())
    live = next(index for index in range(12) if index not in plan.cuts["1.weight", 0])
    for axis in (("1.weight", 0), ("1.bias", 0), ("3.weight", 1)):
        plan.cuts[axis] = tuple(sorted((*plan.cuts[axis], live)))
    return model, apply_plan_(copy.deepcopy(model), plan)


def test_cutting_a_live_channel_is_found() -> None:
    model, wrong = sabotaged()
    result = svd.check(model, wrong, image())
    assert not result.ok and result.max_rel_64 > 1e-4 and "DIFFERENT" in str(result)


def test_a_forgotten_fold_is_found() -> None:
    model = half_constant(nn.Conv2d(5, 4, 1))
    plan = svd.make_plan(model, image())
    for added in plan.folds.values():
        added.zero_()
    assert not svd.check(model, apply_plan_(copy.deepcopy(model), plan), image()).ok


def test_shrink_raises_what_check_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    model, wrong = sabotaged()
    room = importlib.import_module("nni_sparsevd.shrinking.shrink_copy")
    monkeypatch.setattr(room, "apply_plan", lambda *_: wrong)
    with pytest.raises(ShrinkError, match="Sequential gives other outputs, DIFFERENT"):
        svd.shrink(model, image())


def linear(change: Callable[[Tensor], None]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        change(model.weight)
    return model


class _InFloat32(nn.Module):
    """An instance norm of a constant image divides the rounding of its mean by the root of epsilon."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8 * 36, 4)
        with torch.no_grad():
            self.convolution.bias.uniform_(50, 100)

    def forward(self, x: Tensor) -> Tensor:
        whitened = nn.functional.instance_norm(self.convolution(x))
        return self.head(whitened.flatten(1)) @ torch.eye(4, dtype=torch.float32)  # does not run in float64


def test_inputs_on_which_a_network_in_float32_is_noise_are_left_out() -> None:
    model = _InFloat32()
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        rounded.convolution.bias.mul_(1 + 2**-22)
        zeros = torch.zeros(1, 3, 8, 8)
        assert (model(zeros) - rounded(zeros)).abs().max() > 3e-4  # what a comparison on zeros would see
    result = svd.check(model, rounded, torch.randn(2, 3, 8, 8))
    assert not result.runs_in_64
    assert result.ok, result
    with torch.no_grad():
        rounded.head.weight[0, 0] += 0.01
    assert not svd.check(model, rounded, torch.randn(2, 3, 8, 8)).ok


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("wrong_side", [0, 1])
def test_check_rejects_what_is_not_finite(value: float, wrong_side: int) -> None:
    pair = [linear(lambda w: None), linear(lambda w: None)]
    assert svd.check(*pair, torch.zeros(2, 3)).ok
    pair[wrong_side] = linear(lambda w: w[0, 0].fill_(value))
    assert not svd.check(*pair, torch.zeros(2, 3)).ok


def test_check_is_as_strict_as_it_says() -> None:
    model = linear(lambda w: None)
    assert svd.check(model, linear(lambda w: w.mul_(1 + 1e-13)), torch.zeros(2, 3)).ok
    near = svd.check(model, linear(lambda w: w.mul_(1 + 1e-8)), torch.zeros(2, 3))
    assert not near.ok and near.max_rel_32 < 1e-5  # float64 alone tells them apart
    assert near.to_dict()["ok"] is False and json.dumps(near.to_dict())


def test_check_compares_every_output_in_evaluation_mode() -> None:
    model = Net(
        lambda m, x: {"a": m.first(x), "b": [m.second(m.drop(x))]},
        first=nn.Linear(3, 2),
        second=nn.Linear(3, 2),
        drop=nn.Dropout(),
    )
    same = copy.deepcopy(model.double())
    assert svd.check(model, same, torch.zeros(2, 3)).ok and same.training
    with torch.no_grad():
        same.second.weight[0, 0] += 1
    assert not svd.check(model, same, torch.zeros(2, 3)).ok


def test_check_draws_integers_from_the_example() -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2)).double()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight[3] += 1
    assert svd.check(model, other, torch.tensor([[0, 1, 2]])).ok  # the example has no 3, so nor has the check
    assert not svd.check(model, other, torch.tensor([[0, 1, 3]])).ok


def test_gradients_are_compared_by_the_name_in_the_documents() -> None:
    """`import nni_sparsevd.shrinking` gives the package, not the function `shrink`."""
    import nni_sparsevd.shrinking as room

    model = prepared(SMALL["residual"](), "columns")
    small, plan = svd.shrink(model, image())
    assert plan.removed > 0
    assert room.gradient_difference(model, small, plan, image(), training=False) < 1e-12
    with torch.no_grad():
        small.head.weight[0, 0] += 1.0
    assert room.gradient_difference(model, small, plan, image(), training=False) > 1e-3


# The plan is a value.


def test_the_plan_as_data() -> None:
    model = prepared(SMALL["residual"](), "columns")
    plan = svd.make_plan(model, image())
    assert svd.make_plan(model, image()) == plan
    read = json.loads(plan.to_json())
    assert (
        read["groups"] == json.loads(json.dumps(plan.to_rows()))
        and sum(g["removed"] for g in read["groups"]) == plan.removed
    )
    assert read["cuts"]["a.weight:0"] == list(plan.cuts["a.weight", 0])
    lines = str(plan).splitlines()
    assert len(lines) == 1 + len(plan.groups) and lines[-1].endswith("output of the network")
    with pytest.raises(AttributeError):
        plan.groups = ()
