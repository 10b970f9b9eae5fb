"""The abstract value of every operator: what the network really computes where a channel is constant, NaN elsewhere.

Every row feeds an operator four channels: one that depends on the input and the constants 0.7, 0 and -1.3.  An entry of
the result is really constant when it is the same for many random inputs.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import BuiltinFunctionType

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from nni_sparsevd.graph import NotCovered
from nni_sparsevd.graph.operators import LIVE, OPERATORS, NoRule
from nni_sparsevd.graph.operators.elementwise import same_computation
from nni_sparsevd.graph.tracing import trace
from nni_sparsevd.shrinking.constants import find_constants

aten = torch.ops.aten
CARRIED = (float("nan"), 0.7, 0.0, -1.3)
DRAWS = 40
COMPARISONS = (torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge)
BOXES = torch.tensor([[0, 0.0, 0.0, 4.0, 4.0], [1, 1.0, 2.0, 9.0, 9.0]], dtype=torch.float64)
"""The second one reaches out of the image."""


class Fed(nn.Module):
    """`what` on four channels of which only the first depends on the input; an image of 6 x 6."""

    def __init__(self, what: Callable[..., object], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([1.0, 0, 0, 0]).view(4, 1, 1))
        self.register_buffer("shift", torch.tensor([0.0, *CARRIED[1:]]).view(4, 1, 1))
        self.what, self.layer = what, layer

    def forward(self, x: Tensor) -> object:
        x = x * self.scale + self.shift
        return self.what(x) if self.layer is None else self.what(x, self.layer)


@cache
def measure(model: nn.Module) -> tuple[Tensor, Tensor, set[object]]:
    """The abstract value of the output, what the network computes (NaN where it varies), and the operators used."""
    model = model.double().eval()
    torch.manual_seed(0)
    draws = [3 * torch.randn(2, 4, 6, 6).double() for _ in range(DRAWS)]
    recorded = trace(model, draws[0])
    states = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        values = find_constants(recorded, {name: value.double() for name, value in states.items()}).values
        outputs = torch.stack([model(x) for x in draws])
    (result,) = next(node for node in recorded.graph.nodes if node.op == "output").args[0]
    abstract = values[result].expand(outputs.shape[1:])
    # a constant may be rounded differently from input to input; what depends on the input differs by far more
    constant = (outputs.amax(0) - outputs.amin(0)) < 1e-12
    real = torch.where(constant, outputs[0], LIVE)
    return abstract, real, {node.target for node in recorded.graph.nodes if node.op == "call_function"}


def layer(made: nn.Module, zeros: float = 0.5) -> nn.Module:
    """With parameters of which some are zero, and running statistics that are not the initial ones."""
    generator = torch.Generator().manual_seed(1)
    for tensor in [*made.parameters(), *made.buffers()]:
        if tensor.is_floating_point():
            drawn = torch.rand(tensor.shape, generator=generator) + 0.5
            tensor.data = torch.where(torch.rand(tensor.shape, generator=generator) < zeros, 0.0, drawn)
    return made


def outputs_reading(channels: tuple[int, ...], made: nn.Module) -> nn.Module:
    """Output o of a layer of four outputs reads input `channels[o]` only."""
    made = layer(made, 0.0)
    with torch.no_grad():
        for output, channel in enumerate(channels):
            kept = made.weight[output, channel].clone()
            made.weight[output] = 0
            made.weight[output, channel] = kept
    return made


def outputs_alike(made: nn.Embedding, columns: tuple[int, ...]) -> nn.Module:
    """A table whose words agree in these columns."""
    with torch.no_grad():
        made.weight[:, list(columns)] = made.weight[:1, list(columns)]
    return made


def norm(made: nn.Module) -> nn.Module:
    """A norm that ends the first channel with a scale of 0."""
    made = layer(made, 0.0)
    with torch.no_grad():
        if made.weight is not None:
            made.weight[0] = 0
    return made


def as_complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(torch.stack([x, x], -1))


# Exact rows: NaN exactly where the network's output depends on the input.
EXACT: dict[str, Fed] = {
    "relu": Fed(F.relu),
    "relu6": Fed(F.relu6),
    "gelu": Fed(F.gelu),
    "gelu_tanh": Fed(lambda x: F.gelu(x, approximate="tanh")),
    "silu": Fed(F.silu),
    "sigmoid": Fed(torch.sigmoid),
    "tanh": Fed(torch.tanh),
    "hardswish": Fed(F.hardswish),
    "hardsigmoid": Fed(F.hardsigmoid),
    "hardtanh": Fed(lambda x: F.hardtanh(x, -0.5, 0.4)),
    "elu": Fed(lambda x: F.elu(x, 0.3)),
    "selu": Fed(F.selu),
    "celu": Fed(lambda x: F.celu(x, 0.3)),
    "leaky_relu": Fed(lambda x: F.leaky_relu(x, 0.2)),
    "mish": Fed(F.mish),
    "softplus": Fed(F.softplus),
    "neg": Fed(torch.neg),
    "exp": Fed(torch.exp),
    "abs": Fed(torch.abs),
    "sqrt": Fed(lambda x: torch.sqrt(torch.square(x) + 1)),
    "rsqrt": Fed(lambda x: torch.rsqrt(torch.square(x) + 1)),
    "erf": Fed(torch.erf),
    "clamp": Fed(lambda x: x.clamp(-0.5, 0.4)),
    "clamp_tensor": Fed(lambda x: x.clamp(torch.tensor(-0.5), torch.tensor(0.4))),
    "clamp_min": Fed(lambda x: aten.clamp_min.default(x, -0.5)),
    "clamp_max": Fed(lambda x: aten.clamp_max.default(x, 0.4)),
    "pow": Fed(lambda x: x**2),
    "pow_3": Fed(lambda x: x**3),
    "add": Fed(lambda x: x + 0.3),
    "add_alpha": Fed(lambda x: torch.add(x, F.relu(x), alpha=2)),
    "sub": Fed(lambda x: x - F.relu(x)),
    "sub_alpha": Fed(lambda x: torch.sub(x, 1.5, alpha=3)),
    "maximum": Fed(lambda x: torch.maximum(x, torch.sigmoid(x))),
    "minimum": Fed(lambda x: torch.minimum(x, torch.sigmoid(x))),
    "mul": Fed(lambda x: x * torch.sigmoid(x)),
    "mul_number": Fed(lambda x: 0.5 * x),
    "mul_across": Fed(lambda x: x * x[:, :1]),  # zero times what depends on the input is zero
    "mul_zero": Fed(lambda x: x * 0.0),
    "div": Fed(lambda x: x / (2 + torch.sigmoid(x))),
    "div_number": Fed(lambda x: x / 3),
    "div_across": Fed(lambda x: x / (2 + x[:, :1].sigmoid())),
    "clone": Fed(lambda x: x.clone()),
    "alias": Fed(lambda x: aten.alias.default(x)),
    "detach": Fed(lambda x: x.detach()),
    "contiguous": Fed(lambda x: aten.contiguous.default(x)),
    "dropout": Fed(lambda x, m: m(x), nn.Dropout()),
    "feature_dropout": Fed(lambda x, m: m(x), nn.Dropout2d()),
    "to": Fed(lambda x: x.to(torch.float64)),
    "_to_copy": Fed(lambda x: aten._to_copy.default(x)),
    "max_pool2d": Fed(lambda x: F.max_pool2d(x, 3, 2, 1)),
    "max_pool1d": Fed(lambda x: F.max_pool1d(x.flatten(2), 3, 2, 1)),
    "max_pool3d": Fed(lambda x: F.max_pool3d(x.unsqueeze(-1), (3, 3, 1), (2, 2, 1))),
    "avg_pool2d": Fed(lambda x: F.avg_pool2d(x, 2)),
    "avg_pool2d_ceil": Fed(lambda x: F.avg_pool2d(x, 4, 3, ceil_mode=True)),
    "avg_pool2d_uncounted": Fed(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    "avg_pool1d": Fed(lambda x: F.avg_pool1d(x.flatten(2), 3)),
    "avg_pool3d": Fed(lambda x: F.avg_pool3d(x.unsqueeze(-1), (2, 2, 1))),
    "adaptive_avg_pool2d": Fed(lambda x: F.adaptive_avg_pool2d(x, 4)),
    "adaptive_avg_pool1d": Fed(lambda x: F.adaptive_avg_pool1d(x.flatten(2), 5)),
    "adaptive_avg_pool3d": Fed(lambda x: F.adaptive_avg_pool3d(x.unsqueeze(-1), (3, 3, 1))),
    "upsample_nearest2d": Fed(lambda x: F.interpolate(x, scale_factor=2)),
    "upsample_bilinear2d": Fed(lambda x: F.interpolate(x, size=(9, 7), mode="bilinear")),
    "view": Fed(lambda x: x.view(2, 4, 36)),
    "view_flat": Fed(lambda x: x.flatten(1)),  # constants of several channels along one axis
    "view_split": Fed(lambda x: x.view(2, 2, 2, 36)),
    "reshape": Fed(lambda x: aten.reshape.default(x, [2, 144])),
    "_unsafe_view": Fed(lambda x: aten._unsafe_view.default(x, [2, 144])),
    "permute": Fed(lambda x: x.permute(2, 1, 0, 3)),
    "transpose": Fed(lambda x: x.transpose(1, 3)),
    "unsqueeze": Fed(lambda x: x.unsqueeze(1)),
    "squeeze": Fed(lambda x: x.mean((2, 3), keepdim=True).squeeze(3)),
    "squeeze_dims": Fed(lambda x: x.mean((2, 3), keepdim=True).squeeze((2, 3))),
    "expand": Fed(lambda x: x[:, :, :1].expand(2, 4, 5, 6)),
    "cat": Fed(lambda x: torch.cat([x, torch.sigmoid(x)], 1)),
    "cat_space": Fed(lambda x: torch.cat([x, torch.sigmoid(x)], 2)),
    "split": Fed(lambda x: x.split(2, 1)[1] - x.split(2, 1)[0]),
    "split_with_sizes": Fed(lambda x: x.split([1, 3], 1)[1]),
    "chunk": Fed(lambda x: x.chunk(2, 1)[0]),
    "unsafe_split": Fed(lambda x: aten.unsafe_split.Tensor(x, 2, 1)[0] + aten.unsafe_split_with_sizes(x, [2, 2], 1)[1]),
    "unbind": Fed(lambda x: x.unbind(1)[3]),
    "select": Fed(lambda x: x[:, 1]),
    "slice": Fed(lambda x: x[:, 1:3]),
    "roll": Fed(lambda x: x.roll(1, 1)),
    "roll_all": Fed(lambda x: x.roll(1)),
    "log": Fed(lambda x: torch.log(torch.square(x) + 1)),
    "sin": Fed(torch.sin),
    "cos": Fed(torch.cos),
    "reciprocal": Fed(lambda x: torch.reciprocal(torch.square(x) + 1)),
    "to_device": Fed(lambda x: aten.to.device(x, torch.device("cpu"), torch.float64)),
    "to_layout": Fed(lambda x: aten.to.dtype_layout(x, dtype=torch.float64)),
    "type_as": Fed(lambda x: x.type_as(x)),
    "upsample_nearest1d": Fed(lambda x: F.interpolate(x.flatten(2), scale_factor=2)),
    "upsample_nearest3d": Fed(lambda x: F.interpolate(x.unsqueeze(-1), scale_factor=(2, 2, 1))),
    "upsample_linear1d": Fed(lambda x: F.interpolate(x.flatten(2), size=17, mode="linear")),
    "upsample_trilinear3d": Fed(lambda x: F.interpolate(x.unsqueeze(-1), size=(9, 7, 1), mode="trilinear")),
    "reshape_as": Fed(lambda x: x.reshape_as(x.flatten(2))),
    "view_as": Fed(lambda x: aten.view_as.default(x, x.flatten(2))),
    "unflatten": Fed(lambda x: x.unflatten(1, (2, 2))),
    "t": Fed(lambda x: x[0, :, 0].t()),
    "mT": Fed(lambda x: x.mT),
    "movedim": Fed(lambda x: torch.movedim(x, 1, 3)),
    "flip": Fed(lambda x: x.flip(1)),
    "expand_as": Fed(lambda x: x[:, :, :1].expand_as(x)),
    "narrow": Fed(lambda x: x.narrow(1, 1, 2)),
    "amax": Fed(lambda x: x.amax((2, 3))),
    "amin": Fed(lambda x: x.amin((2, 3))),
    "stack": Fed(lambda x: torch.stack([x, torch.sigmoid(x)], 1)),
    "index": Fed(lambda x: x[:, torch.tensor([[2, 0], [1, 1]])]),
    "unsafe_index": Fed(lambda x: aten._unsafe_index.Tensor(x, [None, torch.tensor([2, 0])])),
    "matmul": Fed(lambda x: x[:, 1:2].flatten(2) @ x[:, 1:3].flatten(2).mT),  # a constant times constants
    "matmul_zero": Fed(lambda x: x.flatten(2)[:, :, :1] @ x.flatten(2)[:, 2:3]),  # anything times zero
    "bmm": Fed(lambda x: torch.bmm(x.flatten(2).mT, x.flatten(2)[:, :, :2] * 0)),
    "softmax": Fed(lambda x: x.softmax(3)),
    "log_softmax": Fed(lambda x: x.log_softmax(-1)),
    "softmax_of_a_layer_below": Fed(lambda x: aten._softmax.default(x, 2, False)),
    "attention": Fed(lambda x: F.scaled_dot_product_attention(*3 * [x.flatten(2).mT])),
    "instance_norm": Fed(lambda x: F.instance_norm(x)),
    "instance_norm_affine": Fed(lambda x, m: m(x), norm(nn.InstanceNorm2d(4, affine=True))),
    "instance_norm_running": Fed(lambda x, m: m(x), layer(nn.InstanceNorm2d(4, track_running_stats=True), 0.0)),
    "batch_norm_of_a_weight": Fed(
        lambda x, m: F.batch_norm(m.weight[None], None, None, training=True) + 0 * x[:1, :, :1, 0],
        layer(nn.Conv1d(4, 4, 1), 0.0),
    ),
    "pad_nothing": Fed(lambda x: F.pad(x, (0, 0, 0, 0))),
    "pad_reflecting": Fed(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "a_table": Fed(lambda x: x + torch.arange(6).cumsum(0)),  # no rule, but nothing in it depends on the input
    "mean": Fed(lambda x: x.mean((2, 3))),
    "mean_keepdim": Fed(lambda x: x.mean((2, 3), keepdim=True)),
    "sum": Fed(lambda x: x.sum((2, 3))),
    "conv2d": Fed(lambda x, m: m(x), outputs_reading((0, 1, 2, 3), nn.Conv2d(4, 4, 3))),
    "conv2d_all": Fed(lambda x, m: m(x), layer(nn.Conv2d(4, 8, 1))),
    "conv2d_bias": Fed(lambda x, m: m(x), layer(nn.Conv2d(4, 8, 1, bias=False))),
    "conv2d_depthwise": Fed(lambda x, m: m(x), layer(nn.Conv2d(4, 8, 3, groups=4), 0.2)),
    "conv2d_grouped": Fed(lambda x, m: m(x), layer(nn.Conv2d(4, 8, 3, groups=2), 0.9)),
    "conv2d_valid": Fed(lambda x, m: m(x), layer(nn.Conv2d(4, 8, 3, padding="valid"), 0.9)),
    "conv1d": Fed(lambda x, m: m(x.flatten(2)), outputs_reading((1, 2, 3, 0), nn.Conv1d(4, 4, 3))),
    "conv1d_valid": Fed(lambda x, m: m(x.flatten(2)), layer(nn.Conv1d(4, 4, 3, padding="valid"), 0.9)),
    "conv3d": Fed(lambda x, m: m(x.unsqueeze(-1)), outputs_reading((1, 2, 3, 0), nn.Conv3d(4, 4, 1))),
    "conv3d_valid": Fed(lambda x, m: m(x.unsqueeze(-1)), layer(nn.Conv3d(4, 4, 1, padding="valid"))),
    "linear": Fed(lambda x, m: m(x.mean((2, 3))), layer(nn.Linear(4, 8), 0.7)),
    "linear_tokens": Fed(lambda x, m: m(x.flatten(2).mT), layer(nn.Linear(4, 8, bias=False), 0.7)),
    "batch_norm": Fed(lambda x, m: m(x), norm(nn.BatchNorm2d(4))),
    "batch_norm_plain": Fed(lambda x, m: m(x), layer(nn.BatchNorm2d(4, affine=False), 0.0)),
    "prelu": Fed(lambda x, m: m(x), layer(nn.PReLU(4), 0.0)),
    "prelu_without_slope": Fed(lambda x, m: m(x), layer(nn.PReLU(4), 1.0)),
    "prelu_one": Fed(lambda x, m: m(x), layer(nn.PReLU(), 0.0)),
    "prelu_kernel": Fed(lambda x, m: aten._prelu_kernel.default(x, m.weight.view(1, 4, 1, 1)), layer(nn.PReLU(4), 0.0)),
    "log_sigmoid": Fed(F.logsigmoid),
    "softsign": Fed(F.softsign),
    "softshrink": Fed(lambda x: F.softshrink(x, 0.4)),
    "hardshrink": Fed(lambda x: F.hardshrink(x, 0.9)),
    "threshold": Fed(lambda x: F.threshold(x, 0.2, 7.0)),
    "logit": Fed(lambda x: torch.logit(torch.sigmoid(x))),
    "nan_to_num": Fed(torch.nan_to_num),
    "round": Fed(torch.round),
    "floor": Fed(lambda x: torch.floor(x + 0.2)),
    "sign": Fed(lambda x: torch.sign(x + 0.1)),
    "div_floor": Fed(lambda x: torch.div(x + 0.3, torch.sigmoid(x) + 1, rounding_mode="floor")),
    "rsub": Fed(lambda x: aten.rsub.Scalar(x, 0.4, 3)),
    "rsub_tensor": Fed(lambda x: aten.rsub.Tensor(x, torch.sigmoid(x))),
    "pow_of_a_number": Fed(lambda x: 2.5**x),
    "pow_tensor": Fed(lambda x: torch.sigmoid(x) ** x),
    "clamp_min_tensor": Fed(lambda x: aten.clamp_min.Tensor(x, torch.sigmoid(x))),
    "clamp_max_tensor": Fed(lambda x: aten.clamp_max.Tensor(x, torch.sigmoid(x))),
    "where": Fed(lambda x: torch.where(torch.tensor([[[True]], [[False]], [[True]], [[False]]]), x, x.sigmoid())),
    "masked_fill": Fed(lambda x: x.masked_fill(torch.tensor([[[False]], [[True]], [[False]], [[True]]]), 9.0)),
    "masked_fill_tensor": Fed(lambda x: x.masked_fill(torch.tensor([[[True]], [[False]]] * 2), torch.tensor(9.0))),
    "lift_fresh_copy": Fed(lambda x: aten.lift_fresh_copy.default(x)),
    "lift_fresh": Fed(lambda x: aten.lift_fresh.default(x)),
    "alpha_dropout": Fed(lambda x, m: m(x), nn.AlphaDropout()),
    "to_other": Fed(lambda x: aten.to.other(x, torch.ones(1, dtype=torch.float64))),
    "bicubic": Fed(lambda x: F.interpolate(x, size=(9, 7), mode="bicubic")),
    "adaptive_max_pool2d": Fed(lambda x: F.adaptive_max_pool2d(x, 4)),
    "constant_pad_nothing": Fed(lambda x: aten.constant_pad_nd.default(x, [0, 0, 0, 0])),
    "embedding": Fed(lambda x, m: m((x[:, 0, 0] > 0).long()), outputs_alike(nn.Embedding(2, 5), (1, 3))),
    "pixel_shuffle": Fed(lambda x: F.pixel_shuffle(x.repeat_interleave(4, 1), 2)),
    "pixel_unshuffle": Fed(lambda x: F.pixel_unshuffle(x, 2)),
    "im2col": Fed(lambda x: F.unfold(x, 3)),
    "unfold": Fed(lambda x: x.unfold(2, 3, 2)),
    "numpy_T": Fed(lambda x: x[:, :, 0, 0].T),
    "repeat": Fed(lambda x: x.repeat(2, 3, 1, 2)),
    "repeat_more_axes": Fed(lambda x: x.repeat(2, 1, 2, 1, 1)),
    "tile": Fed(lambda x: torch.tile(x, (3, 1, 2))),
    "repeat_interleave": Fed(lambda x: x.repeat_interleave(3, 1)),
    "index_select": Fed(lambda x: x.index_select(1, torch.tensor([3, 3, 0]))),
    "logsumexp": Fed(lambda x: torch.logsumexp(x, (2, 3))),
    "var": Fed(lambda x: torch.var(x, (2, 3))),
    "sum_as_whole_numbers": Fed(lambda x: x[:, 1:].sum(3, dtype=torch.int64).double()),
    "cumsum_as_whole_numbers": Fed(lambda x: x[:, 1:].cumsum(1, dtype=torch.int64).double()),
    "prod_as_whole_numbers": Fed(lambda x: (x[:, 1:] * 3).prod(3, dtype=torch.int64).double()),
    "sum_of_flags": Fed(lambda x: ((x > 0.1) + (x > 0.2)).double()),
    "flags_inverted": Fed(lambda x: (~(x > 0.1)[:, 1:] & ((x > -2) * (x < 2))[:, 1:]).double()),
    "vector_norm": Fed(lambda x: torch.linalg.vector_norm(x, 3, (2, 3), keepdim=True)),
    "log1p": Fed(lambda x: torch.log1p(torch.square(x))),
    "log2": Fed(lambda x: torch.log2(torch.square(x) + 1)),
    "log10": Fed(lambda x: torch.log10(torch.square(x) + 1)),
    "exp2": Fed(lambda x: torch.exp2(x)),
    "expm1": Fed(lambda x: torch.expm1(x)),
    "sinh": Fed(lambda x: torch.sinh(x)),
    "cosh": Fed(lambda x: torch.cosh(x)),
    "tan": Fed(lambda x: torch.tan(x)),
    "asin": Fed(lambda x: torch.asin(torch.sigmoid(x))),
    "acos": Fed(lambda x: torch.acos(torch.sigmoid(x))),
    "atan": Fed(lambda x: torch.atan(x)),
    "asinh": Fed(lambda x: torch.asinh(x)),
    "atanh": Fed(lambda x: torch.atanh(torch.sigmoid(x) / 2)),
    "erfc": Fed(lambda x: torch.erfc(x)),
    "sinc": Fed(lambda x: torch.sinc(x)),
    "rrelu": Fed(lambda x: torch.rrelu(x)),
    "deg2rad": Fed(lambda x: torch.deg2rad(x)),
    "rad2deg": Fed(lambda x: torch.rad2deg(x)),
    "ceil": Fed(lambda x: torch.ceil(x + 0.2)),
    "trunc": Fed(torch.trunc),
    "frac": Fed(lambda x: torch.frac(x + 0.2)),
    "remainder": Fed(lambda x: (x + 0.1) % 0.45),
    "fmod": Fed(lambda x: torch.fmod(x + 0.1, 0.45)),
    "remainder_tensor": Fed(lambda x: torch.remainder(x + 0.1, x.sigmoid() + 2)),
    "fmod_tensor": Fed(lambda x: torch.fmod(x + 0.1, x.sigmoid() + 2)),
    "atan2": Fed(lambda x: torch.atan2(x + 0.1, x.exp())),
    "floor_divide": Fed(lambda x: torch.floor_divide(x + 0.3, torch.sigmoid(x) + 1)),
    "hypot": Fed(lambda x: torch.hypot(x, x + 1)),
    "lerp": Fed(lambda x: torch.lerp(x, x * 2, 0.3)),
    "lerp_tensor": Fed(lambda x: torch.lerp(x, x.sigmoid(), x.relu())),
    "addcmul": Fed(lambda x: torch.addcmul(x, x, x.sigmoid(), value=0.3)),
    "addcdiv": Fed(lambda x: torch.addcdiv(x, x, x.exp(), value=0.3)),
    "glu": Fed(lambda x: F.glu(x.flip(1), 1)),
    "compared": Fed(lambda x: sum(2**place * compare(x, 0.3).double() for place, compare in enumerate(COMPARISONS))),
    "compared_tensor": Fed(
        lambda x: sum(2**place * compare(x, x.sigmoid()).double() for place, compare in enumerate(COMPARISONS))
    ),
    "where_compared": Fed(lambda x: torch.where(x > 0.1, x.exp(), 0.2 * x)),
    "zeros_like": Fed(lambda x: torch.maximum(x, torch.zeros_like(x))),
    "ones_like": Fed(lambda x: x + torch.ones_like(x) + aten.fill.Scalar(x, 0.3) + aten.zero.default(x)),
    "full_like": Fed(lambda x: x + torch.full_like(x, 0.3)),
    "new_zeros": Fed(lambda x: x + x.new_zeros(4, 1, 1) + x.new_ones(1) + x.new_full((1, 1), 0.3)),
    "zeros": Fed(lambda x: x + torch.zeros(4, 1, 1) + torch.ones(1) + torch.full((6,), 0.25)),
    "copy": Fed(lambda x: torch.empty(2, 4, 6, 6, dtype=x.dtype).copy_(x)),
    "copy_broadcast": Fed(lambda x: x.new_empty(3, *x.shape).copy_(x)),
    "upsample_nearest_exact1d": Fed(lambda x: F.interpolate(x.flatten(2), scale_factor=2, mode="nearest-exact")),
    "upsample_nearest_exact2d": Fed(lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact")),
    "upsample_nearest_exact3d": Fed(lambda x: F.interpolate(x[..., None], scale_factor=2, mode="nearest-exact")),
    "upsample_bilinear2d_aa": Fed(lambda x: F.interpolate(x, size=4, mode="bilinear", antialias=True)),
    "upsample_bicubic2d_aa": Fed(lambda x: F.interpolate(x, size=4, mode="bicubic", antialias=True)),
    "adaptive_max_pool3d": Fed(lambda x: F.adaptive_max_pool3d(x[..., None], (2, 2, 1))),
    "max_pool2d_with_indices": Fed(lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True)[0]),
    "max_pool3d_with_indices": Fed(lambda x: F.max_pool3d(x[..., None], (2, 2, 1), return_indices=True)[0]),
    "grid_sample": Fed(lambda x: F.grid_sample(x, x[:, :2].movedim(1, 3) / 5, padding_mode="border")),
    "grid_sample_3d": Fed(
        lambda x: F.grid_sample(
            x[..., None],
            x[:, :3, :, :, None].mT.movedim(1, 4).contiguous(),
            padding_mode="reflection",
            align_corners=True,
        )
    ),
    "channel_shuffle": Fed(lambda x: F.channel_shuffle(x, 2) + F.native_channel_shuffle(x, 2)),
    "gather": Fed(lambda x: x.gather(3, x.argsort(3))),
    "gather_some": Fed(lambda x: x.gather(3, x[:, :, :2, :3].argsort(3))),
    "topk": Fed(lambda x: x.topk(2, 3)[0]),
    "sort": Fed(lambda x: x.sort(3)[0] + x.sort(dim=3, stable=True)[0]),
    "cumsum": Fed(lambda x: x.cumsum(2) + x.cumprod(3)),
    "tril": Fed(lambda x: x.tril() + x.triu(1) * 2),
    "std": Fed(lambda x: x.std((2, 3))),
    "var_mean": Fed(lambda x: sum(torch.var_mean(x, (2, 3)))),
    "std_mean": Fed(lambda x: sum(torch.std_mean(x, (2, 3)))),
    "prod": Fed(lambda x: x.prod(3)),
    "all_axes": Fed(lambda x: x[:, 1:].sum() + x[:, 1:].mean() + x[:, 1:].max() + x[:, 1:].min() + x[:, 1:].prod()),
    "max": Fed(lambda x: x.max(3)[0] + x.min(3)[0]),
    "of_whole_numbers": Fed(lambda x: x + torch.arange(6).mean(dtype=torch.float32) + torch.arange(6).prod(0)),
    "of_a_single_number": Fed(lambda x: x * torch.tensor(2.0).sum(-1) + torch.tensor(3.0).max(0)[0].prod(-1).amax(-1)),
    "group_norm_of_one": Fed(lambda x, m: m(x), norm(nn.GroupNorm(4, 4))),
    "batch_norm_of_its_own": Fed(lambda x: F.batch_norm(x, None, None, training=True)),
    "mm": Fed(lambda x: torch.mm(x[0, 1:2].flatten(1), x[0, 1:3].flatten(1).T)),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_rule_tells_the_constant_and_nan_elsewhere(name: str) -> None:
    abstract, real, _ = measure(EXACT[name])
    assert (~real.isnan()).any()  # some of it is constant, or the row means nothing
    torch.testing.assert_close(abstract, real, rtol=1e-12, atol=1e-12, equal_nan=True)


# Cautious rows: what is not uniform, or not known, counts as varying.  Channel -> the constant that is still known.
CAUTIOUS: dict[str, tuple[Fed, list[float]]] = {
    # zeros around the image: only the channel of zeros is the same everywhere
    "conv2d_padded": (Fed(lambda x, m: m(x), outputs_reading((0, 1, 2, 3), nn.Conv2d(4, 4, 3, padding=1))), [2]),
    "conv2d_same": (Fed(lambda x, m: m(x), outputs_reading((0, 1, 2, 3), nn.Conv2d(4, 4, 3, padding="same"))), [2]),
    "conv1d_same": (
        Fed(lambda x, m: m(x.flatten(2)), outputs_reading((0, 1, 2, 3), nn.Conv1d(4, 4, 3, padding="same"))), [2],
    ),
    "conv3d_same": (
        Fed(lambda x, m: m(x.unsqueeze(-1)), outputs_reading((0, 1, 2, 3), nn.Conv3d(4, 4, 3, padding="same"))), [2],
    ),
    "avg_pool2d_padded": (Fed(lambda x: F.avg_pool2d(x, 3, 2, 1)), [2]),
    "avg_pool2d_divisor": (Fed(lambda x: F.avg_pool2d(x, 2, divisor_override=3)), [2]),
    "conv_transpose1d": (Fed(lambda x, m: m(x.flatten(2)), nn.ConvTranspose1d(4, 4, 2)), [2]),
    "conv_transpose2d": (Fed(lambda x, m: m(x), nn.ConvTranspose2d(4, 4, 2)), [2]),
    "conv_transpose3d": (Fed(lambda x, m: m(x.unsqueeze(-1)), nn.ConvTranspose3d(4, 4, 1)), [2]),
    "conv_transpose_grouped": (Fed(lambda x, m: m(x), nn.ConvTranspose2d(4, 4, 2, groups=2)), []),
    "depthwise_conv_transpose": (Fed(lambda x, m: m(x), nn.ConvTranspose2d(4, 4, 2, groups=4)), [2]),
    "layer_norm": (Fed(lambda x, m: m(x.mean((2, 3))), norm(nn.LayerNorm(4))), [0]),
    "layer_norm_plain": (Fed(lambda x, m: m(x.mean((2, 3))), nn.LayerNorm(4, elementwise_affine=False)), []),
    "group_norm": (Fed(lambda x, m: m(x), norm(nn.GroupNorm(2, 4))), [0]),
    "rms_norm": (Fed(lambda x, m: m(x.mean((2, 3))), norm(nn.RMSNorm(4))), [0]),
    "attention_dropout": (
        Fed(lambda x: F.scaled_dot_product_attention(*3 * [x.flatten(2).mT], dropout_p=0.5).mT), [2],
    ),
    "attention_masked": (
        Fed(lambda x: F.scaled_dot_product_attention(*3 * [x.flatten(2).mT], x.flatten(2)[:, :1].mT).mT), [2],
    ),
    "softmax_over_channels": (Fed(lambda x: x.softmax(1)), []),
    "to_whole": (Fed(lambda x: x.to(torch.int64).double()), []),
    "matmul_vector": (Fed(lambda x: (x[0, :, 0] @ x[0, 0, 0])[None]), []),
    "index_by_values": (Fed(lambda x: x[:, :, x[0, 0, 0].abs().long() * 0]), [1, 2, 3]),
    "index_select_by_values": (Fed(lambda x: x.index_select(2, x[0, 0, 0].abs().long() * 0)), [1, 2, 3]),
    "pad": (Fed(lambda x: F.pad(x, (1, 1, 1, 1), value=0.7)), []),
    "pad_zeros": (Fed(lambda x: F.pad(x, (0, 0, 1, 0))), [2]),
    "unknown": (Fed(lambda x: torch.logcumsumexp(x, 2)), []),
    "compared_at_a_jump": (Fed(lambda x: (x > 0.7).double()), [2, 3]),
    "trunc_at_a_jump": (Fed(lambda x: torch.trunc(x + 0.3)), [2]),
    "max_unpool2d": (Fed(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)), [2]),
    "max_unpool3d": (
        Fed(lambda x: F.max_unpool3d(*F.max_pool3d(x[..., None], (2, 2, 1), return_indices=True), (2, 2, 1))), [2],
    ),
    "grid_sample_zeros": (Fed(lambda x: F.grid_sample(x, x[:, :2].movedim(1, 3))), [2]),
    "grid_sample_bicubic_zeros": (Fed(lambda x: F.grid_sample(x, x[:, :2].movedim(1, 3), mode="bicubic")), [2]),
    "roi_align": (Fed(lambda x: torchvision.ops.roi_align(x, BOXES, 2)), [2]),
    "roi_pool": (Fed(lambda x: torchvision.ops.roi_pool(x, BOXES, 2)), [2]),
    "deform_conv2d": (
        Fed(lambda x, m: torchvision.ops.deform_conv2d(x, x[:, :1].repeat(1, 18, 1, 1), m.weight, m.bias, padding=1),
            outputs_reading((0, 1, 2, 3), nn.Conv2d(4, 4, 3))), [2],
    ),
    "deform_conv2d_grouped": (
        Fed(lambda x, m: torchvision.ops.deform_conv2d(x, x[:, :1].repeat(1, 18, 1, 1), m.weight, None, padding=1),
            outputs_reading((0, 1, 0, 1), nn.Conv2d(4, 4, 3, groups=2))), [2],
    ),
    "norm_of_order_0": (Fed(lambda x: torch.linalg.vector_norm(x.relu(), 0, 3)), []),
    "fourier": (Fed(lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=(6, 6))), [2]),
    "fourier_complex": (Fed(lambda x: torch.fft.ifft2(torch.fft.fft2(x)).real), [2]),
    "complex": (Fed(lambda x: torch.view_as_real(as_complex(x))), [2]),
    "complex_known": (Fed(lambda x: (torch.polar(torch.ones(6), torch.arange(6.0)) * x.relu()).real), [2, 3]),
    "conjugate": (Fed(lambda x: torch.view_as_real(as_complex(x).conj().resolve_conj().conj_physical())), [2]),
    # a constant at a jump: the network, rounding otherwise, may come to the other side
    "round_at_a_jump": (Fed(lambda x: torch.round(x - 0.2)), [2]),
    "threshold_at_a_jump": (Fed(lambda x: F.threshold(x, 0.7, 7.0)), [2, 3]),
    "sign_of_zero": (Fed(torch.sign), [1, 3]),
    "where_by_values": (Fed(lambda x: torch.where(x[:, :1] > 0, x, torch.relu(x))), [1, 2]),
    "pixel_shuffle_unequal": (Fed(lambda x: F.pixel_shuffle(x, 2)), []),
    "im2col_padded": (Fed(lambda x: F.unfold(x, 3, padding=1)[:, ::9]), [2]),
    "col2im": (Fed(lambda x: F.fold(F.unfold(x, 3, padding=1), (6, 6), 3, padding=1)), [2]),
    "constant_pad": (Fed(lambda x: aten.constant_pad_nd.default(x, [1, 1, 0, 0], 0.0)), [2]),
    "pooling_without_a_batch": (Fed(lambda x: F.max_pool2d(x[0], 2)[None]), [1, 2, 3]),
    "convolution_without_a_batch": (
        Fed(lambda x, m: m(x[0])[None], outputs_reading((1, 2, 3, 0), nn.Conv2d(4, 4, 3))), [0, 1, 2],
    ),
    "gqa": (Fed(lambda x: F.scaled_dot_product_attention(*3 * [x.mT], enable_gqa=True)), []),
}  # fmt: skip


@pytest.mark.parametrize("name", CAUTIOUS)
def test_a_cautious_rule_never_claims_what_is_not_so(name: str) -> None:
    model, known = CAUTIOUS[name]
    if name.startswith("conv_transpose") and known:  # each output reads one input, as for the other convolutions
        with torch.no_grad():
            model.layer.weight.mul_(torch.eye(4).view(4, 4, *(1,) * (model.layer.weight.dim() - 2)))
    abstract, real, _ = measure(model)
    claimed = ~abstract.isnan()
    torch.testing.assert_close(abstract[claimed], real[claimed], rtol=1e-12, atol=1e-12)
    channels = claimed.movedim(1, 0).flatten(1)
    assert channels.all(1).nonzero().flatten().tolist() == known and channels.any(1).sum() == len(known)


def with_constant_rule() -> set[object]:
    return {target for target, row in OPERATORS.items() if not isinstance(row.constant_rule, NoRule)}


def test_every_rule_has_a_row() -> None:
    used = set().union(*(measure(row)[2] for row in EXACT.values()), *(measure(row)[2] for row, _ in CAUTIOUS.values()))
    used |= {target._schema.name for target in used if not isinstance(target, BuiltinFunctionType)}
    assert sorted(str(target) for target in with_constant_rule() - used) == []


def test_nan_passes_every_activation() -> None:
    """What the elementwise operators rest on, also in the vectorized code that long rows take."""
    targets = [target for target, row in OPERATORS.items() if row.constant_rule is same_computation]
    assert len(targets) > 30
    for size in (1, 4, 37):
        x = torch.full((size,), LIVE, dtype=torch.float64)
        for target in targets:
            extra = {
                "pow": (2,),
                "add": (1.0,),
                "sub": (1.0,),
                "clamp": (x, x) if target == aten.clamp.Tensor else (0.0, 1.0),
                "clamp_min": (0.0,),
                "maximum": (x,),
            }
            extra |= {"clamp_max": (1.0,), "minimum": (x,)}
            assert target(x, *extra.get(target.__name__.split(".")[0], ())).isnan().all(), target


def plant_rule(monkeypatch: pytest.MonkeyPatch, rule: Callable[..., object]) -> None:
    """Give `relu` another constant rule."""
    relu = aten.relu.default
    monkeypatch.setitem(OPERATORS, relu, replace(OPERATORS[relu], constant_rule=rule))


@pytest.mark.parametrize("error", [AttributeError, TypeError, IndexError, ValueError, RuntimeError])
def test_a_mistake_in_a_rule_reaches_the_user(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def rule(node: object, x: Tensor) -> Tensor:
        raise error("a typo")

    plant_rule(monkeypatch, rule)
    with pytest.raises(error, match="a typo"):
        measure(Fed(F.relu))


def refuse(node: object, x: Tensor) -> Tensor:
    raise NotCovered("relu on a Tuesday")


@pytest.mark.parametrize("rule", [refuse, lambda node: None], ids=["not covered", "another signature"])
def test_what_a_rule_does_not_cover_is_live_unless_nothing_live_enters(
    monkeypatch: pytest.MonkeyPatch, rule: Callable[..., object]
) -> None:
    plant_rule(monkeypatch, rule)
    abstract, _, _ = measure(Fed(lambda x: torch.relu(x)))
    assert abstract.isnan().all()
    abstract, real, _ = measure(Fed(lambda x: x + torch.relu(torch.arange(6) - 3.0)))
    torch.testing.assert_close(abstract[:, 1:], real[:, 1:], rtol=1e-12, atol=1e-12)


def test_the_input_and_nothing_else_is_live() -> None:
    abstract, real, _ = measure(Fed(lambda x: x))
    assert abstract[:, 0].isnan().all() and real[:, 0].isnan().all()
    assert abstract[0, 1:, 0, 0].tolist() == pytest.approx(CARRIED[1:])
