"""Attention written in several ways, masks of PyTorch's own pruning, files, and rounding to a multiple."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from shrinking import SMALL, image, prepared
from torch import nn
from torch.nn.utils import prune

import nni_sparsevd as svd
from nni_sparsevd.errors import SettingError
from nni_sparsevd.graph import ChannelGraph, channel_graph
from nni_sparsevd.masks import apply_masks_
from nni_sparsevd.shrinking import RememberingLayerNorm
from nni_sparsevd.studies.zoo.trials import mask_channels
from nni_sparsevd.testing import assert_shrinks_exactly, relative_difference


def small_deit() -> nn.Module:
    return prepared(timm.create_model("deit_tiny_patch16_224", num_classes=10, img_size=32, depth=2))


def small_swin() -> nn.Module:
    size = {"img_size": 32, "patch_size": 2, "window_size": 4}
    width = {"depths": (2, 2), "embed_dim": 24, "num_heads": (3, 6), "num_classes": 10}
    return prepared(timm.models.swin_transformer.SwinTransformer(**size, **width))


def groups_of(graph: ChannelGraph, module: str) -> list[int]:
    return [len(group) for group in graph.groups if group.module == module and not group.pinned]


def test_heads_and_dimensions_of_attention_go_and_the_module_knows() -> None:
    model = small_deit()
    graph = channel_graph(model, image(32))
    assert groups_of(graph, "blocks.0.attn.qkv") == [3, 64]  # heads, and dimensions of all heads
    masks, _ = mask_channels(model, graph, "half", 0)
    apply_masks_(model, masks)
    small, _ = assert_shrinks_exactly(model, image(32))
    attention = small.blocks[0].attn
    assert (attention.num_heads, attention.head_dim, attention.attn_dim) == (2, 32, 64)
    assert attention.qkv.weight.shape == (3 * 2 * 32, 192) and attention.proj.weight.shape == (192, 64)
    # PyTorch divides by the root of 32 now, not of 64: the queries make up for it, with or without fused attention
    assert attention.scale == 32**-0.5
    for block in small.blocks:
        block.attn.fused_attn = False
    assert relative_difference(model, small, image(32)) < 1e-10


def test_relative_positions_lose_the_heads_too() -> None:
    model = small_swin()
    graph = channel_graph(model, image(32))
    assert groups_of(graph, "layers.0.blocks.0.attn.qkv") == [3, 8]
    masks, _ = mask_channels(model, graph, "half", 0)
    apply_masks_(model, masks)
    small, _ = assert_shrinks_exactly(model, image(32))
    assert small.layers[0].blocks[0].attn.relative_position_bias_table.shape[1] == 2


def test_a_smaller_attention_is_saved_and_comes_back(tmp_path: Path) -> None:
    arguments = {"num_classes": 10, "img_size": 32, "depth": 2}
    model = small_deit().float()
    masks, _ = mask_channels(model, channel_graph(model, image(32).float()), "half", 0)
    small, _ = svd.shrink(model, image(32).float(), masks)
    svd.save(small, tmp_path / "small.safetensors", name="deit_tiny_patch16_224", arguments=arguments)
    again = svd.load(tmp_path / "small.safetensors")
    assert relative_difference(small.double(), again.double(), image(32)) == 0


def test_a_table_that_evaluation_keeps_is_made_anew() -> None:
    """LeViT remembers its attention biases, of all heads, from one evaluation to the next."""
    model = prepared(timm.create_model("levit_128s", num_classes=10)).eval()
    example = torch.zeros(2, 3, 224, 224, dtype=torch.float64)
    model(example)  # with gradients: PyTorch would not even copy what it keeps
    masks, _ = mask_channels(model, channel_graph(model, example), "half", 0)
    small, plan = svd.shrink(model, example, masks)
    assert plan.removed > 1000 and svd.check(svd.bake_(copy.deepcopy(model), masks), small, example, rounds=1).ok


@pytest.mark.parametrize("permanent", [True, False])
def test_masks_of_pytorchs_own_pruning(permanent: bool) -> None:
    model = prepared(timm.create_model("test_resnet", num_classes=10))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and name.endswith("conv1") and name != "conv1":
            prune.ln_structured(module, "weight", amount=0.5, n=1, dim=0)
            if permanent:
                prune.remove(module, "weight")
    if not permanent:  # a mask in a hook: the weight is computed, so nothing may be cut
        masks = {
            name: {"weight": module.weight_mask}
            for name, module in model.named_modules()
            if hasattr(module, "weight_mask")
        }
        assert masks
        for module in model.modules():
            if hasattr(module, "weight_mask"):
                prune.remove(module, "weight")
        small, plan = svd.shrink(model, image(32), masks)
    else:
        small, plan = svd.shrink(model, image(32))
    assert plan.removed > 50 and relative_difference(model, small, image(32)) < 1e-10


def test_extreme_sparsity_of_single_weights_becomes_smaller_layers() -> None:
    model = prepared(SMALL["mlp"]())
    parameters = [(module, "weight") for module in model if isinstance(module, nn.Linear)]
    prune.global_unstructured(parameters, prune.L1Unstructured, amount=0.97)
    for module, name in parameters:
        prune.remove(module, name)
    small, plan = assert_shrinks_exactly(model, image())
    assert plan.removed > 5 and small[1].out_features < 12


@pytest.mark.parametrize("multiple", [4, 8])
def test_what_is_left_is_a_multiple(multiple: int) -> None:
    model = prepared(timm.create_model("test_resnet", num_classes=10), "rows", "norm")
    small, plan = svd.shrink(model, image(32), round_to=multiple)
    exact = svd.make_plan(model, image(32))
    assert 0 < plan.removed < exact.removed
    assert relative_difference(model, small, image(32)) < 1e-10
    for group in plan.groups:
        assert (group.channels - group.removed) % multiple == 0 or group.removed == 0
    for group, least in zip(plan.groups, exact.groups, strict=True):
        assert group.removed <= least.removed


def test_a_multiple_below_one_is_refused() -> None:
    with pytest.raises(SettingError, match="round_to: a number of channels, 1 or more, found 0"):
        svd.make_plan(prepared(SMALL["mlp"]()), image(), round_to=0)


# Norms that remember.


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "convnext_atto", "swin"])
def test_the_width_of_a_transformer_goes_where_norms_may_remember(name: str, tmp_path: Path) -> None:
    arguments = {"img_size": 32, "depth": 2} if name.startswith("deit") else {}
    model = small_swin() if name == "swin" else prepared(timm.create_model(name, num_classes=10, **arguments))
    graph = channel_graph(model, image(32), remember_norms=True)
    masks, dead = mask_channels(model, graph, "half", 0)
    apply_masks_(model, masks)
    kept, plan = svd.shrink(model, image(32))
    small, more = svd.shrink(model, image(32), remember_norms=True)
    assert plan.removed < more.removed == dead
    assert relative_difference(model, small, image(32)) < 1e-10
    result = svd.check(model, small, image(32))
    assert result.ok and result.max_rel_32 < 1e-5
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in kept.parameters())
    # the statistics really depend on what is removed: an ordinary norm in its place is wrong
    norms = [name for name, module in small.named_modules() if isinstance(module, RememberingLayerNorm)]
    forgetful = copy.deepcopy(small)
    forgetful.get_submodule(norms[0]).removed = 0
    assert norms and relative_difference(model, forgetful, image(32)) > 1e-6
    if name != "swin":
        named = {"num_classes": 10, **arguments}
        svd.save(small.float(), tmp_path / "small.safetensors", name=name, arguments=named)
        assert relative_difference(small.double(), svd.load(tmp_path / "small.safetensors").double(), image(32)) == 0
        small.reset_classifier(5)
        assert small.double()(image(32)).shape == (2, 5)


def test_a_norm_remembers_constants_that_are_not_zero() -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(6).double()
    nn.init.normal_(norm.weight)
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    x[..., 2], x[..., 4] = 0.7, -3.0
    expected = norm(x)[..., [0, 1, 3, 5]]
    small = RememberingLayerNorm(norm, -1, torch.tensor([0.7, -3.0], dtype=torch.float64))
    small.weight, small.bias = (nn.Parameter(p[[0, 1, 3, 5]]) for p in (norm.weight, norm.bias))
    torch.testing.assert_close(small(x[..., [0, 1, 3, 5]]), expected, rtol=1e-13, atol=1e-13)
    turned = RememberingLayerNorm(norm, 1, torch.tensor([0.7, -3.0], dtype=torch.float64))
    turned.weight, turned.bias = small.weight, small.bias
    image_like = x[..., [0, 1, 3, 5]].permute(0, 2, 1)
    torch.testing.assert_close(turned(image_like), expected.permute(0, 2, 1), rtol=1e-13, atol=1e-13)


class Biased(nn.Module):
    """Attention with a bias made of the queries, as decomposed relative positions are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.proj = nn.Conv2d(3, 12, 2, 2), nn.Linear(12, 36), nn.Linear(12, 3)
        self.heads, self.dimensions, self.positions = 3, 4, nn.Parameter(torch.randn(16, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        parts = self.qkv(x).reshape(x.shape[0], -1, 3, self.heads, self.dimensions).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        bias = q @ self.positions.transpose(0, 1)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(y.transpose(1, 2).flatten(2)).mean(1)


def test_queries_that_are_used_elsewhere_keep_their_scale() -> None:
    model = prepared(Biased())
    graph = channel_graph(model, image())
    assert groups_of(graph, "qkv") == [3]
    reasons = [group.pinned or "" for group in graph.groups if group.module == "qkv"]
    assert any("attention is scaled by the number of dimensions" in reason for reason in reasons)
    masks, _ = mask_channels(model, graph, "half", 0)
    apply_masks_(model, masks)
    assert_shrinks_exactly(model, image())


class Halved(Biased):
    """Attention whose result is halved; one over the root of its four dimensions is a half, too."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        parts = self.qkv(x).reshape(x.shape[0], -1, 3, self.heads, self.dimensions).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(*parts.unbind(0))
        return self.proj(y.transpose(1, 2).flatten(2)).mean(1) * self.gain


def test_a_number_that_equals_the_scale_of_attention_stays() -> None:
    model = prepared(Halved())
    with torch.no_grad():
        for state in (model.qkv.weight, model.qkv.bias):
            state.unflatten(0, (3, 3, 4))[:, :, 1] = 0
    small, _ = assert_shrinks_exactly(model, image())
    assert small.dimensions == 3 and small.gain == 0.5


class Activated(nn.LayerNorm):
    """As timm's norms with an activation inside."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(super().forward(x))


def test_a_norm_that_does_more_remembers_and_goes_on_doing_it() -> None:
    model = prepared(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), Activated(8), nn.Linear(8, 2)))
    with torch.no_grad():
        model[1].weight[:3], model[2].weight[:3] = 0, 0
    small, plan = svd.shrink(model, image(), remember_norms=True)
    assert plan.removed == 3 and not isinstance(small[2], RememberingLayerNorm)
    assert relative_difference(model, small, image()) < 1e-12
