"""Where shrinking usually goes wrong: constants, sharing, pins, masks, training on."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shrinking import SMALL, Net, half_constant, image, prepared, third
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.errors import MaskError, ShrinkError
from nni_sparsevd.testing import assert_shrinks_exactly, relative_difference


@pytest.mark.parametrize("bias", [False, True])
def test_a_constant_is_folded_into_the_next_bias(bias: bool) -> None:
    model = half_constant(nn.Conv2d(5, 4, 3, bias=bias))
    small, plan = assert_shrinks_exactly(model, image())
    assert plan.removed == 1 and small.first.out_channels == 4
    before = model.reader.bias if bias else torch.zeros(4).double()
    torch.testing.assert_close(small.reader.bias.data, before + 0.5 * model.reader.weight[:, 2].sum((1, 2)))


def test_a_constant_is_kept_where_zero_padding_shows_it() -> None:
    small, plan = assert_shrinks_exactly(half_constant(nn.Conv2d(5, 4, 3, padding=1)), image())
    group = plan.groups[0]
    assert (plan.removed, group.dead) == (0, 1) and small.first.out_channels == 5
    assert group.reason == "1 constant, but not at the zero-padded border that reader sees"
    assert group.reason in str(plan)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding: str) -> None:
    _, plan = assert_shrinks_exactly(half_constant(nn.Conv2d(5, 4, 3, padding=padding)), image())
    assert plan.removed == (padding == "valid")


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_that_repeats_the_image_is_safe(mode: str) -> None:
    assert_shrinks_exactly(half_constant(nn.Conv2d(5, 4, 3, padding=1, padding_mode=mode)), image())


def test_a_padded_depthwise_convolution_passes_no_constant_on() -> None:
    model = half_constant(nn.Sequential(nn.Conv2d(5, 5, 3, groups=5, padding=1), nn.Conv2d(5, 4, 1)))
    _, plan = assert_shrinks_exactly(model, image())
    assert plan.removed == 0


def test_a_transposed_convolution_takes_no_constant() -> None:
    _, plan = assert_shrinks_exactly(half_constant(nn.ConvTranspose2d(5, 4, 3, 2)), image())
    assert plan.removed == 0 and "border that reader sees" in plan.groups[0].reason


def test_an_average_with_a_divisor_of_its_own() -> None:
    assert_shrinks_exactly(
        half_constant(nn.Sequential(nn.AvgPool2d(2, divisor_override=3), nn.Conv2d(5, 4, 1))), image()
    )


# Sharing.


def two_branches(
    left: Callable[[Tensor], Tensor], right: Callable[[Tensor], Tensor], twin: bool, bias: bool
) -> nn.Module:
    """One layer read twice, or two layers with one weight; channel 2 of both branches gets the input zero."""
    model = Net(
        lambda m, x: m.shared(left(m.a(x))) + 2 * m.twin(right(m.b(x))),
        a=nn.Conv2d(3, 5, 1),
        b=nn.Conv2d(3, 5, 1),
        shared=nn.Conv2d(5, 4, 1, bias=bias),
    )
    model.twin = nn.Conv2d(5, 4, 1, bias=bias) if twin else model.shared
    prepared(model)
    model.twin.weight = model.shared.weight
    with torch.no_grad():
        for branch in (model.a, model.b):
            branch.weight[2] = 0
            branch.bias[2] = 0
    return model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("twin", [False, True])
@pytest.mark.parametrize("right", [torch.sigmoid, torch.tanh])
def test_a_weight_used_twice(right: Callable[[Tensor], Tensor], twin: bool, bias: bool) -> None:
    model = two_branches(torch.sigmoid, right, twin, bias)
    small, plan = assert_shrinks_exactly(model, image())
    assert small.twin.weight is small.shared.weight
    if bias and not twin:  # one bias: it can take up a constant only when both uses see the same
        assert plan.removed == (right is torch.sigmoid)


def test_tied_weights_stay_tied() -> None:
    model = Net(
        lambda m, x: m.decode(F.relu(m.middle(F.relu(m.encode(x))))),
        encode=nn.Linear(6, 9),
        middle=nn.Linear(9, 9),
        decode=nn.Linear(9, 6),
    )
    prepared(model)
    model.middle.weight = model.encode.weight = nn.Parameter(torch.randn(9, 9).double())
    model.encode.in_features = 9
    with torch.no_grad():
        model.decode.weight[:, 1] = 0
        model.middle.weight[:, 1] = 0
    small, _ = assert_shrinks_exactly(model, torch.zeros(2, 9).double())
    assert small.middle.weight is small.encode.weight


def test_a_weight_without_a_layer_has_no_bias_to_fold_into() -> None:
    model = Net(lambda m, x: m.head(F.linear(torch.sigmoid(m.a(x)), m.weight)), a=nn.Linear(6, 5), head=nn.Linear(4, 2))
    model.weight = nn.Parameter(torch.randn(4, 5))
    prepared(model)
    with torch.no_grad():
        model.a.weight[2] = 0
        model.a.bias[2] = 0
        model.a.weight[3] = 0
        model.weight[:, 3] = 0
    small, plan = assert_shrinks_exactly(model, torch.zeros(2, 6).double())
    assert plan.removed == 1 and small.weight.shape == (4, 4)


def test_a_grouped_convolution_may_be_left_with_one_channel_a_group() -> None:
    grouped = nn.Conv2d(16, 32, 3, groups=4, bias=False)
    model = prepared(nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), grouped, nn.ReLU(), nn.Conv2d(32, 4, 1)))
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor.view(4, 4, -1)[:, 1:] = 0
        model[2].weight.view(4, 8, -1)[:, 4:] = 0
    small, plan = assert_shrinks_exactly(model, image())
    assert (small[2].in_channels, small[2].out_channels, small[2].groups) == (4, 16, 4)
    assert plan.removed == 3 + 4


# Refusals, with reasons.


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nn.GroupNorm(2, 6), "group_norm over the channels"),
        (nn.GroupNorm(1, 6), "group_norm over the channels"),
        (nn.Softmax2d(), "softmax over the channels"),
        (nn.LocalResponseNorm(2), "avg_pool3d over the channels"),  # a mean over neighboring channels
    ],
)
def test_norms_over_channels_keep_them(norm: nn.Module, reason: str) -> None:
    model = prepared(nn.Sequential(nn.Conv2d(3, 6, 1), norm, nn.Conv2d(6, 4, 1)), "rows")
    _, plan = assert_shrinks_exactly(model, image())
    assert plan.groups[0].removed == 0 and reason in plan.groups[0].reason


TOKENS = torch.zeros(2, 5, 8, dtype=torch.float64)
"""A batch of five tokens of eight values each."""
OVER_TOKENS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "max_pool": (lambda x: F.max_pool1d(x, 3, 1, 1), "max_pool1d"),
    "avg_pool": (lambda x: F.avg_pool2d(x, 3, 1, 1), "avg_pool2d"),
    "adaptive": (lambda x: F.adaptive_avg_pool1d(x, 6), "adaptive_avg_pool1d"),
    "resized": (lambda x: F.interpolate(x, size=6, mode="linear"), "upsample_linear1d"),
    "group_norm": (lambda x: F.group_norm(x, 5), "group_norm"),
    "unfold": (lambda x: F.unfold(x.unsqueeze(1), 3, padding=1).unflatten(2, (5, -1)).mean(1), "im2col"),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x[:, None, :4], 2).flatten(2).unflatten(2, (2, -1)).mean(1),
                        "pixel_unshuffle"),
}  # fmt: skip
"""Operators for places, of an image for instance, that are given channels in the last dimension."""


@pytest.mark.parametrize("name", OVER_TOKENS)
def test_what_takes_channels_for_places_keeps_them(name: str) -> None:
    mix, operator = OVER_TOKENS[name]
    first = nn.Linear(8, 6)
    model = Net(lambda m, x: m.head(mix(m.first(x))), first=first, head=nn.LazyLinear(4))
    model(TOKENS.float())
    _, plan = assert_shrinks_exactly(prepared(model, "columns"), TOKENS)
    assert plan.groups[0].removed == 0 and f"{operator} over the channels" in plan.groups[0].reason


@pytest.mark.parametrize(
    ("mixing", "removed"),
    [(nn.Conv1d(5, 5, 1), 2), (nn.Conv1d(5, 5, 3, padding=1), 0), (nn.ConvTranspose1d(5, 5, 3, padding=1), 0)],
)
def test_a_convolution_over_tokens_passes_their_channels_on_where_it_sees_one_at_a_time(
    mixing: nn.Module, removed: int
) -> None:
    # As in a MLP-Mixer that mixes tokens by convolutions.
    model = Net(lambda m, x: m.head(m.mixing(m.first(x))), first=nn.Linear(8, 6), mixing=mixing, head=nn.Linear(6, 4))
    _, plan = assert_shrinks_exactly(prepared(model, "columns"), TOKENS)
    assert plan.groups[0].removed == removed
    assert ("over the channels" in plan.groups[0].reason) == (removed == 0)


HIDING: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "mul": (lambda x, hidden: x * hidden, "mul"),
    "masked_fill": (lambda x, hidden: x.masked_fill(hidden, 0.0), "masked_fill"),
    "where": (lambda x, hidden: torch.where(hidden, x, -1e9), "where"),
    "add": (lambda x, hidden: x + hidden, "add"),
}
"""What a mask among the inputs does to values, and the operator that it does it by."""


@pytest.mark.parametrize("name", HIDING)
def test_a_constant_that_an_input_hides_at_some_places_is_told(name: str) -> None:
    hide, operator = HIDING[name]
    model = half_constant(nn.Conv2d(5, 4, 3))
    model.what = lambda m, x: m.reader(hide(m.first(x).sigmoid(), x[:, :1] > 0))
    _, plan = assert_shrinks_exactly(model, image())
    group = plan.groups[0]
    assert (plan.removed, group.dead) == (0, 1)
    assert group.reason == f"1 constant, but what {operator} makes of that is no constant"


def test_a_constant_in_one_branch_of_a_sum_is_not_told() -> None:
    model = half_constant(nn.Conv2d(5, 4, 3))
    model.add_module("other", nn.Conv2d(3, 5, 1).double())
    model.what = lambda m, x: m.reader(m.first(x).sigmoid() + m.other(x))
    _, plan = assert_shrinks_exactly(model, image())
    assert (plan.removed, plan.groups[0].dead, plan.groups[0].reason) == (0, 0, "")


@pytest.mark.parametrize("reader", [nn.Conv2d(6, 5, 3), nn.Conv2d(6, 6, 3, groups=6), nn.ConvTranspose2d(6, 5, 2, 2)])
def test_convolutions_lose_channels_inside_of_vmap(reader: nn.Module) -> None:
    model = Net(
        lambda m, x: m.head(torch.vmap(lambda sample: m.reader(m.first(sample[None]).relu())[0])(x)),
        first=nn.Conv2d(3, 6, 1),
        reader=reader,
        head=nn.Conv2d(reader.out_channels, 4, 1),
    )
    _, plan = assert_shrinks_exactly(prepared(model, "columns"), image())
    assert plan.removed > 0 and plan.groups[0].name == "first"


def test_a_layer_stands_in_the_plan_where_all_that_it_owns_is_pinned() -> None:
    def pool(m: nn.Module, x: Tensor) -> Tensor:  # as NetVLAD does
        y = m.first(x)
        sums = m.second(y).softmax(1).flatten(2) @ y.flatten(2).mT
        return m.head(F.normalize(F.normalize(sums, dim=2).flatten(1)))

    model = prepared(Net(pool, first=nn.Conv2d(3, 6, 1), second=nn.Conv2d(6, 5, 1), head=nn.Linear(30, 4)), "rows")
    _, plan = assert_shrinks_exactly(model, image())
    reasons = {group.name: group.reason for group in plan.groups}
    assert reasons["first"] == "linalg_vector_norm over the channels"
    assert reasons["second"] == "softmax over the channels"


def test_layer_norm_keeps_its_channels_but_not_those_inside_a_block() -> None:
    _, plan = assert_shrinks_exactly(prepared(SMALL["tokens"](), "rows"), image())
    groups = {group.name: group for group in plan.groups}
    assert groups["embed"].removed == 0 and "layer_norm over the channels" in groups["embed"].reason
    assert groups["up"].removed == 4 and groups["up"].reason == ""


def test_a_size_written_in_the_forward_pass_keeps_its_channels() -> None:
    model = prepared(
        Net(lambda m, x: m.head(m.first(x).view(-1, 6 * 64)), first=nn.Conv2d(3, 6, 1), head=nn.Linear(384, 4))
    )
    with torch.no_grad():
        model.head.weight[:, :64] = 0
    _, plan = assert_shrinks_exactly(model, image())
    assert plan.removed == 0 and plan.groups[0].reason == "a size in the code of Net cannot follow"


def test_code_that_insists_on_a_number_of_channels_is_an_error_that_says_so() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = m.first(x)
        if x.shape[1] != 6:
            raise RuntimeError("six, please")
        return m.head(x)

    model = prepared(Net(forward, first=nn.Conv2d(3, 6, 1), head=nn.Conv2d(6, 4, 1)), "rows")
    with pytest.raises(ShrinkError, match=r"Net does not run .*six, please; a size written in its forward"):
        svd.shrink(model, image())


def test_a_network_that_casts_is_traced() -> None:
    model = prepared(
        Net(
            lambda m, x: m.head(m.first(x).float().to(x.dtype).relu()),
            first=nn.Conv2d(3, 6, 1),
            head=nn.Conv2d(6, 4, 1),
        ),
        "rows",
    ).float()
    _, plan = svd.shrink(model, image().float())
    assert plan.removed == 2


# Masks, and stored precision.


def test_masks_are_multiplied_in_first() -> None:
    model = prepared(SMALL["residual"]())
    dead = third(9)
    masks = {"a": {"weight": (~dead).float().view(9, 1, 1, 1).expand(9, 6, 1, 1), "bias": (~dead).float()}}
    small, plan = svd.shrink(model, image(), masks)
    masked = svd.bake_(copy.deepcopy(model), masks)
    assert plan.removed == 3 and relative_difference(masked, small, image()) < 1e-10 < relative_difference(
        model, small, image()
    )
    with pytest.raises(MaskError, match="'nowhere'"):
        svd.shrink(model, image(), {"nowhere": {"weight": torch.ones(1)}})


def test_a_variational_network_is_baked_first() -> None:
    model = svd.sparsify_(prepared(SMALL["pools"]()), granularity="both", example_inputs=image())
    with torch.no_grad():
        model[1].gate.mu[2] = 0
    small, plan = svd.shrink(model, image())
    assert plan.groups[0].removed == 1
    assert relative_difference(svd.bake_(copy.deepcopy(model)), small, image()) < 1e-10


def test_float32_networks_are_equal_to_rounding() -> None:
    model = prepared(SMALL["pools"](), "rows").float()
    small, plan = svd.shrink(model, image().float())
    result = svd.check(model, small, image().float())
    assert plan.removed > 0 and result.ok and not result.stored_in_64
    assert all(parameter.dtype == torch.float32 for parameter in small.parameters())


# Training goes on as if nothing had been removed.


def test_gradients_of_what_is_left_are_those_of_the_masked_network() -> None:
    model = prepared(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 9, 3), nn.ReLU(), nn.Flatten(), nn.Linear(324, 4)
        )
    )
    with torch.no_grad():
        for index in (0, 2):
            model[index].weight[third(len(model[index].weight))] = 0
            model[index].bias[third(len(model[index].weight))] = 0
    small, plan = svd.shrink(model, image())
    assert plan.removed == 5
    x = torch.randn(3, 3, 8, 8).double()
    for network in (model, small):
        network.train()(x).square().sum().backward()
    kept = {
        axis: sorted(set(range(model.get_parameter(axis[0]).shape[axis[1]])) - set(cut))
        for axis, cut in plan.cuts.items()
    }
    for name, parameter in model.named_parameters():
        expected = parameter.grad
        for dim in range(parameter.dim()):
            if (name, dim) in kept:
                expected = expected.index_select(dim, torch.tensor(kept[name, dim]))
        assert expected.abs().max() > 0
        torch.testing.assert_close(small.get_parameter(name).grad, expected, rtol=1e-10, atol=1e-12)


def test_frozen_parameters_stay_frozen() -> None:
    model = prepared(SMALL["residual"](), "rows")
    for parameter in model.a.parameters():
        parameter.requires_grad_(False)
    small, _ = svd.shrink(model, image())
    assert {n for n, p in small.named_parameters() if not p.requires_grad} == {"a.weight", "a.bias"}


class UnusedSum(nn.Module):
    """As a WaveNet, whose last block adds to a residual that nobody reads any more."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.reader, self.last = nn.Conv1d(2, 6, 1), nn.Conv1d(6, 3, 1), nn.Conv1d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        outputs: Tensor = self.reader(x.relu())
        x = x + self.last(x.tanh())
        return outputs


def test_both_sides_of_a_sum_that_nobody_uses_lose_the_same_channels() -> None:
    model = prepared(UnusedSum())
    with torch.no_grad():
        model.first.weight[:3] = 0
    small, plan = assert_shrinks_exactly(model, torch.randn(2, 2, 9).double())
    assert plan.removed == 3 and small.last.out_channels == 3


class ChangesShapes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.reader, self.last = nn.Linear(4, 8), nn.Conv1d(8, 6, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).sigmoid()
        y.unsqueeze_(-1)
        y = self.reader(y).relu()
        y.squeeze_(-1)
        y.t_()
        outputs: Tensor = self.last(y.t())
        return outputs


class MapsOverTheBatch(ChangesShapes):
    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = torch.vmap(lambda row: self.first(row).sigmoid())(x)
        outputs: Tensor = self.last(self.reader(rows.unsqueeze(-1)).squeeze(-1))
        return outputs


@pytest.mark.parametrize("kind", [ChangesShapes, MapsOverTheBatch])
def test_shapes_that_change_in_place(kind: type[ChangesShapes]) -> None:
    model = prepared(kind())
    with torch.no_grad():
        model.first.weight[:4] = 0
    _, plan = assert_shrinks_exactly(model, torch.randn(2, 4).double())
    assert plan.removed == 4


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.spectral = nn.Linear(4, 8), nn.Linear(8, 8, dtype=torch.cfloat)
        self.hidden, self.last = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.complex(self.first(x), self.first(x).tanh())
        z = 1j * self.spectral(z) + 2j
        z = z.sub(z.conj(), alpha=0.5j)
        outputs: Tensor = self.last(self.hidden(z.imag).relu())
        return outputs


def test_complex_parameters_and_factors() -> None:
    model = Complex()
    with torch.no_grad():
        model.hidden.weight[:3] = 0
    x = torch.randn(3, 4)
    small, plan = svd.shrink(model, x)
    assert plan.removed == 3 and small.spectral.weight.is_complex()
    with torch.no_grad():
        small.spectral.weight.imag[0, 0] += 1
    assert not svd.check(model, small, x).ok  # imaginary parts are compared, too


def test_a_compiled_network_is_not_compiled_again_for_each_size() -> None:
    torch._dynamo.reset()
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        network[0].weight[:4] = 0
    model: Any = torch.compile(network, backend="eager")
    x = torch.randn(3, 4)
    torch._dynamo.utils.counters.clear()
    small, plan = svd.shrink(model, x)
    assert plan.removed == 4 and not torch._dynamo.utils.counters["frames"]
    torch.testing.assert_close(small(x), model(x))
