"""Norms of every kind remember the channels that they lose, exactly."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from shrinking import Net, image, prepared
from timm.layers import GroupNormAct, RmsNorm
from timm.layers.grn import GlobalResponseNorm
from timm.models.mlp_mixer import SpatialGatingUnit
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.graph import channel_graph
from nni_sparsevd.masks import apply_masks_, mask_group_channels_
from nni_sparsevd.recipe import Recipe
from nni_sparsevd.results import finish_run
from nni_sparsevd.settings import make_settings
from nni_sparsevd.shrinking import PaddedNorm, apply_plan_, gradient_difference, make_plan
from nni_sparsevd.testing import relative_difference
from nni_sparsevd.training import compress

TOKENS = torch.zeros(2, 5, 12, dtype=torch.float64)


class OwnNorm(nn.Module):
    """RMS norm as language models write it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class SpreadNorm(nn.Module):
    """Centered and scaled with the operators of a beginner."""

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(1, keepdim=True)
        return centered / (centered.pow(2).sum(1, keepdim=True) + 1.0).sqrt()


def between(norm: nn.Module) -> tuple[nn.Module, Tensor]:
    """A norm between two convolutions."""
    return nn.Sequential(nn.Conv2d(3, 12, 1), norm, nn.SiLU(), nn.Conv2d(12, 4, 3, padding=1)), image()


def between_tokens(norm: nn.Module) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(12, 12), norm, nn.GELU(), nn.Linear(12, 4)), TOKENS


KINDS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "group norm": lambda: between(nn.GroupNorm(3, 12)),
    "group norm of one group": lambda: between(nn.GroupNorm(1, 12)),
    "group norm with an activation inside": lambda: between(GroupNormAct(12, num_groups=4)),
    "instance norm": lambda: between(nn.InstanceNorm2d(12, affine=True)),
    "RMS norm": lambda: between_tokens(nn.RMSNorm(12)),
    "timm's RMS norm": lambda: between_tokens(RmsNorm(12)),
    "RMS norm of operators": lambda: between_tokens(OwnNorm(12)),
    "batch norm of tokens": lambda: (
        nn.Sequential(nn.Linear(12, 12), nn.GELU(), nn.Flatten(0, 1), nn.BatchNorm1d(12), nn.Linear(12, 4)), TOKENS),
    "global response norm": lambda: (
        nn.Sequential(nn.Conv2d(3, 12, 1), nn.GELU(), GlobalResponseNorm(12, channels_last=False),
                      nn.Conv2d(12, 4, 3, padding=1)), image()),
    "spatial gating": lambda: (
        nn.Sequential(nn.Linear(12, 16), nn.GELU(), SpatialGatingUnit(16, 5), nn.Linear(8, 4)), TOKENS),
}  # fmt: skip


def masked(make: Callable[[], tuple[nn.Module, Tensor]]) -> tuple[nn.Module, Tensor, int]:
    """Every second channel of each free group is a constant, most of them not 0 where the norm's input is."""
    model, x = make()
    prepared(model)
    graph = channel_graph(model, x, remember_norms=True)
    masks: svd.Masks = {}
    dead = 0
    for group in graph.groups:
        if not group.pinned:
            mask_group_channels_(masks, model, graph, group, group.channels[1::2])
            dead += len(group) // 2
    apply_masks_(model, masks)
    return model, x, dead


@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_remembers_exactly(kind: str) -> None:
    model, x, dead = masked(KINDS[kind])
    if kind not in ("global response norm", "spatial gating"):
        with torch.no_grad():  # constants at the input of the norm; its own scale and shift make them others
            model[0].bias[1::2] = torch.linspace(-2.0, 2.0, 6)
    small, plan = svd.shrink(model, x, remember_norms=True)
    assert plan.removed == dead > 0
    assert gradient_difference(model, small, plan, x, training=False) < 1e-12
    assert relative_difference(model, small, x) < 1e-12
    assert svd.make_plan(small, x, remember_norms=True).removed == 0
    assert svd.shrink(model, x)[1].removed <= dead


@pytest.mark.parametrize("kind", ["group norm", "global response norm"])
def test_what_a_norm_remembers_goes_where_the_network_goes(kind: str, tmp_path: Path) -> None:
    model, x, _ = masked(KINDS[kind])
    small, plan = svd.shrink(model, x, remember_norms=True)
    assert any(isinstance(module, PaddedNorm) for module in small.modules())
    plan.save(tmp_path / "plan.json")
    again = apply_plan_(copy.deepcopy(model), svd.Plan.load(tmp_path / "plan.json"))
    svd.save(small, tmp_path / "small.safetensors")
    loaded = svd.load(tmp_path / "small.safetensors", model=prepared(KINDS[kind]()[0]))
    for twin in (again, loaded, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert relative_difference(small, twin, x) == 0
    forgetful = copy.deepcopy(small)
    norm = next(module for module in forgetful.modules() if isinstance(module, PaddedNorm))
    norm.removed_constants += 1.0
    assert relative_difference(small, forgetful, x) > 1e-6


def test_a_norm_without_parameters_remembers_where_nobody_reads() -> None:
    """Behind a norm without a scale a constant depends on the others, so it goes only where it is not read."""
    model, x = between(SpreadNorm())
    prepared(model)
    with torch.no_grad():
        model[0].weight[:4], model[0].bias[:4] = 0, 0.7
        model[3].weight[:, 2:6] = 0
    small, plan = svd.shrink(model, x, remember_norms=True)
    assert plan.removed == 2 and relative_difference(model, small, x) < 1e-12


REFUSED = {
    "called twice": Net(lambda m, x: m.b(m.norm(m.norm(m.a(x)))), a=nn.Linear(12, 12), norm=OwnNorm(12),
                        b=nn.Linear(12, 4)),
    "not a module": Net(lambda m, x: m.b(F.rms_norm(m.a(x), (12,))), a=nn.Linear(12, 12), b=nn.Linear(12, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_norm_that_no_other_can_take_the_place_of_keeps_its_channels(name: str) -> None:
    model = prepared(REFUSED[name])
    with torch.no_grad():
        model.a.weight[:4], model.a.bias[:4] = 0, 0
    plan = make_plan(model, TOKENS, remember_norms=True)
    assert plan.removed == 0 and plan.groups[0].reason.startswith(("mean", "rms_norm"))


@pytest.mark.parametrize("remember_norms", [False, True])
def test_a_run_shrinks_the_width_of_a_transformer_where_norms_remember(tmp_path: Path, remember_norms: bool) -> None:
    arguments = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    recipe = {
        "model": {"name": "vit_tiny_patch16_224", "arguments": arguments},
        "data": {"limit": 100, "batch_size": 30, "image_size": 8},
        "sparse": {"epochs": 1},
        "masks": {"structure": "structured", "ratio": 0.5, "scope": "layer", "remember_norms": remember_norms},
    }
    compressed = compress(make_settings(Recipe, recipe), tmp_path / "run", [])
    finish_run(compressed, tmp_path / "run")  # an error where the small network is not the masked one
    small = svd.load(tmp_path / "run" / "small.safetensors")
    assert (small.head.in_features < 16) == remember_norms
    x = compressed.example_inputs
    torch.testing.assert_close(small(x), compressed.masked(x), rtol=1e-4, atol=1e-5)
