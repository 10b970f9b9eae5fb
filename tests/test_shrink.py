"""Shrunk equals masked, on every network and for every way of being dead; and nothing is left to remove."""

from collections.abc import Callable

import pytest
import timm
import torch
from shrinking import SMALL, WAYS, image, outputs, prepared
from timm.models.densenet import DenseNet
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vgg import VGG
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.testing import assert_sensitive, assert_shrinks_exactly, relative_difference

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
    small, plan = assert_shrinks_exactly(model, image())
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
    small, plan = assert_shrinks_exactly(model, image(32))
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
    small, plan = assert_shrinks_exactly(model, image(size))
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
    assert relative_difference(model, small, torch.zeros(2, 6).double()) < 1e-10
