"""Tables that are looked up by whole numbers, and what modules or calls keep from one run to the next."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nni_sparsevd as svd

X = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))


class Table(nn.Module):
    """Relative positions by whole numbers, as in T5."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.read, self.out = nn.Embedding(9, 8), nn.Linear(5, 8), nn.Linear(8, 3)

    def look_up(self, length: int) -> Tensor:
        places = torch.arange(length)
        return self.table((places > 2).long() * 4 + places.clamp(max=3))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.read(x) + self.look_up(x.shape[1])))


class LogBuckets(Table):
    """Distances in buckets that grow."""

    def look_up(self, length: int) -> Tensor:
        places = torch.arange(length)
        distance = (places[None] - places[:, None]).abs()
        far = (4 + distance.float().clamp(min=1).log2()).long().clamp(max=8)
        return self.table(torch.where(distance < 4, distance, far)).mean(1)


class KeepsPlaces(Table):
    """Places are kept, and made anew for a longer input."""

    places: Tensor | None = None

    def look_up(self, length: int) -> Tensor:
        if self.places is None or len(self.places) < length:
            self.places = torch.arange(length).clamp(max=8)
        return self.table(self.places[:length])


class KeepsRows(Table):
    """What was looked up is kept for each length, with its history."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, Tensor] = {}

    def look_up(self, length: int) -> Tensor:
        if length not in self.kept:
            self.kept[length] = super().look_up(length)
        return self.kept[length]


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", [Table, LogBuckets, KeepsPlaces, KeepsRows])
def test_a_table_of_whole_numbers_is_exact_at_every_length(kind: Callable[[], Any], used: bool) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    with torch.no_grad():
        model.read.weight[::3] = 0
        model.read.bias[::3] = 0
        model.table.weight[:, ::3] = 0
    if used:
        model(X).sum().backward()
        model(X[:, :3])
    small, plan = svd.shrink(model, X)
    if used and kind is KeepsRows:  # the kept rows have the old width
        assert plan.removed == 0 and plan.groups[0].reason == "add with something that is no channel"
    else:
        assert plan.removed == 3
    for length in (6, 2, 9, 1):
        x = torch.randn(3, length, 5)
        torch.testing.assert_close(small(x), model(x))


def make_llama(transformers: Any, use_cache: bool) -> nn.Module:
    width = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, use_cache=use_cache, **width))


def make_t5(transformers: Any, use_cache: bool) -> nn.Module:
    width = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 1, "num_heads": 3}
    return transformers.T5EncoderModel(transformers.T5Config(vocab_size=50, use_cache=use_cache, **width))


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("make", [make_llama, make_t5])
def test_language_models_shrink_with_their_caches(make: Callable[..., nn.Module], use_cache: bool) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = make(transformers, use_cache).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("up_proj.weight", "wi.weight")):
                parameter[::4] = 0
    ids = torch.randint(0, 50, (2, 9))
    small, plan = svd.shrink(model, ids)
    assert plan.removed in (10, 20)  # a quarter of 40 in each block
    with torch.no_grad():
        torch.testing.assert_close(small(ids[:, :5])[0], model(ids[:, :5])[0])


@lru_cache(maxsize=8)
def make_waves(tokens: int, width: int, device: torch.device) -> torch.Tensor:
    return torch.arange(tokens, device=device)[:, None] / torch.arange(1, width + 1, device=device)


@lru_cache(maxsize=8)
def make_step(device: torch.device) -> torch.Tensor:
    return torch.ones((), device=device) + 1


class Positions(nn.Module):
    """Tables of positions that functions remember: they are computed in the first call only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.heads = nn.Linear(4, 8), nn.Linear(8, 3), 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + make_waves(x.shape[1], 4, x.device) * make_step(x.device)
        hidden = self.first(x).sigmoid().view(*x.shape[:2], self.heads, -1).flatten(2)
        return self.second(hidden)


def test_tables_that_functions_remember_take_no_channels_away() -> None:
    make_waves.cache_clear()
    make_step.cache_clear()
    model = Positions().double()
    with torch.no_grad():
        model.first.weight[[1, 5]] = 0  # one dimension of both heads
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    small, plan = svd.shrink(model, x)
    assert plan.removed == 1 and small.first.out_features == 6
    torch.testing.assert_close(small(x), model(x))
