"""The laws of shrinking on networks that nobody wrote: two to five operators and dead channels drawn at random.

Shrunk equals masked; planning again finds nothing; whatever was removed was killed or useless.  A network that fails is
reduced by hypothesis to the smallest that does.
"""

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shrinking import image, prepared
from torch import Tensor, nn

from nni_sparsevd import channel_graph
from nni_sparsevd.masks import apply_masks_
from nni_sparsevd.studies.zoo.trials import mask_channels
from nni_sparsevd.testing import assert_shrinks_exactly

Step = Callable[[Tensor], Tensor]


class Drawn(nn.Module):
    """Steps on a map of features; each makes its layers for the number of channels that it meets."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.parts = nn.ModuleList()
        channels = 12
        for name in names:
            part = PARTS[name](channels)
            channels = part(torch.zeros(1, channels, 8, 8)).shape[1]
            self.parts.append(part)
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for part in self.parts:
            x = part(x)
        return self.head(x.mean((2, 3)))


class Part(nn.Module):
    """Modules by name, and what to do with them."""

    def __init__(self, forward: Callable[["Part", Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.what = forward
        self.heads, self.width = 3, 12

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self, x)


class Attention(nn.Module):
    """As timm writes it: fused queries, keys and values, sizes from attributes."""

    def __init__(self, channels: int, scale: float | None) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim, self.scale = 3, 4, 12, scale
        self.qkv, self.proj = nn.Linear(channels, 36), nn.Linear(12, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        parts = self.qkv(tokens).reshape(batch, -1, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        if self.scale is None:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(batch, -1, self.attn_dim))
        return x + y.transpose(1, 2).reshape(batch, channels, height, width)


def conv(channels: int, outputs: int, *settings: int, **named: int) -> nn.Conv2d:
    return nn.Conv2d(channels, outputs, *settings, **named)


PARTS: dict[str, Callable[[int], nn.Module]] = {
    "pointwise": lambda c: conv(c, 9, 1),
    "padded": lambda c: conv(c, 8, 3, padding=1),
    "valid": lambda c: nn.Sequential(conv(c, 10, 3), nn.ReLU()),
    "depthwise": lambda c: nn.Sequential(conv(c, 2 * c, 3, padding=1, groups=c), nn.Hardswish()),
    "grouped": lambda c: nn.Sequential(conv(c, 12, 1), nn.ReLU(), conv(12, 18, 3, padding=1, groups=3), nn.SiLU()),
    "batch norm": lambda c: nn.Sequential(nn.BatchNorm2d(c), nn.ReLU()),
    "group norm": lambda c: nn.GroupNorm(1, c),
    "instance norm": lambda c: nn.InstanceNorm2d(c, affine=True),
    "sigmoid": lambda c: nn.Sigmoid(),
    "prelu": lambda c: nn.PReLU(c),
    "residual": lambda c: Part(
        lambda m, x: x + m.norm(m.inner(x)), inner=conv(c, c, 3, padding=1), norm=nn.BatchNorm2d(c)
    ),
    "squeeze and excite": lambda c: Part(
        lambda m, x: x * torch.sigmoid(m.up(F.relu(m.down(x.mean((2, 3), keepdim=True))))),
        down=conv(c, 4, 1),
        up=conv(4, c, 1),
    ),
    "concatenation": lambda c: Part(
        lambda m, x: torch.cat([m.left(x), x, F.relu(m.right(x))], 1),
        left=conv(c, 4, 1),
        right=conv(c, 6, 3, padding=1),
    ),
    "gated": lambda c: Part(lambda m, x: torch.mul(*m.up(x).chunk(2, 1)), up=conv(c, 16, 1)),
    "split": lambda c: Part(
        lambda m, x: torch.cat([m.first(a := m.up(x).split([6, 4], 1)[0]), a], 1),
        up=conv(c, 10, 1),
        first=conv(6, 5, 1),
    ),
    "max pool": lambda c: nn.MaxPool2d(3, 1, 1),
    "average pool": lambda c: nn.AvgPool2d(2, 1),
    "resize": lambda c: nn.Upsample(size=(8, 8), mode="bilinear"),
    "pixel shuffle": lambda c: nn.Sequential(conv(c, 16, 1), nn.PixelShuffle(2), nn.PixelUnshuffle(2)),
    "channel shuffle": lambda c: Part(
        lambda m, x: m.up(x).unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2), up=conv(c, 12, 1)
    ),
    "transposed": lambda c: nn.ConvTranspose2d(c, 7, 2, (2, 1)),
    "layer norm": lambda c: Part(lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(c)),
    "mlp": lambda c: Part(
        lambda m, x: x + m.down(F.gelu(m.up(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2),
        up=nn.Linear(c, 14),
        down=nn.Linear(14, c),
    ),
    "attention": lambda c: Attention(c, None),
    "attention, scale given": lambda c: Attention(c, 0.5),
    "flip and repeat": lambda c: Part(
        lambda m, x: m.mix(torch.cat([x.flip(1), x.repeat(1, 2, 1, 1)], 1)), mix=conv(3 * c, 8, 1)
    ),
    "stack": lambda c: Part(
        lambda m, x: torch.stack([m.left(x), m.right(x)], 1).sum(1), left=conv(c, 8, 1), right=conv(c, 8, 1)
    ),
    "twice": lambda c: Part(lambda m, x: m.same(m.same(x)), same=conv(c, c, 1)),
    "in place": lambda c: Part(lambda m, x: m.up(x).relu_().add_(1.0), up=conv(c, 9, 1)),
    "written in part": lambda c: Part(
        lambda m, x: torch.cat([m.up(x), x], 1).index_fill_(1, torch.tensor([2]), 0.0), up=conv(c, 5, 1)
    ),
    "scaled": lambda c: Part(
        lambda m, x: m.by["scale"] * x / 2 - m.by["scale"], by=nn.ParameterDict({"scale": torch.ones(c, 1, 1)})
    ),
}


def assert_laws(names: list[str], kill: str, seed: int) -> None:
    model = prepared(Drawn(names))
    masks, _ = mask_channels(model, channel_graph(model, image()), kill, seed)
    apply_masks_(model, masks)
    assert_shrinks_exactly(model, image())


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    names=st.lists(st.sampled_from(sorted(PARTS)), min_size=2, max_size=5),
    kill=st.sampled_from(["half", "random"]),
    seed=st.integers(0, 2**16),
)
def test_networks_drawn_at_random(names: list[str], kill: str, seed: int) -> None:
    assert_laws(names, kill, seed)


@pytest.mark.parametrize("seed", range(2))
def test_every_part_between_others(seed: int) -> None:
    """Hypothesis draws some parts often and others never: here each is drawn once a seed."""
    names = sorted(PARTS)
    random.Random(seed).shuffle(names)
    for first in range(0, len(names), 3):
        assert_laws(names[first : first + 3], ("half", "random")[(first + seed) % 2], seed)
