"""Coupled channel groups of known networks against groups written by hand, and what pins a channel."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd import channel_graph
from nni_sparsevd.errors import TraceError
from nni_sparsevd.graph import ChannelGraph, NotCovered
from nni_sparsevd.graph.names import owner_of
from nni_sparsevd.graph.operators import OPERATORS

IMAGE = torch.zeros(2, 3, 8, 8)


class Net(nn.Module):
    """Modules by name, and what to do with them."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], object], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.what = forward

    def forward(self, x: Tensor) -> object:
        return self.what(self, x)


def account(graph: ChannelGraph) -> dict[str, tuple[int, set[str], str | None]]:
    """Group -> its channels, the axes that they touch, why they are pinned."""
    assert len({group.name for group in graph.groups}) == len(graph.groups)
    return {
        group.name: (len(group), {f"{name}:{dim}" for name, dim in group.axes}, group.pinned) for group in graph.groups
    }


def test_a_chain() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
    assert account(channel_graph(model, torch.zeros(2, 4))) == {
        "0": (6, {"0.weight:0", "0.bias:0", "2.weight:1"}, None),
        "2": (5, {"2.weight:0", "2.bias:0"}, "output of the network"),
    }


def test_a_residual_sum_couples_its_branches_and_their_norms() -> None:
    model = Net(
        lambda m, x: m.head(F.relu(m.left(x) + m.norm(m.right(x))).mean((2, 3))),
        left=nn.Conv2d(3, 6, 1),
        right=nn.Conv2d(3, 6, 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(6),
        head=nn.Linear(6, 2),
    )
    graph = channel_graph(model, IMAGE)
    states = {f"norm.{key}:0" for key in ("weight", "bias", "running_mean", "running_var")}
    assert account(graph)["left"] == (
        6,
        {"left.weight:0", "left.bias:0", "right.weight:0", "head.weight:1"} | states,
        None,
    )
    assert set(account(graph)) == {"left", "head"}
    # silencing takes a gate behind each branch: behind the norm where there is one
    assert {(w.module, w.site) for w in graph.groups[0].writers} == {("left", "left"), ("right", "norm")}


def test_concatenation_keeps_its_parts_apart() -> None:
    model = Net(
        lambda m, x: m.head(torch.cat([m.left(x), m.right(x)], 1)),
        left=nn.Conv2d(3, 4, 1),
        right=nn.Conv2d(3, 6, 1),
        head=nn.Conv2d(10, 2, 1),
    )
    graph = channel_graph(model, IMAGE)
    accounts = account(graph)
    assert accounts["left"] == (4, {"left.weight:0", "left.bias:0", "head.weight:1"}, None)
    assert accounts["right"] == (6, {"right.weight:0", "right.bias:0", "head.weight:1"}, None)
    groups = {group.name: group for group in graph.groups}
    assert graph.indices_along(("head.weight", 1), groups["left"].channels).tolist() == [0, 1, 2, 3]
    assert graph.indices_along(("head.weight", 1), groups["right"].channels).tolist() == [4, 5, 6, 7, 8, 9]


def test_a_depthwise_convolution_lives_with_its_input() -> None:
    model = Net(
        lambda m, x: m.head(m.deep(m.first(x))),
        first=nn.Conv2d(3, 4, 1),
        deep=nn.Conv2d(4, 8, 3, groups=4),
        head=nn.Conv2d(8, 2, 1),
    )
    graph = channel_graph(model, IMAGE)
    axes = {"first.weight:0", "first.bias:0", "deep.weight:0", "deep.bias:0", "head.weight:1"}
    assert account(graph)["first"] == (4, axes, None)
    # two outputs to each input
    assert graph.indices_along(("deep.weight", 0), graph.axes["first.weight", 0][[1]]).tolist() == [2, 3]
    assert [writer.module for writer in graph.groups[0].writers] == ["deep"]  # a gate before it would be wasted


def test_flattening_repeats_a_channel_over_its_positions() -> None:
    model = Net(lambda m, x: m.head(m.first(x).flatten(1)), first=nn.Conv2d(3, 4, 7), head=nn.Linear(16, 2))
    graph = channel_graph(model, IMAGE)
    assert account(graph)["first"] == (4, {"first.weight:0", "first.bias:0", "head.weight:1"}, None)
    channel = graph.axes["first.weight", 0][[2]]
    assert graph.indices_along(("head.weight", 1), channel).tolist() == [8, 9, 10, 11]


def test_grouped_convolution_loses_whole_groups_and_the_same_position_of_every_group() -> None:
    model = Net(
        lambda m, x: m.head(m.grouped(m.first(x))),
        first=nn.Conv2d(3, 6, 1),
        grouped=nn.Conv2d(6, 8, 1, groups=2),
        head=nn.Conv2d(8, 2, 1),
    )
    graph = channel_graph(model, IMAGE)
    accounts = account(graph)
    outputs = {"grouped.weight:0", "grouped.bias:0", "head.weight:1"}
    assert accounts["first"] == (3, {"first.weight:0", "first.bias:0", "grouped.weight:1"}, None)
    assert accounts["grouped"] == (4, outputs, None)
    assert accounts["first#2"] == (2, {"first.weight:0", "first.bias:0"} | outputs, None)
    groups = {group.name: group for group in graph.groups}
    position, whole = groups["first"].channels[[1]], groups["first#2"].channels[[1]]
    assert graph.indices_along(("first.weight", 0), position).tolist() == [1, 4]
    assert graph.indices_along(("grouped.weight", 1), position).tolist() == [1]
    assert graph.indices_along(("first.weight", 0), whole).tolist() == [3, 4, 5]
    assert graph.indices_along(("grouped.weight", 0), whole).tolist() == [4, 5, 6, 7]
    assert graph.positions_in_group(("first.weight", 0), groups["first"]).tolist() == [0, 1, 2, 0, 1, 2]
    assert graph.positions_in_group(("first.weight", 0), groups["first#2"]).tolist() == [0, 0, 0, 1, 1, 1]


def test_a_transposed_convolution_writes_along_its_second_axis() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 5, 2, 2), nn.PReLU(5), nn.Conv2d(5, 2, 1))
    accounts = account(channel_graph(model, IMAGE))
    assert accounts["0"] == (4, {"0.weight:0", "0.bias:0", "1.weight:0"}, None)
    assert accounts["1"] == (5, {"1.weight:1", "1.bias:0", "2.weight:0", "3.weight:1"}, None)


def test_squeeze_and_excite_has_a_group_of_its_own_and_couples_the_scale() -> None:
    model = Net(
        lambda m, x: m.head((y := m.first(x)) * torch.sigmoid(m.up(F.relu(m.down(y.mean((2, 3), keepdim=True)))))),
        first=nn.Conv2d(3, 6, 1),
        down=nn.Conv2d(6, 2, 1),
        up=nn.Conv2d(2, 6, 1),
        head=nn.Conv2d(6, 2, 1),
    )
    graph = channel_graph(model, IMAGE)
    accounts = account(graph)
    coupled = {"first.weight:0", "first.bias:0", "down.weight:1", "up.weight:0", "up.bias:0", "head.weight:1"}
    assert accounts["first"] == (6, coupled, None)
    assert accounts["down"] == (2, {"down.weight:0", "down.bias:0", "up.weight:1"}, None)
    # one silent factor silences the product, so the scale needs no gate
    assert [writer.module for writer in graph.groups[0].writers] == ["first"]


def test_an_embedding_can_lose_columns_but_no_words() -> None:
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 2))
    graph = channel_graph(model, torch.zeros(2, 3, dtype=torch.long))
    pinned = {label for group in graph.groups if group.pinned for label in group.channels}
    assert not pinned & set(graph.axes["0.weight", 1].tolist())
    assert np.array_equal(graph.axes["0.weight", 1], graph.axes["1.weight", 1])


def test_a_weight_used_twice_couples_both_uses() -> None:
    model = Net(
        lambda m, x: m.shared(m.left(x)) + m.shared(m.right(x)),
        left=nn.Conv2d(3, 4, 1),
        right=nn.Conv2d(3, 4, 1),
        shared=nn.Conv2d(4, 2, 1),
    )
    axes = {"left.weight:0", "left.bias:0", "right.weight:0", "right.bias:0", "shared.weight:1"}
    assert account(channel_graph(model, IMAGE))["left"] == (4, axes, None)


REASONS = {
    "layer norm": (lambda m, x: m.norm(m.first(x).flatten(2).mT).mT.sum(2), nn.LayerNorm(8), "layer_norm over the"),
    "index": (
        lambda m, x: m.norm.weight[m.first(x).flatten(2).argmax(2)].sum(1),
        nn.Embedding(64, 3),
        "looks up by its value",
    ),
    "index_select": (
        lambda m, x: m.norm.weight.index_select(0, m.first(x)[0].flatten(1).argmax(1)).sum(0),
        nn.Embedding(64, 3),
        "looks up by its value",
    ),
    "group norm": (lambda m, x: m.norm(m.first(x)), nn.GroupNorm(2, 8), "group_norm over the channels"),
    "softmax": (lambda m, x: m.first(x).softmax(1), nn.Identity(), "softmax over the channels"),
    "mean": (lambda m, x: m.first(x).mean(1, keepdim=True), nn.Identity(), "mean over the channels"),
    "chunk": (lambda m, x: m.first(x).chunk(3, 1)[0], nn.Identity(), "chunk into unequal pieces"),
    "slice": (lambda m, x: m.first(x)[:, 2:5], nn.Identity(), "slice of the channels at a fixed place"),
    "select": (lambda m, x: m.first(x)[:, 2], nn.Identity(), "select of the channels at a fixed place"),
    "cumulative": (lambda m, x: torch.cumsum(m.first(x), 1), nn.Identity(), "cumsum over the channels"),
    "unknown": (lambda m, x: torch.logcumsumexp(m.first(x), 2), nn.Identity(), "logcumsumexp has no rule"),
    "written": (
        lambda m, x: torch.zeros(2, 8, 8, 8).scatter(2, m.first(x).argsort(2), m.first(x)),
        nn.Identity(),
        "scatter has no rule: it writes to places that are given by number",
    ),
    "input": (
        lambda m, x: m.first(x) + x.repeat(1, 3, 1, 1)[:, :8],
        nn.Identity(),
        "with something that is no channel",
    ),
    "output": (lambda m, x: m.first(x), nn.Identity(), "output of the network"),
}


@pytest.mark.parametrize("kind", REASONS)
def test_what_pins_a_channel_is_named(kind: str) -> None:
    forward, norm, reason = REASONS[kind]
    model = Net(forward, first=nn.Conv2d(3, 8, 1), norm=norm)
    (group,) = channel_graph(model, IMAGE).groups
    assert group.pinned is not None and reason in group.pinned and len(group) == 8


def test_an_unknown_operator_pins_only_what_enters_it() -> None:
    model = Net(
        lambda m, x: m.second(F.relu(m.first(x))).logcumsumexp(1), first=nn.Conv2d(3, 4, 1), second=nn.Conv2d(4, 5, 1)
    )
    accounts = account(channel_graph(model, IMAGE))
    assert accounts["first"][2] is None and accounts["second"][2] == "logcumsumexp has no rule"


def test_a_failing_network_is_a_trace_error_with_the_reason() -> None:
    reason = r"Linear could not be traced on inputs of shape \(2, 3\): (addmm: )?mat1 and mat2"
    with pytest.raises(TraceError, match=reason):
        channel_graph(nn.Linear(4, 2), torch.zeros(2, 3))


def test_a_network_whose_way_depends_on_values_is_a_trace_error() -> None:
    model = Net(lambda m, x: m.first(x) if x.sum() > 0 else m.first(-x), first=nn.Conv2d(3, 4, 1))
    with pytest.raises(TraceError, match="Net could not be traced"):
        channel_graph(model, IMAGE)


@pytest.mark.parametrize("look", [Tensor.tolist, Tensor.numpy, np.asarray, np.from_dlpack])
def test_values_that_python_sees_without_an_operator_are_a_trace_error(look: Callable[[Tensor], Any]) -> None:
    model = Net(lambda m, x: m.first(x) * (2 if look(x.mean() > 0) else 3), first=nn.Conv2d(3, 8, 1))
    with pytest.raises(TraceError, match="depends on the values of the input"):
        channel_graph(model, IMAGE)


def test_a_layer_whose_result_nobody_uses_follows_what_enters_it() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        hidden = m.first(x)
        m.deeper(F.relu(m.spare(hidden)).mean((2, 3)))
        result: Tensor = m.second(hidden)
        return result

    layers = {"first": nn.Conv2d(3, 8, 3), "spare": nn.Conv2d(8, 6, 1), "deeper": nn.Linear(6, 5)}
    model = Net(forward, **layers, second=nn.Conv2d(8, 2, 1))
    with torch.no_grad():
        model.first.weight[::2] = 0
        model.first.bias[::2] = 0
    small, plan = svd.shrink(model, IMAGE)
    accounts = {group.name: group.removed for group in plan.groups}
    assert accounts["first"] == 4 and accounts["deeper"] == 4 and small.spare.weight.shape == (6, 4, 1, 1)


@pytest.mark.parametrize(
    "look_up",
    [
        lambda x: x[:, [5, 0]],
        lambda x: x.index_select(1, torch.tensor([5], device=x.device)),
        lambda x: x.gather(1, torch.full((len(x), 1, 1, 1), 5, device=x.device)),
    ],
)
def test_places_that_nobody_uses_have_to_be_there(look_up: Callable[[Tensor], Tensor]) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        hidden = m.first(x)
        look_up(hidden)
        result: Tensor = m.second(hidden)
        return result

    model = Net(forward, first=nn.Conv2d(3, 6, 1), second=nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        model.first.weight[::2] = 0
    _, plan = svd.shrink(model, IMAGE)
    assert plan.groups[0].reason == "looked up by a fixed number"


def write_sizes(x: Tensor, value: Tensor | int) -> Tensor:
    """A table that holds the height of an image, written in the one place, and a value in the other."""
    table = torch.zeros(2, dtype=torch.long)
    height, width = table[:1], table[1:]
    width.fill_(value)
    height.fill_(x.shape[2])
    return table


@pytest.mark.parametrize("depends", [False, True])
def test_a_table_of_sizes_that_is_written_in_parts_may_be_looked_at(depends: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        table = write_sizes(x, x.sum().long() if depends else x.shape[3])
        return m.second(m.first(x) if table.sum() == 16 else -m.first(x))

    model = Net(forward, first=nn.Conv2d(3, 8, 1), second=nn.Conv2d(8, 2, 1))
    if depends:
        with pytest.raises(TraceError, match="its control flow depends on the values of the input"):
            channel_graph(model, IMAGE)
        return
    with torch.no_grad():
        model.first.weight[::2] = 0
        model.first.bias[::2] = 0
    assert svd.shrink(model, IMAGE)[1].removed == 4


@pytest.mark.parametrize("fails", [False, True])
def test_tracing_leaves_the_model_as_it_was(fails: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 1))
    model[2].eval()  # a mixture, to be restored module by module
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if fails:
        with pytest.raises(TraceError):
            channel_graph(model, torch.zeros(2, 5, 4, 4))
    else:
        channel_graph(model, IMAGE)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_groups_come_in_the_order_of_writing_and_do_not_overlap() -> None:
    import timm

    model = timm.create_model("resnet18", num_classes=10)
    groups = channel_graph(model, torch.zeros(1, 3, 32, 32)).groups
    names = [group.name for group in groups]
    order = [name for name, _ in model.named_modules()]
    assert names == sorted(names, key=order.index) and names[0] == "conv1" and names[-1] == "fc"
    labels = np.concatenate([group.channels for group in groups])
    assert len(np.unique(labels)) == len(labels)
    # a stem and a trunk per stage, one inner group a block
    assert [len(g) for g in groups] == [64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512, 10]
    assert [g.name for g in groups if g.pinned] == ["fc"]


def padded_network() -> Net:
    return Net(
        lambda m, x: m.last(F.pad(m.first(x), (0, 0)).mean((2, 3))).mul(torch.ones(2)),
        first=nn.Conv2d(3, 4, 1),
        last=nn.Linear(4, 2),
    )


def plant_rule(monkeypatch: pytest.MonkeyPatch, rule: Callable[..., object]) -> None:
    """Give `pad` another channel rule."""
    pad = torch.ops.aten.pad.default
    monkeypatch.setitem(OPERATORS, pad, replace(OPERATORS[pad], channel_rule=rule))


def test_a_call_outside_a_rules_signature_pins_what_enters_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_rule(monkeypatch, lambda equations, node, x: x)
    reason = account(channel_graph(padded_network(), IMAGE))["first"][2]
    assert reason is not None and reason.startswith("pad is called in a way that its rule does not cover: too many")


def test_a_case_that_a_rule_does_not_cover_pins_with_the_rules_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(equations: object, node: object, x: object, *settings: object) -> object:
        raise NotCovered("pad on a Tuesday")

    plant_rule(monkeypatch, rule)
    assert account(channel_graph(padded_network(), IMAGE))["first"][2] == "pad on a Tuesday"


@pytest.mark.parametrize("error", [AttributeError, TypeError, KeyError, IndexError, ValueError, AssertionError])
def test_a_mistake_in_a_rule_reaches_the_user(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def rule(equations: object, node: object, x: object, *settings: object) -> object:
        raise error("a typo")

    plant_rule(monkeypatch, rule)
    with pytest.raises(error, match="a typo"):
        channel_graph(padded_network(), IMAGE)


UNCOVERED = {
    "a vector": (lambda m, x: m.first(x)[0, :, 0, 0] @ torch.ones(8), "matmul with a vector"),
    "flags": (
        lambda m, x: m.first(x) + m.first.bias[torch.ones(8, dtype=torch.bool)].view(8, 1, 1),
        "index by flags, or by nothing",
    ),
    "separate axes": (lambda m, x: m.first(x)[torch.tensor([0]), :, torch.tensor([1])], "that are not neighbors"),
    "all elements": (lambda m, x: m.first(x).repeat_interleave(2), "repeat_interleave of all elements"),
    "nothing": (lambda m, x: m.first(x)[:, :, :0].reshape(2, 8, 0), "reshape of a tensor without elements"),
    "an old cat": (lambda m, x: torch.cat([m.first(x), torch.zeros(0)], 1), "cat of tensors of different ranks"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNCOVERED)
def test_cases_that_no_rule_covers_pin_with_their_reason(case: str) -> None:
    forward, reason = UNCOVERED[case]
    (group,) = channel_graph(Net(forward, first=nn.Conv2d(3, 8, 1)), IMAGE).groups
    assert group.pinned is not None and reason in group.pinned


def test_the_largest_values_of_windows_keep_their_channels() -> None:
    model = Net(
        lambda m, x: m.last(F.adaptive_max_pool2d(m.first(x), 1).flatten(1)),
        first=nn.Conv2d(3, 4, 1),
        last=nn.Linear(4, 2),
    )
    assert account(channel_graph(model, IMAGE))["first"][2] is None


def test_a_norm_with_its_default_order_keeps_its_channels() -> None:
    model = Net(
        lambda m, x: m.last(torch.ops.aten.linalg_vector_norm(m.first(x), 2, [2, 3])),
        first=nn.Conv2d(3, 4, 1),
        last=nn.Linear(4, 2),
    )
    assert account(channel_graph(model, IMAGE))["first"][2] is None


def test_a_bound_of_its_own_for_each_channel_is_coupled() -> None:
    model = Net(
        lambda m, x: m.last(torch.clamp_min(m.first(x), m.bound.weight.view(4, 1, 1))),
        first=nn.Conv2d(3, 4, 1),
        last=nn.Conv2d(4, 2, 1),
        bound=nn.Linear(1, 4),
    )
    assert ("bound.weight", 0) in channel_graph(model, IMAGE).groups[0].axes


@pytest.mark.parametrize("added", [lambda x: -x.shape[1] % 8, lambda x: 8 - x.shape[1]])
def test_channels_stay_where_code_pads_them_by_a_width_made_of_their_number(added: Callable[[Tensor], int]) -> None:
    model = Net(
        lambda m, x: m.last(F.pad(m.first(x), (0, 0, 0, 0, 0, added(m.first(x))))),
        first=nn.Conv2d(3, 6, 1),
        last=nn.Conv2d(8, 2, 1),
    )
    assert account(channel_graph(model, IMAGE))["first"][2] == "a size in the code of Net cannot follow"


def test_padding_that_shifts_the_channels_pins_them() -> None:
    model = Net(
        lambda m, x: m.last(F.pad(m.first(x), (0, 0, 0, 0, 1, -1))), first=nn.Conv2d(3, 4, 1), last=nn.Conv2d(4, 2, 1)
    )
    assert account(channel_graph(model, IMAGE))["first"][2] == "padded axis"


def test_a_forward_that_writes_to_its_buffers_and_looks_at_values_changes_nothing() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.last(self.first(x)) if self.calls.item() > 0 else x

    model = Counting()
    assert account(channel_graph(model, IMAGE))["first"][2] is None
    assert model.calls.item() == 0


def test_modules_that_change_with_the_mode_end_as_they_were() -> None:
    """As low-rank adapters do, which merge their weights for evaluation."""

    class Merging(nn.Linear):
        def train(self, mode: bool = True) -> nn.Module:
            if mode != self.training:
                self.weight.data *= 2 if mode else 0.5
            return super().train(mode)

    model = nn.Sequential(Merging(4, 6), nn.Linear(6, 2)).eval()
    weight = model[0].weight.clone()
    channel_graph(model, torch.zeros(2, 4))
    assert torch.equal(model[0].weight, weight) and not model[0].training


def test_a_part_of_a_parametrized_weight_belongs_to_the_module_that_has_the_weight() -> None:
    assert owner_of("layers.1.parametrizations.weight.original0") == "layers.1"
    assert owner_of("parametrizations.weight.original0") == "" == owner_of("bias")
    assert owner_of("layers.1.bias") == "layers.1"
