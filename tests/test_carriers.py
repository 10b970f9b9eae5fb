"""Constants at zero-padded borders: one channel carries them all, and nothing changes at any size."""

import pytest
import torch
import torch.nn.functional as F
from shrinking import Net, image, prepared
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.testing import assert_sensitive, assert_shrinks_exactly, relative_difference


def constants_at(model: nn.Module, conv: str, norm: str, *dead: int) -> None:
    """No weight writes these channels; the norm makes each a constant of its own."""
    with torch.no_grad():
        model.get_submodule(conv).weight[list(dead)] = 0
        model.get_submodule(norm).bias[list(dead)] = torch.linspace(0.3, 1.5, len(dead), dtype=torch.float64)


def plain(reader: nn.Module, activation: nn.Module | None = None) -> nn.Module:
    model = prepared(
        Net(
            lambda m, x: m.reader(m.activation(m.norm(m.first(x)))),
            first=nn.Conv2d(3, 8, 3, padding=1),
            norm=nn.BatchNorm2d(8),
            activation=activation or nn.Sigmoid(),
            reader=reader,
        )
    )
    constants_at(model, "first", "norm", 1, 4, 6)
    return model


READERS = {
    "padded": lambda: nn.Conv2d(8, 5, 3, padding=1),
    "without bias": lambda: nn.Conv2d(8, 5, 3, padding=1, bias=False),
    "same": lambda: nn.Conv2d(8, 5, 5, padding="same"),
    "strided": lambda: nn.Conv2d(8, 5, 3, 2, padding=1),
    "dilated": lambda: nn.Conv2d(8, 5, 3, padding=2, dilation=2),
    "transposed": lambda: nn.ConvTranspose2d(8, 5, 3, 2),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.ReLU, nn.GELU, nn.Tanh])
def test_all_but_one_constant_are_removed(kind, activation):
    model = plain(READERS[kind](), activation())
    small, plan = assert_shrinks_exactly(model, image())
    assert_sensitive(model, image())
    assert small.first.out_channels == 6 and plan.groups[0].dead == 1
    carried = 1 if activation is nn.ReLU else 2  # one is 0 behind a ReLU, and is removed by itself
    reason = f"1 constant, but not at the zero-padded border that reader sees, and carries {carried} more"
    assert plan.groups[0].reason == reason
    for size in (3, 5, 11, 16):
        assert relative_difference(model, small, image(size)) < 1e-10


def test_a_single_constant_stays_and_planning_again_finds_nothing():
    model = plain(nn.Conv2d(8, 5, 3, padding=1))
    small, _ = svd.shrink(model, image())
    assert svd.make_plan(small, image()).removed == 0
    assert svd.make_plan(small, image()).merges == {}


def test_each_reader_has_its_own_constants():
    """One reads behind a sigmoid, one behind a ReLU, one folds into its bias: 1 x 1 sees no border."""
    model = prepared(
        Net(
            lambda m, x: m.a((y := m.norm(m.first(x))).sigmoid()) + m.b(F.relu(y)) + m.c(y),
            first=nn.Conv2d(3, 8, 1),
            norm=nn.BatchNorm2d(8),
            a=nn.Conv2d(8, 4, 3, padding=1),
            b=nn.Conv2d(8, 4, 3, padding=1),
            c=nn.Conv2d(8, 4, 1),
        )
    )
    constants_at(model, "first", "norm", 0, 2, 5)
    small, plan = assert_shrinks_exactly(model, image())
    assert small.first.out_channels == 6
    assert set(plan.merges) == {("a.weight", 1), ("b.weight", 1)}


def test_one_that_is_nothing_to_a_reader_cannot_carry_for_it():
    """Behind a ReLU the first constant is 0: another one carries, and the first one is removed with them."""
    model = plain(nn.Conv2d(8, 5, 3, padding=1), nn.ReLU())
    with torch.no_grad():
        model.norm.bias[1] = -2.0
        model.norm.running_mean[1] = 0.0
    small, plan = assert_shrinks_exactly(model, image())
    assert small.first.out_channels == 6 and plan.groups[0].dead == 1


def test_a_residual_stream_has_one_carrier():
    model = prepared(
        Net(
            lambda m, x: m.head(m.b(m.norm_a(m.a(y := F.relu(m.norm(m.stem(x))))) + y).mean((2, 3))),
            stem=nn.Conv2d(3, 8, 3, padding=1),
            norm=nn.BatchNorm2d(8),
            a=nn.Conv2d(8, 8, 3, padding=1),
            norm_a=nn.BatchNorm2d(8),
            b=nn.Conv2d(8, 6, 3, padding=1),
            head=nn.Linear(6, 4),
        )
    )
    constants_at(model, "stem", "norm", 1, 3, 6)
    constants_at(model, "a", "norm_a", 1, 3, 6)
    small, _ = assert_shrinks_exactly(model, image())
    assert small.stem.out_channels == small.a.out_channels == small.a.in_channels == small.b.in_channels == 6


def test_what_the_carried_alone_read_is_removed_too():
    """Channels that only constant channels read have nothing to do any more."""
    model = prepared(
        Net(
            lambda m, x: m.reader(m.second(m.first(x).sigmoid()).sigmoid()),
            first=nn.Conv2d(3, 6, 1),
            second=nn.Conv2d(6, 8, 1),
            reader=nn.Conv2d(8, 5, 3, padding=1),
        )
    )
    with torch.no_grad():
        model.first.weight[:2] = 0  # constants, which the first three of the second layer read, and nothing else
        model.second.weight[:3, 2:] = 0
        model.second.weight[3:, :2] = 0
    small, _ = assert_shrinks_exactly(model, image())
    assert small.second.out_channels == 6 and small.first.out_channels == 4


@pytest.mark.parametrize("groups", [2, 8])
def test_grouped_readers_keep_their_channels(groups):
    model = plain(nn.Conv2d(8, 8, 3, padding=1, groups=groups))
    assert_shrinks_exactly(model, image())
    assert svd.make_plan(model, image()).merges == {}


def test_a_weight_that_two_readers_share_is_left_alone():
    model = prepared(
        Net(
            lambda m, x: m.reader(m.norm(m.first(x)).sigmoid()) + m.reader(m.norm_b(m.second(x)).sigmoid()),
            first=nn.Conv2d(3, 8, 1),
            norm=nn.BatchNorm2d(8),
            second=nn.Conv2d(3, 8, 1),
            norm_b=nn.BatchNorm2d(8),
            reader=nn.Conv2d(8, 5, 3, padding=1),
        )
    )
    constants_at(model, "first", "norm", 1, 4)
    constants_at(model, "second", "norm_b", 1, 4)
    assert_shrinks_exactly(model, image())
    assert svd.make_plan(model, image()).merges == {}


def test_a_tied_weight_is_left_alone():
    model = plain(nn.Conv2d(8, 8, 3, padding=1)).float()
    model.other = nn.Conv2d(8, 8, 3, padding=1)
    model.other.weight = model.reader.weight
    model.what = lambda m, x: m.other(m.reader(m.activation(m.norm(m.first(x)))))
    plan = svd.make_plan(model, image().float())
    assert plan.merges == {}
    assert svd.check(model, svd.shrink(model, image().float())[0], image().float()).ok


def test_the_plan_says_it_in_json():
    import json

    plan = svd.make_plan(plain(nn.Conv2d(8, 5, 3, padding=1)), image())
    (merges,) = json.loads(plan.to_json())["merges"].values()
    assert [set(merge) for merge in merges] == [{"into", "source", "factor"}] * 2
