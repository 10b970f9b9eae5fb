"""What `nni_sparsevd.testing` ships finds what is wrong: each part of the law of shrinking, broken on purpose."""

import copy
from collections.abc import Callable

import pytest
import torch
from shrinking import SMALL, image, prepared
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.testing import assert_sensitive, assert_shrinks_exactly, law, relative_difference

Broken = Callable[[nn.Module, nn.Module], object]  # (network, small network) -> None: breaks one part of the law


def share_memory(model: nn.Module, small: nn.Module) -> None:
    small[-1].bias = model[-1].bias


def change_the_network(model: nn.Module, small: nn.Module) -> None:
    model[1].weight.data[0] += 1


def change_the_mode(model: nn.Module, small: nn.Module) -> None:
    model[2].train(not model[2].training)


def compute_something_else(model: nn.Module, small: nn.Module) -> None:
    small[1].bias.data += 1e-3


def change_a_class(model: nn.Module, small: nn.Module) -> None:
    small[2] = nn.ReLU(inplace=True) if not isinstance(small[2], nn.ReLU) else nn.Tanh()


BROKEN: dict[str, tuple[Broken, str]] = {
    "shared memory": (share_memory, "shares its memory"),
    "changed network": (change_the_network, r"shrink changed 1\.weight"),
    "changed mode": (change_the_mode, "shrink changed a training mode"),
    "other outputs": (compute_something_else, "outputs differ by"),
    "other classes": (change_a_class, "modules before"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_law_is_found(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_, message = BROKEN[case]
    model = prepared(SMALL["mlp"](), "rows")
    assert_shrinks_exactly(model, image())

    def shrink(model: nn.Module, *rest: object) -> tuple[nn.Module, svd.Plan]:
        small, plan = svd.shrink(model, *rest)
        with torch.no_grad():
            break_(model, small)
        return small, plan

    monkeypatch.setattr(law, "shrink", shrink)
    if case == "other classes":
        monkeypatch.setattr(law, "assert_same_outputs", lambda *_: None)
    with pytest.raises(AssertionError, match=message):
        assert_shrinks_exactly(model, image())


def test_a_plan_that_is_not_true_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(SMALL["mlp"](), "rows")
    monkeypatch.setattr(law, "shrink", lambda model, *rest: (copy.deepcopy(model), svd.make_plan(model, image())))
    with pytest.raises(AssertionError, match="by the plan"):
        assert_shrinks_exactly(model, image())


def test_what_is_left_to_remove_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(SMALL["mlp"](), "rows")
    nothing = svd.make_plan(prepared(SMALL["mlp"]()), image())
    assert nothing.removed == 0
    monkeypatch.setattr(law, "shrink", lambda model, *rest: (copy.deepcopy(model), nothing))
    with pytest.raises(AssertionError, match="planning again finds more"):
        assert_shrinks_exactly(model, image())


def test_masks_and_single_precision() -> None:
    """The law holds for masks too, and for a network in float32, which stays as it is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    masks = {"0": {"weight": torch.ones(8, 6), "bias": torch.ones(8)}}
    masks["0"]["weight"][:2] = masks["0"]["bias"][:2] = 0
    small, plan = assert_shrinks_exactly(model, torch.zeros(2, 6), masks)
    assert plan.removed == 2 and small[0].out_features == 6 and model[0].weight.dtype == torch.float32


def test_several_inputs_and_integers() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix, self.head = nn.Embedding(7, 6), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, tokens: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return self.head((self.table(tokens) + self.mix(x)).relu())

    model = Pair()
    with torch.no_grad():
        for parameter in (model.table.weight.T, model.mix.weight, model.mix.bias):
            parameter[1] = 0
    small, plan = assert_shrinks_exactly(model, (torch.arange(7), torch.zeros(7, 4)))
    assert plan.removed == 1 and small.mix.out_features == 5


def test_a_comparison_that_would_find_nothing_is_found() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).double()
    assert_sensitive(model, torch.zeros(1, 4).double())
    nn.init.zeros_(model[1].weight)
    with pytest.raises(AssertionError, match="hardly depend on the first layer"):
        assert_sensitive(model, torch.zeros(1, 4).double())


def test_larger_images_are_tried_too() -> None:
    """Two networks that agree on images of eight pixels alone."""
    pool, window = nn.AdaptiveAvgPool2d(1).double(), nn.AvgPool2d(8).double()
    with pytest.raises(AssertionError, match="outputs of shapes"):
        relative_difference(pool, window, image())
    assert relative_difference(pool, nn.AdaptiveAvgPool2d(1), image()) == 0
