"""Shrunk equals masked, at every size, for operators between two convolutions; deformed and weightless ones too.

Of every six channels the first is unread, the third is zero and the last is a constant.  The number beside an operator
says how many of them leave: a constant that an operator mixes with zeros, or makes depend on the size, stays.
"""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.shrinking import apply_plan_

Operation = Callable[[Tensor], Tensor]
CONSTANT = float(torch.tensor(0.4))
SHAPES = ((2, 3, 8, 8), (1, 3, 12, 12), (3, 3, 10, 16))


class Between(nn.Module):
    """An operator between two convolutions."""

    def __init__(self, operator: Operation, written: int = 6, read: int = 6) -> None:
        super().__init__()
        self.first, self.last, self.operator = nn.Conv2d(3, written, 1), nn.Conv2d(read, 2, 1), operator
        with torch.no_grad():
            for channel, constant in ((2, 0.0), (5, CONSTANT)):
                self.first.weight[channel::6] = 0
                self.first.bias[channel::6] = constant
            self.last.weight[:, ::6] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operator(self.first(x)))


def boxes(x: Tensor) -> Tensor:
    return torch.tensor([[0, 0.0, 0.0, 4.0, 4.0], [0, 1.0, 2.0, 20.0, 5.0]], dtype=x.dtype, device=x.device)


def places(x: Tensor) -> Tensor:
    return torch.linspace(-1.2, 1.2, 32, dtype=x.dtype, device=x.device).view(1, 4, 4, 2).expand(len(x), -1, -1, -1)


def of(x: Tensor, make: Callable[..., Tensor], *arguments: object) -> Tensor:
    return make(*arguments, dtype=x.dtype, device=x.device)


class Split(nn.Module):
    """Pieces of a width that the module holds, put together again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(x.split(self.width, 1), 1)


OPERATORS: dict[str, tuple[int, Operation]] = {
    "split into one piece": (3, Split(8)),
    "split into unequal pieces": (0, Split(4)),
    "split into equal pieces": (1, Split(3)),
    "narrow to a number": (0, lambda x: x.narrow(1, 0, 6)),
    "narrow to all": (3, lambda x: x.narrow(1, 0, x.shape[1])),
    "view_as, channels": (3, lambda x: x.flatten(2).view_as(x.sigmoid())),
    "view_as, no channels": (0, lambda x: x.flatten(2).view_as(of(x, torch.rand, len(x), 6, *x.shape[2:]))),
    "compare and multiply": (3, lambda x: x * (x >= 0)),
    "compare and choose": (3, lambda x: torch.where(x > 0.1, x.exp(), 0.2 * x)),
    "flags": (1, lambda x: x.masked_fill((x > 0) & (x < 1), 0.5)),
    "any": (2, lambda x: x * (x > 0).any(-1, keepdim=True)),
    "zeros_like": (3, lambda x: torch.maximum(x, torch.zeros_like(x))),
    "full_like": (3, lambda x: torch.maximum(x, torch.full_like(x, 0.1))),
    "new_zeros": (3, lambda x: x + x.new_zeros(1) + x.new_ones(x.shape)),
    "zeros": (3, lambda x: x + of(x, torch.zeros, x.shape[1], 1, 1)),
    "full": (3, lambda x: x * of(x, torch.full, (x.shape[1], 1, 1), 0.5)),
    "fill": (3, lambda x: x * torch.empty_like(x).fill_(0.5)),
    "copy": (3, lambda x: of(x, torch.empty, x.shape).copy_(x)),
    "adaptive_max_pool1d": (3, lambda x: F.adaptive_max_pool1d(x.flatten(2), 4)[..., None]),
    "adaptive_max_pool3d": (3, lambda x: F.adaptive_max_pool3d(x[:, :, None], (1, 2, 2))[:, :, 0]),
    "max_pool2d_with_indices": (3, lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True)[0]),
    "max_unpool2d": (2, lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)),
    "grid_sample, zeros": (2, lambda x: F.grid_sample(x, places(x), align_corners=False)),
    "grid_sample, border": (3, lambda x: F.grid_sample(x, places(x), padding_mode="border", align_corners=False)),
    "grid_sample, bicubic": (
        3, lambda x: F.grid_sample(x, places(x), "bicubic", padding_mode="reflection", align_corners=True)),
    "roi_align": (2, lambda x: torchvision.ops.roi_align(x, boxes(x), 2)),
    "roi_pool": (2, lambda x: torchvision.ops.roi_pool(x, boxes(x), 2)),
    "std": (3, lambda x: x - x.std((2, 3), keepdim=True)),
    "var_mean": (3, lambda x: x - torch.var_mean(x, (2, 3), keepdim=True)[1]),
    "nearest-exact": (3, lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact")),
    "antialias": (3, lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)),
    "lerp": (3, lambda x: torch.lerp(x, x * 2, x.sigmoid())),
    "addcmul": (3, lambda x: torch.addcmul(x, x, x.sigmoid(), value=0.3)),
    "addcdiv": (3, lambda x: torch.addcdiv(x, x, x.exp(), value=0.3)),
    "cumsum": (2, lambda x: x.cumsum(-1)),
    "cumprod": (1, lambda x: x.sigmoid().cumprod(-1)),
    "topk": (3, lambda x: x.flatten(2).topk(16, -1)[0].view(len(x), -1, 4, 4)),
    "sort": (3, lambda x: x.sort(-1)[0]),
    "max": (3, lambda x: x.max(-1, keepdim=True)[0]),
    "gather": (3, lambda x: x.gather(3, x.argsort(3))),
    "gather some": (3, lambda x: x.flatten(2).gather(2, x.flatten(2).topk(4, 2)[1])[..., None]),
    "tril": (2, lambda x: x.tril()),
    "prod": (2, lambda x: x.prod(-1, keepdim=True)),
    "spectrum": (2, lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:])),
    "filter": (2, lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * of(x, torch.ones, 1), s=x.shape[-2:])),
    "instance norm": (3, nn.InstanceNorm2d(6)),
    "group norm of one": (3, nn.GroupNorm(6, 6, affine=False)),
    "group norm of one, affine": (3, nn.GroupNorm(6, 6)),
    "batch norm of its own": (3, nn.BatchNorm2d(6, affine=False, track_running_stats=False)),
    "remainder": (2, lambda x: x % 0.3),
    "atan2": (3, lambda x: torch.atan2(x, x + 5)),
    "einsum": (2, lambda x: torch.einsum("bchw,bchv->bcwv", x, x)),
}  # fmt: skip


def assert_exact(model: nn.Module, removed: int, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> nn.Module:
    """Shrink a network, and compare it with itself before at several sizes."""
    model = model.double().eval()
    plan = svd.make_plan(model, torch.randn(shapes[0], dtype=torch.float64))
    assert plan.removed == removed, plan
    small = apply_plan_(copy.deepcopy(model), plan)
    with torch.no_grad():
        for shape in shapes:
            x = 3 * torch.randn(shape, dtype=torch.float64)
            expected = model(x)
            torch.testing.assert_close(small(x), expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
    return small


@pytest.mark.parametrize("name", OPERATORS)
def test_what_leaves_before_an_operator_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    removed, operator = OPERATORS[name]
    assert_exact(Between(operator), removed)


def test_the_halves_of_a_gate_leave_together() -> None:
    torch.manual_seed(0)
    small = assert_exact(Between(lambda x: F.glu(x, 1), written=12), 3)
    assert small.first.out_channels == 6


def test_a_position_leaves_every_group_of_a_shuffle() -> None:
    torch.manual_seed(0)
    small = assert_exact(Between(nn.ChannelShuffle(2), written=12, read=12), 2)
    assert small.first.out_channels == 8
    assert_exact(Between(nn.ChannelShuffle(3)), 0)  # no position is dead in all three groups


@pytest.mark.parametrize(
    ("pad", "value", "removed"),
    [
        ((0, 0, 0, 0, 0, 2), 0.0, 3),
        ((0, 0, 0, 0, 0, 2), 0.7, 3),
        ((0, 0, 0, 0, 1, 2), 0.7, 2),  # of the unread, one is added by the padding and one is the constant
        ((1, 1, 0, 0, 0, 2), 0.0, 2),  # at the border the constant is none, and the zero is
        ((1, 1, 0, 0, 0, 2), CONSTANT, 2),  # and here the other way around
    ],
)
def test_channels_leave_beside_those_that_padding_adds(pad: tuple[int, ...], value: float, removed: int) -> None:
    torch.manual_seed(0)
    assert_exact(Between(lambda x: F.pad(x, pad, value=value), read=6 + sum(pad[4:])), removed)


def test_a_norm_without_weights_is_told_its_number_of_channels() -> None:
    norms = nn.InstanceNorm2d(6), nn.GroupNorm(6, 6, affine=False), nn.GroupNorm(6, 6)
    small = [assert_exact(Between(norm), 3).operator for norm in norms]
    assert small[0].num_features == small[1].num_groups == small[1].num_channels == small[2].num_channels == 3


class Deformed(nn.Module):
    """A deformed convolution, with its offsets from the image; of its inputs three are constants."""

    def __init__(self, has_mask: bool, groups: int = 1) -> None:
        super().__init__()
        self.first, self.offset = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 18, 3, padding=1)
        self.mask = nn.Conv2d(3, 9, 3, padding=1) if has_mask else None
        self.deformed = torchvision.ops.DeformConv2d(6, 6, 3, padding=1, groups=groups, bias=not has_mask)
        self.last = nn.Conv2d(6, 2, 1)
        with torch.no_grad():
            self.first.weight[::2] = 0
            self.first.bias[::2] = torch.tensor([-1, 0.3, 0.7])
            self.deformed.weight[1] = 0
            self.last.weight[:, 3] = 0

    def forward(self, x: Tensor) -> Tensor:
        mask = None if self.mask is None else self.mask(x).sigmoid()
        y = self.deformed(self.first(x).relu(), self.offset(x), mask)
        return self.last(y.relu())


@pytest.mark.parametrize("has_mask", [False, True])
def test_a_deformed_convolution_reads_channels_with_its_weight(has_mask: bool) -> None:
    torch.manual_seed(0)
    small = assert_exact(Deformed(has_mask), 4)
    # of the two constants that a padded border keeps, one carries the other
    assert small.deformed.weight.shape[:2] == (4, 4)


def test_a_deformed_convolution_with_groups_keeps_its_channels() -> None:
    plan = svd.make_plan(Deformed(False, groups=2).eval(), torch.zeros(1, 3, 8, 8))
    reasons = {group.name: group.reason for group in plan.groups}
    assert reasons["first"] == reasons["deformed"] == "deform_conv2d with several groups, of channels or of offsets"


class Scaled(nn.Module):
    """A product with a bare weight, and factors on both terms."""

    def __init__(self, batched: bool, alpha: float, beta: float) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(10, 3)
        self.weight, self.bias = nn.Parameter(torch.randn(12, 10)), nn.Parameter(torch.randn(10))
        self.batched, self.alpha, self.beta = batched, alpha, beta
        with torch.no_grad():
            self.weight[:, ::2] = self.bias[::2] = self.weight[3] = 0
            self.first.weight[5], self.first.bias[5] = 0, -1

    def forward(self, x: Tensor) -> Tensor:
        x, factors = self.first(x).relu(), {"alpha": self.alpha, "beta": self.beta}
        if self.batched:
            weight = self.weight.expand(len(x), -1, -1)
            return self.last(torch.baddbmm(self.bias, x[:, None], weight, **factors)[:, 0].relu())
        return self.last(torch.addmm(self.bias, x, self.weight, **factors).relu())


@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (2, 0.5), (0.3, 0)])
@pytest.mark.parametrize("batched", [False, True])
def test_a_sum_of_a_product_may_have_factors(batched: bool, alpha: float, beta: float) -> None:
    torch.manual_seed(0)
    assert_exact(Scaled(batched, alpha, beta), 7, ((4, 6), (1, 6), (3, 6)))


def add_out(x: Tensor, zeros: Tensor) -> None:
    torch.add(x, 1, out=zeros)


def largest_out(x: Tensor, zeros: Tensor) -> None:
    torch.amax(x, -1, keepdim=True, out=zeros[..., :1])


def concatenate_out(x: Tensor, zeros: Tensor) -> None:
    torch.cat([x[:, :3], x[:, 3:]], 1, out=zeros)


def add_each(x: Tensor, zeros: Tensor) -> None:
    torch._foreach_add_([zeros], [x])


class Writing(nn.Module):
    """Writes to zeros, and goes on with a view that shows the same memory."""

    def __init__(self, write: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.write, self.middle = write, nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros_like(x)
        view = zeros.view(x.shape)
        self.write(x, zeros)
        return self.middle(view)


@pytest.mark.parametrize("write", [add_out, largest_out, concatenate_out, add_each])
def test_what_an_operator_writes_to_is_no_constant_under_any_name(write: Callable[[Tensor, Tensor], None]) -> None:
    torch.manual_seed(0)
    model = Between(Writing(write))
    nn.init.ones_(model.last.weight)
    assert_exact(model, 0)
