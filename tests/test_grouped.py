"""Grouped convolutions, called as layers or as functions, transposed or not, and images without a batch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from shrinking import Net, image, prepared
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.shrinking import apply_plan_
from nni_sparsevd.testing import assert_shrinks_exactly

Call = Callable[[nn.Module, Tensor], Tensor]


def transposed(groups: int, outputs: int = 12, bias: bool = True) -> nn.Sequential:
    layer = nn.ConvTranspose2d(8, outputs, 2, 2, groups=groups, bias=bias)
    return prepared(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(outputs, 4, 1)))


def silence_writer(layer: nn.Module, channels: list[int]) -> None:
    with torch.no_grad():
        layer.weight[channels] = 0
        layer.bias[channels] = 0


def test_a_grouped_transposed_convolution_loses_one_position_of_every_group() -> None:
    model = transposed(2)
    silence_writer(model[0], [1, 5])
    small, plan = assert_shrinks_exactly(model, image())
    assert plan.removed == 1 and small[2].weight.shape == (6, 6, 2, 2)
    assert (small[2].in_channels, small[2].out_channels, small[2].groups) == (6, 12, 2)


def test_a_grouped_transposed_convolution_loses_outputs() -> None:
    model = transposed(2)
    with torch.no_grad():
        model[2].weight[:, 2] = 0
        model[2].bias[[2, 8]] = 0
    small, plan = assert_shrinks_exactly(model, image())
    assert plan.removed == 1 and (small[2].out_channels, small[4].in_channels) == (10, 10)


def test_a_grouped_transposed_convolution_loses_whole_groups() -> None:
    model = transposed(4)
    silence_writer(model[0], [2, 3])
    with torch.no_grad():
        model[2].bias[3:6] = 0
    small, _ = assert_shrinks_exactly(model, image())
    assert (small[2].in_channels, small[2].out_channels, small[2].groups) == (6, 9, 3)


@pytest.mark.parametrize("outputs", [8, 24])
def test_a_depthwise_transposed_convolution_lives_with_its_input(outputs: int) -> None:
    model = transposed(8, outputs)
    silence_writer(model[0], [0, 3])
    times = outputs // 8
    with torch.no_grad():
        model[2].bias.view(8, times)[[0, 3]] = 0
    small, plan = assert_shrinks_exactly(model, image())
    assert plan.removed == 2
    assert (small[2].in_channels, small[2].out_channels, small[2].groups) == (6, 6 * times, 6)


def called(call: Call, shape: tuple[int, ...]) -> nn.Module:
    """A grouped convolution whose weight belongs to the network itself, between two layers."""
    model = Net(lambda m, x: m.last(call(m, F.relu(m.first(x)))), first=nn.Conv2d(3, 8, 1), last=nn.Conv2d(8, 3, 1))
    model.w, model.number = nn.Parameter(torch.randn(shape)), 8
    prepared(model)
    silence_writer(model.first, [0, 2, 4, 6])
    return model


FOLLOWING: dict[str, tuple[Call, tuple[int, ...], int]] = {
    "groups of its weight": (lambda m, y: F.conv2d(y, m.w, padding=1, groups=len(m.w)), (8, 1, 3, 3), 4),
    "groups of its input": (lambda m, y: F.conv2d(y, m.w, groups=y.shape[1]), (8, 1, 3, 3), 4),
    "an attribute": (lambda m, y: F.conv2d(y, m.w, None, 1, 1, 1, m.number), (8, 1, 3, 3), 4),
    "an attribute by name": (lambda m, y: F.conv_transpose2d(y, m.w, groups=m.number), (8, 1, 3, 3), 4),
    "positions": (lambda m, y: F.conv2d(y, m.w, padding=1, groups=2), (8, 4, 3, 3), 2),
    "positions, transposed": (lambda m, y: F.conv_transpose2d(y, m.w, groups=2), (8, 4, 2, 2), 2),
}


@pytest.mark.parametrize("case", FOLLOWING)
def test_groups_of_a_function_are_followed(case: str) -> None:
    call, shape, removed = FOLLOWING[case]
    _, plan = assert_shrinks_exactly(called(call, shape), image())
    assert plan.removed == removed


WRITTEN_OUT: dict[str, tuple[Call, tuple[int, ...]]] = {
    "depthwise": (lambda m, y: F.conv2d(y, m.w, padding=1, groups=8), (8, 1, 3, 3)),
    "depthwise, transposed": (lambda m, y: F.conv_transpose2d(y, m.w, groups=8), (8, 1, 2, 2)),
    "depthwise, in one dimension": (lambda m, y: F.conv1d(y.flatten(2), m.w, groups=8)[..., None], (8, 1, 3)),
}


@pytest.mark.parametrize("case", WRITTEN_OUT)
def test_a_number_of_groups_that_is_written_out_keeps_its_channels(case: str) -> None:
    _, plan = assert_shrinks_exactly(called(*WRITTEN_OUT[case]), image())
    assert plan.removed == 0 and "cannot follow" in plan.groups[0].reason


WITHOUT_A_BATCH: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "image": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)), (3, 8, 8)),
    "sound": (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.Sigmoid(), nn.Conv1d(8, 4, 1)), (3, 9)),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Conv2d(8, 4, 1)),
        (3, 8, 8),
    ),
    "transposed": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2)), (3, 8, 8)),
}


@pytest.mark.parametrize("case", WITHOUT_A_BATCH)
def test_channels_of_an_input_without_a_batch_are_removed(case: str) -> None:
    make, shape = WITHOUT_A_BATCH[case]
    model = prepared(make()).eval()
    for layer in model[:-1]:
        if isinstance(layer, nn.modules.conv._ConvNd):
            silence_writer(layer, [1, 4])
    x = torch.randn(shape, dtype=torch.float64)
    expected = model(x)
    plan = svd.make_plan(model, x)
    assert plan.removed == 2
    apply_plan_(model, plan)
    torch.testing.assert_close(model(x), expected)


def test_a_grouped_transposed_convolution_gets_no_gate_that_does_not_fit() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1), transposed(2).float())
    x = torch.randn(2, 3, 8, 8)
    expected = model.eval()(x)
    svd.sparsify_(model, granularity="gate", example_inputs=x)
    torch.testing.assert_close(model.eval()(x), expected)


def shuffled(m: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(m.first(x))
    batch, channels, height, width = x.shape
    x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
    y: Tensor = m.last(F.relu(m.grouped(x)))
    return y


def test_a_position_that_is_dead_in_every_group_leaves_before_a_shuffle_in_code_and_a_grouped_convolution() -> None:
    layers = {"first": nn.Conv2d(3, 12, 1), "grouped": nn.Conv2d(12, 12, 3, padding=1, groups=2)}
    model = prepared(Net(shuffled, **layers, last=nn.Conv2d(12, 4, 1)))
    silence_writer(model.first, [0, 3, 6, 9])  # of each group of six one that goes to either group behind the shuffle
    small, plan = assert_shrinks_exactly(model, image())
    assert plan.removed == 2 and small.grouped.weight.shape == (12, 4, 3, 3)


def test_a_shuffle_in_code_keeps_what_would_leave_one_group_behind_it_shorter_than_the_other() -> None:
    layers = {"first": nn.Conv2d(3, 12, 1), "grouped": nn.Conv2d(12, 12, 3, padding=1, groups=2)}
    model = prepared(Net(shuffled, **layers, last=nn.Conv2d(12, 4, 1)))
    silence_writer(model.first, [0, 1, 6, 7])
    assert assert_shrinks_exactly(model, image())[1].removed == 0


def silence_input(net: nn.Sequential) -> None:
    silence_writer(net[0], [1])


def silence_output(net: nn.Sequential) -> None:
    with torch.no_grad():
        net[2].weight[:4, 2] = 0
        net[2].bias[2] = 0


def silence_reader(net: nn.Sequential) -> None:
    with torch.no_grad():
        net[4].weight[:4, 2] = 0


def silence_output_of_reader(net: nn.Sequential) -> None:
    silence_writer(net[4], [1])


SAME_POSITIONS = "but the groups of a grouped convolution lose the same positions"
DEAD_IN_ONE_GROUP: dict[str, tuple[Callable[[nn.Sequential], None], str, str]] = {
    "an input": (silence_input, "0#2", f"1 dead, {SAME_POSITIONS}"),
    "an output": (silence_output, "2", f"1 dead, {SAME_POSITIONS}"),
    "an output that nobody reads": (silence_reader, "2", f"1 dead, {SAME_POSITIONS}"),
    "an output of the reader": (silence_output_of_reader, "4", f"1 dead, {SAME_POSITIONS}"),
}


@pytest.mark.parametrize("case", DEAD_IN_ONE_GROUP)
def test_what_is_dead_in_one_group_alone_stays_and_the_plan_says_why(case: str) -> None:
    silence, name, reason = DEAD_IN_ONE_GROUP[case]
    reader = [nn.Conv2d(12, 8, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1)]
    model = prepared(nn.Sequential(*transposed(2)[:4], *reader))
    silence(model)
    _, plan = assert_shrinks_exactly(model, image())
    assert plan.removed == 0
    reasons = {group.name: group.reason for group in plan.groups if group.reason}
    assert reasons.pop("6") == "output of the network"
    assert reasons == {name: f"{reason}, and others that would leave with them stay"}


def test_a_constant_in_one_group_alone_that_the_border_holds_is_named() -> None:
    layers = [nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(6, 4, 1)]
    model = prepared(nn.Sequential(*layers))
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = 1.0
    _, plan = assert_shrinks_exactly(model, image())
    assert [group.reason for group in plan.groups if "constant" in group.reason] == [
        "1 constant, but not at the zero-padded border that 2 sees"
    ]


@pytest.mark.parametrize("dead", [[0, 1, 6, 7], [0], [0, 6]])
def test_what_is_dead_at_some_places_behind_a_shuffle_in_code_stays_and_the_plan_says_why(dead: list[int]) -> None:
    layers = {"first": nn.Conv2d(3, 12, 1), "grouped": nn.Conv2d(12, 12, 3, padding=1, groups=2)}
    model = prepared(Net(shuffled, **layers, last=nn.Conv2d(12, 4, 1)))
    silence_writer(model.first, dead)
    reasons = [group.reason for group in assert_shrinks_exactly(model, image())[1].groups if group.reason]
    assert len(reasons) == 2 and reasons[0].startswith(f"{len(dead)} dead, but ")


def shuffled_before_an_ordinary_convolution(m: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(m.first(x))
    batch, channels, height, width = x.shape
    x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
    y: Tensor = m.last(x)
    return y


HELD = "a reshape of the channels loses whole rows or columns of them, and others that would leave with them stay"
SHUFFLED: dict[str, tuple[list[int], int, str]] = {
    "positions that are dead in both halves": ([0, 3, 6, 9], 2, ""),
    "another position of each half": ([1, 8], 0, f"2 dead, but {HELD}"),
    "both": ([0, 3, 6, 10], 1, f"2 dead, but {HELD}"),
    "one half": ([0, 1, 2, 3, 4, 5], 0, f"6 dead, but {HELD}"),
}


@pytest.mark.parametrize("case", SHUFFLED)
def test_a_shuffle_in_code_before_an_ordinary_convolution_loses_positions(case: str) -> None:
    dead, removed, reason = SHUFFLED[case]
    layers = {"first": nn.Conv2d(3, 12, 1), "last": nn.Conv2d(12, 4, 3, padding=1)}
    model = prepared(Net(shuffled_before_an_ordinary_convolution, **layers))
    silence_writer(model.first, dead)
    small, plan = assert_shrinks_exactly(model, image())
    assert plan.removed == removed and small.last.in_channels == 12 - 2 * removed
    halves, positions = (group.reason for group in plan.groups[:2])
    # The number of halves is written out, so a half cannot leave; that of positions follows the shape of the input.
    assert halves == "a size in the code of Net cannot follow" and positions == reason


class Shuffled(nn.Module):
    """A layer whose channels change their order; where `frozen`, it refuses to have another number of them."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.layer, self.positions, self.frozen = nn.Conv2d(6, 12, 1), 6, frozen

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.layer(x))
        if self.frozen and self.positions != 6:
            raise ValueError(f"{self.positions} positions")
        batch, _, height, width = y.shape
        return y.view(batch, 2, self.positions, height, width).transpose(1, 2).reshape(batch, -1, height, width)


@pytest.mark.parametrize("frozen", [[True, False, False], [False, True, False, True, False, False]])
def test_of_modules_of_a_class_those_are_blamed_that_fail(frozen: list[bool]) -> None:
    layers: list[nn.Module] = []
    for number, is_frozen in enumerate(frozen):
        layers += [nn.Conv2d(12 if number else 3, 6, 1), Shuffled(is_frozen)]
    model = prepared(nn.Sequential(*layers, nn.Conv2d(12, 4, 3, padding=1)))
    groups = svd.make_plan(model, image()).groups
    for number, is_frozen in enumerate(frozen):
        # The number of halves is written out; that of the positions is an attribute, which follows.
        reasons = [group.reason for group in groups if group.name.startswith(f"{2 * number + 1}.layer")]
        assert ("" in reasons) != is_frozen


def test_a_shuffle_with_all_its_sizes_written_out_loses_nothing_and_the_plan_says_why() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = m.last(F.relu(m.first(x)).view(-1, 2, 6, 8, 8).transpose(1, 2).reshape(-1, 12, 8, 8))
        return y

    model = prepared(Net(forward, first=nn.Conv2d(3, 12, 1), last=nn.Conv2d(12, 4, 3, padding=1)))
    silence_writer(model.first, [0, 3, 6, 9])
    _, plan = assert_shrinks_exactly(model, image())
    assert plan.removed == 0 and plan.groups[0].reason == "a size in the code of Net cannot follow"
