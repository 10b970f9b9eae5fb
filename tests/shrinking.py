"""What the tests of shrinking share: small networks, and ways in which their channels are dead.

The law itself is `nni_sparsevd.testing.assert_shrinks_exactly`.
"""

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from conftest import randomize_
from torch import Tensor, nn


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
    randomize_(model).double()
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


def half_constant(reader: nn.Module) -> nn.Module:
    """A sigmoid whose input has lost its weights: channel 2 is 0.5 whatever the image."""
    model = prepared(Net(lambda m, x: m.reader(m.first(x).sigmoid()), first=nn.Conv2d(3, 5, 1), reader=reader))
    with torch.no_grad():
        model.first.weight[2] = 0
        model.first.bias[2] = 0
    return model
