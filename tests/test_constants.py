"""The abstract value of every operator: what the network really computes where a channel is constant, NaN elsewhere.

Every row feeds an operator four channels: one that depends on the input and the constants 0.7, 0 and -1.3.  An entry of
the result is really constant when it is the same for many random inputs.
"""

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nni_sparsevd.graph.tracing import trace
from nni_sparsevd.shrinking import constant_rules as rules
from nni_sparsevd.shrinking.abstract_values import LIVE
from nni_sparsevd.shrinking.constants import find_constants

aten = torch.ops.aten
CARRIED = (float("nan"), 0.7, 0.0, -1.3)
DRAWS = 40


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
        values = find_constants(recorded, {name: value.double() for name, value in states.items()})
        outputs = torch.stack([model(x) for x in draws])
    (result,) = next(node for node in recorded.graph.nodes if node.op == "output").args[0]
    found = values[result]
    abstract = found.expand(outputs.shape[1:])
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


def norm(made: nn.Module) -> nn.Module:
    """A norm that ends the first channel with a scale of 0."""
    made = layer(made, 0.0)
    with torch.no_grad():
        if made.weight is not None:
            made.weight[0] = 0
    return made


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
    "matmul": Fed(lambda x: x[:, 1:2].flatten(2) @ x[:, 1:3].flatten(2).mT),  # a constant times constants
    "matmul_zero": Fed(lambda x: x.flatten(2)[:, :, :1] @ x.flatten(2)[:, 2:3]),  # anything times zero
    "bmm": Fed(lambda x: torch.bmm(x.flatten(2).mT, x.flatten(2)[:, :, :2] * 0)),
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
    "prelu_one": Fed(lambda x, m: m(x), layer(nn.PReLU(), 0.0)),
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
    "layer_norm": (Fed(lambda x, m: m(x.mean((2, 3))), norm(nn.LayerNorm(4))), [0]),
    "layer_norm_plain": (Fed(lambda x, m: m(x.mean((2, 3))), nn.LayerNorm(4, elementwise_affine=False)), []),
    "group_norm": (Fed(lambda x, m: m(x), norm(nn.GroupNorm(2, 4))), [0]),
    "rms_norm": (Fed(lambda x, m: m(x.mean((2, 3))), norm(nn.RMSNorm(4))), [0]),
    "attention_masked": (
        Fed(lambda x: F.scaled_dot_product_attention(*3 * [x.flatten(2).mT], x.flatten(2)[:, :1].mT).mT), [2],
    ),
    "to_whole": (Fed(lambda x: x.to(torch.int64).double()), []),
    "matmul_vector": (Fed(lambda x: (x[0, :, 0] @ x[0, 0, 0])[None]), []),
    "batch_norm_of_its_own": (Fed(lambda x: F.batch_norm(x, None, None, training=True)), []),
    "index_by_values": (Fed(lambda x: x[:, :, x[0, 0, 0].abs().long() * 0]), []),
    "pad": (Fed(lambda x: F.pad(x, (1, 1, 1, 1), value=0.7)), []),
    "pad_zeros": (Fed(lambda x: F.pad(x, (0, 0, 1, 0))), [2]),
    "unknown": (Fed(lambda x: torch.cumsum(x, 2)), []),
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


def test_every_rule_has_a_row() -> None:
    used = set().union(*(measure(row)[2] for row in EXACT.values()), *(measure(row)[2] for row, _ in CAUTIOUS.values()))
    known = rules.ELEMENTWISE | rules.PASSING | rules.UNIFORM | set(rules.RULES)
    assert sorted(str(target) for target in known - used) == []


def test_nan_passes_every_activation() -> None:
    """What the elementwise operators rest on, also in the vectorised code that long rows take."""
    for size in (1, 4, 37):
        x = torch.full((size,), LIVE, dtype=torch.float64)
        for target in rules.ELEMENTWISE:
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


def test_the_input_and_nothing_else_is_live() -> None:
    abstract, real, _ = measure(Fed(lambda x: x))
    assert abstract[:, 0].isnan().all() and real[:, 0].isnan().all()
    assert abstract[0, 1:, 0, 0].tolist() == pytest.approx(CARRIED[1:])
