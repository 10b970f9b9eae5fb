"""Small networks with operators that depend on the size of the input, drawn at random; run as a script it counts them.

`python tests/drawn_sizes.py --networks 1000 --seed 0` prints how many were shrunk, kept whole, refused and wrong.
"""

import argparse
import random
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nni_sparsevd as svd

Step = Callable[[Tensor], Tensor]
"""From a tensor of shape (batch, channels, *places) to one of the same channels with at least one place left."""


def _positions(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)


def _pad_to_multiple(x: Tensor) -> Tensor:
    return F.pad(x, (0, -x.shape[-1] % 4))


def _pad_if_odd(x: Tensor) -> Tensor:
    return F.pad(x, (1, 0)) if x.shape[-1] % 2 else x


STEPS: dict[str, Step] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "sum": lambda x: x.sum(-1, keepdim=True),
    "sum_keeping_places": lambda x: x + x.sum(-1, keepdim=True),
    "sum_of_ones": lambda x: x * torch.ones_like(x).sum(-1, keepdim=True),
    "sum_over_batch": lambda x: x - x.sum(0, keepdim=True),
    "mean": lambda x: x.mean(-1, keepdim=True),
    "mean_of_all_places": lambda x: x - x.flatten(2).mean(-1).view(*x.shape[:2], *(1,) * (x.dim() - 2)),
    "mean_over_batch": lambda x: x - x.mean(0, keepdim=True),
    "cumulative_sum": lambda x: x.cumsum(-1),
    "norm": lambda x: x.norm(dim=-1, keepdim=True),
    "divided_by_norm": lambda x: x / (1 + x.norm(dim=-1, keepdim=True)),
    "variance": lambda x: x + x.var(-1, keepdim=True, correction=0),
    "largest": lambda x: x - 0.5 * x.amax(-1, keepdim=True),
    "logsumexp": lambda x: x.logsumexp(-1, keepdim=True),
    "divided_by_length": lambda x: x / x.shape[-1],
    "root_of_length": lambda x: x * x.shape[-1] ** -0.5,
    "plus_length": lambda x: x + 0.01 * x.shape[-1],
    "half_of_length": lambda x: x + 0.01 * (x.shape[-1] // 2),
    "parity_of_length": lambda x: x * (1 + x.shape[-1] % 2),
    "at_most_ten": lambda x: (x.sum(-1, keepdim=True)).clamp(max=10.0),
    "times_batch": lambda x: x * x.shape[0],
    "position_factor": lambda x: x * _positions(x),
    "position_shift": lambda x: x + _positions(x) / x.shape[-1],
    "last_position": lambda x: x * (1 + _positions(x)[-1]),
    "linspace": lambda x: x + torch.linspace(0, 1, x.shape[-1], dtype=x.dtype, device=x.device).mean(),
    "linspace_end": lambda x: x * torch.linspace(0, 1, x.shape[-1], dtype=x.dtype, device=x.device)[1:2].sum(),
    "full": lambda x: x + torch.full_like(x, 1 / x.shape[-1]),
    "new_full": lambda x: x * x.new_full((1,), x.shape[-1] / 7),
    "softmax": lambda x: x * x.softmax(-1),
    "padded": lambda x: F.pad(x, (1, 1)),
    "padded_to_multiple": _pad_to_multiple,
    "padded_if_odd": _pad_if_odd,
    "einsum": lambda x: torch.einsum("bc...t,t->bc...", x, _positions(x)).unsqueeze(-1),
    "matmul": lambda x: x @ torch.ones(x.shape[-1], 1, dtype=x.dtype, device=x.device),
    "product": lambda x: x * (1 + 0.1 * x.sigmoid()).prod(-1, keepdim=True),
}
"""What stands between two layers; each keeps the channels in dimension 1."""
LAYERS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Drawn(nn.Module):
    """Two convolutions of one tap or three, with steps around them, and a linear head on the sum or mean of places."""

    def __init__(self, places: int, steps: tuple[str, ...], generator: random.Random) -> None:
        super().__init__()
        kind, kernel = LAYERS[places], generator.choice([1, 1, 3])
        self.first = kind(3, 9, kernel, padding=kernel // 2 if generator.random() < 0.5 else 0)
        self.second = kind(9, 6, 1)
        self.head = nn.Linear(6, 4)
        self.steps, self.last = steps, generator.choice(["sum", "mean"])

    def forward(self, x: Tensor) -> Tensor:
        half = (len(self.steps) + 1) // 2
        x = self.first(x)
        for name in self.steps[:half]:
            x = STEPS[name](x)
        x = self.second(x)
        for name in self.steps[half:]:
            x = STEPS[name](x)
        x = x.flatten(2)
        return self.head(x.sum(-1) if self.last == "sum" else x.mean(-1))


def draw_network(places: int, steps: tuple[str, ...], seed: int) -> nn.Module:
    """A network in float64 in which about a third of the channels of both convolutions are constants."""
    generator = random.Random(seed)
    torch.manual_seed(seed)
    model = Drawn(places, steps, generator).double().eval()
    with torch.no_grad():
        for layer in (model.first, model.second):
            dead = torch.rand(layer.out_channels) < 0.35
            layer.weight[dead] = 0
            if generator.random() < 0.3:  # constants of 0 as well
                layer.bias[dead] = 0
    return model


def draw_image(places: int, size: int, batch: int, seed: int = 0) -> Tensor:
    """Random values, each place dimension a little longer than the one before."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, *(size + place for place in range(places)))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


SIZES_AND_BATCHES = ((8, 2), (5, 1), (13, 3))


def worst_difference(model: nn.Module, small: nn.Module, places: int) -> float:
    """The largest relative difference of two networks over three sizes and batches."""
    worst = 0.0
    for size, batch in SIZES_AND_BATCHES:
        x = draw_image(places, size, batch, seed=size)
        with torch.no_grad():
            expected, computed = model(x), small(x)
        worst = max(worst, float((expected - computed).abs().max() / (1e-12 + expected.abs().max())))
    return worst


def judge(places: int, steps: tuple[str, ...], seed: int) -> str:
    """Shrink one network: "shrunk", "kept whole", "refused" or "wrong"."""
    model = draw_network(places, steps, seed)
    try:
        small, plan = svd.shrink(model, draw_image(places, *SIZES_AND_BATCHES[0]))
    except svd.SparseVDError:
        return "refused"
    difference = worst_difference(model, small, places)
    if not difference < 1e-9:
        return "wrong"
    return "shrunk" if plan.removed else "kept whole"


def main() -> None:
    """Draw networks and count what becomes of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    counts: Counter[str] = Counter()
    for number in range(options.networks):
        places = generator.choice([1, 1, 2, 3])
        steps = tuple(generator.choices(sorted(STEPS), k=generator.randint(1, 4)))
        verdict = judge(places, steps, options.seed + number)
        counts[verdict] += 1
        if verdict in ("wrong", "refused"):
            print(verdict, places, steps, options.seed + number, flush=True)
    print(f"seed {options.seed}: {options.networks} networks, {dict(counts)}")


if __name__ == "__main__":
    main()
