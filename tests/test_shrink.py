"""Shrunk equals masked: whatever the network, and whichever way its channels died."""

import copy
import importlib
import json
from collections.abc import Callable, Iterator

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import randomise_
from timm.models.densenet import DenseNet
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vgg import VGG
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.errors import MaskError, ShrinkError
from nni_sparsevd.shrink.apply import apply_plan_


class Net(nn.Module):
    """Modules by name, and what to do with them."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.what = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self, x)


def image(size: int = 8) -> Tensor:
    return torch.zeros(2, 3, size, size, dtype=torch.float64)


def outputs(model: nn.Module, like: Tensor, seed: int = 0) -> Tensor:
    """In evaluation mode and float64, on three random inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, *like.shape[1:], generator=generator, dtype=torch.float64)
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


def difference(left: nn.Module, right: nn.Module, like: Tensor) -> float:
    """Largest difference, relative to the largest output."""
    expected, found = outputs(left, like), outputs(right, like)
    assert expected.shape == found.shape and expected.isfinite().all()
    return float((expected - found).abs().max() / expected.abs().max())


def assert_law(model: nn.Module, like: Tensor) -> tuple[nn.Module, svd.Plan]:
    """What holds for every shrinking, by other means than `check`; returns the small network and the plan."""
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    small, plan = svd.shrink(model, like)
    assert difference(model, small, like) < 1e-10
    result = svd.check(model, small, like, rounds=1)
    assert result.ok and result.stored_in_64 and result.max_rel_64 < 1e-10 and result.max_rel_32 < 1e-5
    # the model is untouched, and nothing is shared with it
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    held = {parameter.data_ptr() for parameter in model.parameters()}
    assert not held & {parameter.data_ptr() for parameter in small.parameters()}
    # the same modules of the same classes, none of them empty
    assert [(name, type(m)) for name, m in small.named_modules()] == [(n, type(m)) for n, m in model.named_modules()]
    assert all(parameter.numel() for parameter in small.parameters())
    # what is left is what the plan says
    left = small.state_dict()
    for (name, dim), indices in plan.cuts.items():
        assert left[name].shape[dim] == before[name].shape[dim] - len(indices) > 0
    cut = {model.state_dict()[name].data_ptr() for name, _ in plan.cuts}  # tied tensors go by one of their names
    whole = [name for name, value in model.state_dict().items() if value.data_ptr() not in cut]
    assert all(left[name].shape == before[name].shape for name in whole)
    # and planning again finds nothing, except that a convolution left with one channel a group is less bound
    again = svd.make_plan(small, like)
    assert (again.removed == 0 and not again.cuts) or loosened(model, small)
    return small, plan


def loosened(model: nn.Module, small: nn.Module) -> bool:
    pairs = [(m, small.get_submodule(name)) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    plain = [now.groups == 1 < before.groups for before, now in pairs]
    depthwise = [before.groups < before.in_channels and now.groups == now.in_channels > 1 for before, now in pairs]
    return any(plain) or any(depthwise)


def assert_sensitive(model: nn.Module, like: Tensor) -> None:
    """The comparison means something: a slightly wrong first layer shows."""
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        next(p for p in wrong.parameters() if p.dim() > 1).mul_(1.01)
    assert difference(model, wrong, like) > 1e-9


# Ways of being dead.  The same indices everywhere, so that coupled channels die together.


def third(size: int) -> Tensor:
    return torch.arange(size) % 3 == 1


def by_norm(model: nn.Module) -> None:
    """Scale and shift of every batch norm are zero."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight[third(len(module.weight))] = 0
            module.bias[third(len(module.bias))] = 0


def layers(model: nn.Module) -> Iterator[nn.Module]:
    yield from (m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd))


def by_rows(model: nn.Module) -> None:
    """No weight writes the channel; biases and norms after it still make it a constant."""
    for module in list(layers(model))[:-1]:
        writes = module.weight.transpose(0, 1) if module.__class__.__name__.startswith("ConvT") else module.weight
        writes[third(len(writes))] = 0


def by_columns(model: nn.Module) -> None:
    """No weight reads the channel."""
    for module in list(layers(model))[1:]:
        reads = module.weight if module.__class__.__name__.startswith("ConvT") else module.weight.transpose(0, 1)
        if len(reads) > 1:
            reads[third(len(reads))] = 0


WAYS = {"norm": by_norm, "rows": by_rows, "columns": by_columns}


def prepared(model: nn.Module, *ways: str) -> nn.Module:
    """In float64, with every norm at work, and dead in these ways."""
    torch.manual_seed(0)
    randomise_(model).double()
    with torch.no_grad():
        for way in ways:
            WAYS[way](model)
    return model


SMALL: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.Tanh(), nn.Linear(12, 9), nn.Sigmoid(),
                                 nn.Linear(9, 4)),
    "residual": lambda: Net(
        lambda m, x: m.head((F.relu(m.norm(m.b(F.relu(m.a(y := m.stem(x))))) + y)).mean((2, 3))),
        stem=nn.Conv2d(3, 6, 1), a=nn.Conv2d(6, 9, 1), b=nn.Conv2d(9, 6, 3, padding=1), norm=nn.BatchNorm2d(6),
        head=nn.Linear(6, 4)),
    "concatenation": lambda: Net(
        lambda m, x: m.head(torch.cat([F.silu(m.left(x)), F.relu(m.norm(m.right(x)))], 1)),
        left=nn.Conv2d(3, 6, 1), right=nn.Conv2d(3, 9, 3, padding=1), norm=nn.BatchNorm2d(9), head=nn.Conv2d(15, 4, 1)),
    "depthwise": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 12, 3, groups=6, padding=1), nn.BatchNorm2d(12),
        nn.Hardswish(), nn.Conv2d(12, 4, 1)),
    "grouped": lambda: nn.Sequential(
        nn.Conv2d(3, 9, 1), nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 18, 3, groups=3, padding=1), nn.BatchNorm2d(18),
        nn.ReLU(), nn.Conv2d(18, 4, 1)),
    "squeeze_excite": lambda: Net(
        lambda m, x: m.head((y := m.norm(m.a(x))) * m.up(F.relu(m.down(y.mean((2, 3), keepdim=True)))).sigmoid()),
        a=nn.Conv2d(3, 9, 3), norm=nn.BatchNorm2d(9), down=nn.Conv2d(9, 3, 1), up=nn.Conv2d(3, 9, 1),
        head=nn.Conv2d(9, 4, 1)),
    "transposed": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 2, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.ConvTranspose2d(6, 9, 2, 2), nn.BatchNorm2d(9),
        nn.PReLU(9), nn.Conv2d(9, 4, 1)),
    "group_norm_of_one": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.GroupNorm(6, 6), nn.GELU(), nn.Conv2d(6, 4, 3), nn.Flatten()),
    "pools": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.MaxPool2d(3, 2, 1), nn.Conv2d(6, 9, 1), nn.BatchNorm2d(9),
        nn.AvgPool2d(3, 1, 1), nn.Conv2d(9, 6, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)),
    "one_dimensional": lambda: nn.Sequential(
        nn.Flatten(2), nn.Conv1d(3, 6, 3), nn.ELU(), nn.AvgPool1d(2), nn.Conv1d(6, 6, 3, padding=1), nn.Softplus(),
        nn.Conv1d(6, 4, 1)),
    "tokens": lambda: Net(
        lambda m, x: m.head(m.down(F.gelu(m.up(m.norm(m.embed(x).flatten(2).mT)))).mean(1)),
        embed=nn.Conv2d(3, 6, 2, 2), norm=nn.LayerNorm(6), up=nn.Linear(6, 12), down=nn.Linear(12, 6),
        head=nn.Linear(6, 4)),
}  # fmt: skip


HELD = {
    ("residual", "norm"),  # one branch of the sum only: the other is alive
    ("depthwise", "columns"),  # two outputs an input: not both are unread
    ("group_norm_of_one", "norm"),  # what a group norm makes of a constant is not followed
    ("group_norm_of_one", "rows"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SMALL)
def test_small_networks(name: str, way: str) -> None:
    model = prepared(SMALL[name](), way)
    has_norm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    small, plan = assert_law(model, image())
    assert plan.removed > 0 or (way == "norm" and not has_norm) or (name, way) in HELD
    assert_sensitive(small, image())


def small_vgg() -> nn.Module:
    return VGG([16, "M", 24, "M"], num_classes=10, mlp_ratio=0.01, norm_layer=nn.BatchNorm2d)


LARGE: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: timm.create_model("resnet18", num_classes=10),
    "mobilenetv3": lambda: timm.create_model("mobilenetv3_small_050", num_classes=10),
    "efficientnet": lambda: timm.create_model("efficientnet_b0", num_classes=10),
    "convnext": lambda: timm.create_model("convnext_atto", num_classes=10),
    "deit": lambda: timm.create_model("deit_tiny_patch16_224", num_classes=10, img_size=32, depth=2),
    "densenet": lambda: DenseNet(growth_rate=9, block_config=(2, 2), bn_size=2, num_classes=10),
    "resnext": lambda: ResNet(Bottleneck, [1, 1, 1, 1], cardinality=8, base_width=8, num_classes=10),
    "vgg": small_vgg,
}


@pytest.mark.parametrize("name", LARGE)
def test_timm_networks(name: str) -> None:
    ways = {"resnet18": ("norm",), "densenet": ("rows", "columns")}
    model = prepared(LARGE[name](), *ways.get(name, ("rows", "norm")))
    small, plan = assert_law(model, image(32))
    share = plan.removed / sum(group.channels for group in plan.groups)
    assert share > 0.1
    assert_sensitive(small, image(32))
    # it is timm's network still: a new head fits, and it trains
    assert type(small) is type(model)
    small.reset_classifier(3)
    small.train()
    loss = small(torch.randn(2, 3, 32, 32, dtype=torch.float64)).square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in small.parameters() if p.requires_grad)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter -= 1e-3 * parameter.grad
    assert small.eval()(image(32)).shape == (2, 3)


def test_timms_head_follows_the_features() -> None:
    model = prepared(small_vgg(), "rows")
    small, _ = svd.shrink(model, image(32))
    head = small.get_classifier()
    assert head.weight.shape[1] == head.in_features == small.head_hidden_size == small.head.in_features
    assert head.in_features < model.head_hidden_size


def test_attributes_agree_with_tensors() -> None:
    model = prepared(SMALL["depthwise"](), "norm")
    small, _ = svd.shrink(model, image())
    first, norm, _, deep, _, _, head = small
    assert (first.in_channels, first.out_channels, norm.num_features) == (3, 4, 4)
    assert (deep.in_channels, deep.out_channels, deep.groups) == (4, len(deep.weight), 4)
    assert head.in_channels == head.weight.shape[1] == deep.out_channels
    small, _ = svd.shrink(prepared(SMALL["transposed"](), "norm"), image())
    assert (small[3].in_channels, small[3].out_channels) == tuple(small[3].weight.shape[:2]) == (4, 6)
    assert small[5].num_parameters == 6
    small, _ = svd.shrink(prepared(SMALL["mlp"](), "rows"), image())
    assert (small[1].out_features, small[3].in_features, small[3].out_features) == (8, 8, 6)


# The limits: nothing is emptied.


@pytest.mark.parametrize("name", [*SMALL, "resnext"])
def test_an_all_zero_network_shrinks_to_the_smallest_legal_one(name: str) -> None:
    model = prepared({**SMALL, **LARGE}[name]())
    size = 32 if name in LARGE else 8
    with torch.no_grad():
        for parameter in [p for p in model.parameters() if p.dim() > 1]:
            parameter.zero_()
    small, plan = assert_law(model, image(size))
    # a group that may lose channels keeps one, unless zero padding needs the constants of more
    free = [group for group in plan.groups if group.channels > 1 and not group.reason.startswith(("layer", "output"))]
    assert free and all(group.removed < group.channels for group in plan.groups)
    assert any(group.channels - group.removed == 1 for group in free)
    constant = outputs(small, image(size))
    assert torch.equal(constant, outputs(small, image(size), seed=1))


def test_a_chain_that_only_serves_itself_goes_as_a_whole() -> None:
    model = prepared(nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)), nn.Linear(6, 2)))
    with torch.no_grad():
        for index in range(1, 5):  # channel 2 of each layer is read by channel 2 of the next only, and that by nobody
            model[index].weight[:, 2] = 0
            if index < 4:
                model[index].weight[2, 2] = 1
        assert model[3].weight[2, 2] == 1 and (model[4].weight[:, 2] == 0).all()
    plan = svd.make_plan(model, torch.zeros(2, 6).double())
    assert [group.removed for group in plan.groups] == [1, 1, 1, 1, 0]
    small, _ = svd.shrink(model, torch.zeros(2, 6).double())
    assert difference(model, small, torch.zeros(2, 6).double()) < 1e-10


# Constants.


def half_constant(reader: nn.Module) -> nn.Module:
    """A sigmoid whose input has lost its weights: channel 2 is 0.5 whatever the image."""
    model = prepared(Net(lambda m, x: m.reader(m.first(x).sigmoid()), first=nn.Conv2d(3, 5, 1), reader=reader))
    with torch.no_grad():
        model.first.weight[2] = 0
        model.first.bias[2] = 0
    return model


@pytest.mark.parametrize("bias", [False, True])
def test_a_constant_is_folded_into_the_next_bias(bias: bool) -> None:
    model = half_constant(nn.Conv2d(5, 4, 3, bias=bias))
    small, plan = assert_law(model, image())
    assert plan.removed == 1 and small.first.out_channels == 4
    before = model.reader.bias if bias else torch.zeros(4).double()
    torch.testing.assert_close(small.reader.bias.data, before + 0.5 * model.reader.weight[:, 2].sum((1, 2)))


def test_a_constant_is_kept_where_zero_padding_shows_it() -> None:
    small, plan = assert_law(half_constant(nn.Conv2d(5, 4, 3, padding=1)), image())
    group = plan.groups[0]
    assert (plan.removed, group.dead) == (0, 1) and small.first.out_channels == 5
    assert group.reason == "1 constant, but not at the zero-padded border that reader sees"
    assert group.reason in str(plan)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding: str) -> None:
    _, plan = assert_law(half_constant(nn.Conv2d(5, 4, 3, padding=padding)), image())
    assert plan.removed == (padding == "valid")


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_that_repeats_the_image_is_safe(mode: str) -> None:
    assert_law(half_constant(nn.Conv2d(5, 4, 3, padding=1, padding_mode=mode)), image())


def test_a_padded_depthwise_convolution_passes_no_constant_on() -> None:
    model = half_constant(nn.Sequential(nn.Conv2d(5, 5, 3, groups=5, padding=1), nn.Conv2d(5, 4, 1)))
    _, plan = assert_law(model, image())
    assert plan.removed == 0


def test_a_transposed_convolution_takes_no_constant() -> None:
    _, plan = assert_law(half_constant(nn.ConvTranspose2d(5, 4, 3, 2)), image())
    assert plan.removed == 0 and "border that reader sees" in plan.groups[0].reason


def test_an_average_with_a_divisor_of_its_own() -> None:
    assert_law(half_constant(nn.Sequential(nn.AvgPool2d(2, divisor_override=3), nn.Conv2d(5, 4, 1))), image())


# Sharing.


def two_branches(
    left: Callable[[Tensor], Tensor], right: Callable[[Tensor], Tensor], twin: bool, bias: bool
) -> nn.Module:
    """One layer read twice, or two layers with one weight; channel 2 of both branches gets the input zero."""
    model = Net(
        lambda m, x: m.shared(left(m.a(x))) + 2 * m.twin(right(m.b(x))),
        a=nn.Conv2d(3, 5, 1), b=nn.Conv2d(3, 5, 1), shared=nn.Conv2d(5, 4, 1, bias=bias),
    )  # fmt: skip
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
    small, plan = assert_law(model, image())
    assert small.twin.weight is small.shared.weight
    if bias and not twin:  # one bias: it can take up a constant only when both uses see the same
        assert plan.removed == (right is torch.sigmoid)


def test_tied_weights_stay_tied() -> None:
    model = Net(lambda m, x: m.decode(F.relu(m.middle(F.relu(m.encode(x))))), encode=nn.Linear(6, 9),
                middle=nn.Linear(9, 9), decode=nn.Linear(9, 6))  # fmt: skip
    prepared(model)
    model.middle.weight = model.encode.weight = nn.Parameter(torch.randn(9, 9).double())
    model.encode.in_features = 9
    with torch.no_grad():
        model.decode.weight[:, 1] = 0
        model.middle.weight[:, 1] = 0
    small, _ = assert_law(model, torch.zeros(2, 9).double())
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
    small, plan = assert_law(model, torch.zeros(2, 6).double())
    assert plan.removed == 1 and small.weight.shape == (4, 4)


def test_a_grouped_convolution_may_be_left_with_one_channel_a_group() -> None:
    grouped = nn.Conv2d(16, 32, 3, groups=4, bias=False)
    model = prepared(nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), grouped, nn.ReLU(), nn.Conv2d(32, 4, 1)))
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor.view(4, 4, -1)[:, 1:] = 0
        model[2].weight.view(4, 8, -1)[:, 4:] = 0
    small, plan = assert_law(model, image())
    assert (small[2].in_channels, small[2].out_channels, small[2].groups) == (4, 16, 4)
    assert plan.removed == 3 + 4


# Refusals, with reasons.


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nn.GroupNorm(2, 6), "group_norm over the channels"),
        (nn.GroupNorm(1, 6), "group_norm over the channels"),
        (nn.GroupNorm(6, 6, affine=False), "group_norm"),
        (nn.InstanceNorm2d(6), "instance_norm has no rule"),
        (nn.Softmax2d(), "softmax over the channels"),
        (nn.ChannelShuffle(2), "channel_shuffle has no rule"),
    ],
)
def test_norms_over_channels_keep_them(norm: nn.Module, reason: str) -> None:
    model = prepared(nn.Sequential(nn.Conv2d(3, 6, 1), norm, nn.Conv2d(6, 4, 1)), "rows")
    _, plan = assert_law(model, image())
    assert plan.groups[0].removed == 0 and reason in plan.groups[0].reason


def test_layer_norm_keeps_its_channels_but_not_those_inside_a_block() -> None:
    _, plan = assert_law(prepared(SMALL["tokens"](), "rows"), image())
    found = {group.name: group for group in plan.groups}
    assert found["embed"].removed == 0 and "layer_norm over the channels" in found["embed"].reason
    assert found["up"].removed == 4 and found["up"].reason == ""


def test_a_size_written_in_the_forward_pass_is_an_error_that_says_so() -> None:
    model = prepared(Net(lambda m, x: m.head(m.first(x).view(-1, 6 * 64)), first=nn.Conv2d(3, 6, 1),
                         head=nn.Linear(384, 4)))  # fmt: skip
    with torch.no_grad():
        model.head.weight[:, :64] = 0
    with pytest.raises(ShrinkError, match=r"Net does not run: .*a size written in its forward"):
        svd.shrink(model, image())


def test_a_network_that_casts_is_traced() -> None:
    model = prepared(Net(lambda m, x: m.head(m.first(x).float().to(x.dtype).relu()), first=nn.Conv2d(3, 6, 1),
                         head=nn.Conv2d(6, 4, 1)), "rows").float()  # fmt: skip
    _, plan = svd.shrink(model, image().float())
    assert plan.removed == 2


# Masks, and stored precision.


def test_masks_are_multiplied_in_first() -> None:
    model = prepared(SMALL["residual"]())
    dead = third(9)
    masks = {"a": {"weight": (~dead).float().view(9, 1, 1, 1).expand(9, 6, 1, 1), "bias": (~dead).float()}}
    small, plan = svd.shrink(model, image(), masks)
    masked = svd.bake_(copy.deepcopy(model), masks)
    assert plan.removed == 3 and difference(masked, small, image()) < 1e-10 < difference(model, small, image())
    with pytest.raises(MaskError, match="'nowhere'"):
        svd.shrink(model, image(), {"nowhere": {"weight": torch.ones(1)}})


def test_a_variational_network_is_baked_first() -> None:
    model = svd.sparsify_(prepared(SMALL["pools"]()), granularity="both", example_inputs=image())
    with torch.no_grad():
        model[1].gate.mu[2] = 0
    small, plan = svd.shrink(model, image())
    assert plan.groups[0].removed == 1
    assert difference(svd.bake_(copy.deepcopy(model)), small, image()) < 1e-10


def test_float32_networks_are_equal_to_rounding() -> None:
    model = prepared(SMALL["pools"](), "rows").float()
    small, plan = svd.shrink(model, image().float())
    result = svd.check(model, small, image().float())
    assert plan.removed > 0 and result.ok and not result.stored_in_64
    assert all(parameter.dtype == torch.float32 for parameter in small.parameters())


# Training goes on as if nothing had been removed.


def test_gradients_of_what_is_left_are_those_of_the_masked_network() -> None:
    model = prepared(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 9, 3), nn.ReLU(),
                                   nn.Flatten(), nn.Linear(324, 4)))  # fmt: skip
    with torch.no_grad():
        for index in (0, 2):
            model[index].weight[third(len(model[index].weight))] = 0
            model[index].bias[third(len(model[index].weight))] = 0
    small, plan = svd.shrink(model, image())
    assert plan.removed == 5
    x = torch.randn(3, 3, 8, 8).double()
    for one in (model, small):
        one.train()(x).square().sum().backward()
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


# The check can say no.


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
    room = importlib.import_module("nni_sparsevd.shrink.shrink")
    monkeypatch.setattr(room, "apply_plan_", lambda *_: wrong)
    with pytest.raises(ShrinkError, match="Sequential gives other outputs, DIFFERENT"):
        svd.shrink(model, image())


def linear(change: Callable[[Tensor], None]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        change(model.weight)
    return model


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
    model = Net(lambda m, x: {"a": m.first(x), "b": [m.second(m.drop(x))]}, first=nn.Linear(3, 2),
                second=nn.Linear(3, 2), drop=nn.Dropout())  # fmt: skip
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


# The plan is a value.


def test_the_plan_as_data() -> None:
    model = prepared(SMALL["residual"](), "columns")
    plan = svd.make_plan(model, image())
    assert svd.make_plan(model, image()) == plan
    read = json.loads(plan.to_json())
    assert (
        read["groups"] == json.loads(json.dumps(plan.rows()))
        and sum(g["removed"] for g in read["groups"]) == plan.removed
    )
    assert read["cuts"]["a.weight:0"] == list(plan.cuts["a.weight", 0])
    lines = str(plan).splitlines()
    assert len(lines) == 1 + len(plan.groups) and lines[-1].endswith("output of the network")
    with pytest.raises(AttributeError):
        plan.groups = ()
