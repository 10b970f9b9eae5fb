"""Counts against hand-written formulas, and latencies that leave the process as it was."""

import time

import pytest
import torch
from torch import Tensor, nn

from nni_sparsevd.measure import count_macs, count_parameters, measure_latencies

ROWS = [
    ("linear", nn.Linear(7, 5), (1, 7), 7 * 5),
    ("no bias", nn.Linear(7, 5, bias=False), (1, 7), 7 * 5),
    ("batch", nn.Linear(7, 5), (3, 7), 3 * 7 * 5),
    ("tokens", nn.Linear(7, 5), (1, 4, 7), 4 * 7 * 5),
    ("convolution", nn.Conv2d(3, 8, 3, padding=1), (1, 3, 6, 6), 8 * 3 * 9 * 36),
    ("stride", nn.Conv2d(3, 8, 3, stride=2, padding=1), (1, 3, 6, 6), 8 * 3 * 9 * 9),
    ("grouped", nn.Conv2d(8, 8, 3, padding=1, groups=4), (1, 8, 6, 6), 8 * 2 * 9 * 36),
    ("depthwise", nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 6, 6), 8 * 9 * 36),
    ("one dimension", nn.Conv1d(4, 6, 5), (1, 4, 20), 6 * 4 * 5 * 16),
    ("uncounted", nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)), (1, 4, 6, 6), 0),
]


@pytest.mark.parametrize(("model", "shape", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_macs_are_those_of_the_formula(model: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    assert count_macs(model, torch.randn(shape)) == expected


def test_attention_counts_projections_and_both_products() -> None:
    # torch's fused kernel for nn.MultiheadAttention in evaluation mode would otherwise hide from its counter
    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    tokens, width = 5, 8
    expected = 4 * tokens * width * width + 2 * tokens * tokens * width
    assert count_macs(SelfAttention(), torch.randn(1, tokens, width)) == expected


def test_a_shared_parameter_counts_once() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    assert count_parameters(nn.Sequential(first, second)) == 36 + 6 + 6


def test_counting_leaves_the_mode_of_the_network() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).train()
    count_macs(model, torch.randn(1, 3))
    measure_latencies({"one": model}, torch.randn(1, 3), rounds=1)
    assert all(module.training for module in model.modules())


class _Slow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        until = time.perf_counter() + 0.004
        while time.perf_counter() < until:
            pass
        return x


def test_latencies_rank_and_restore_the_threads() -> None:
    before = torch.get_num_threads()
    found = measure_latencies({"slow": _Slow(), "fast": nn.Identity()}, torch.randn(1, 3), rounds=5, threads=1)
    assert list(found) == ["slow", "fast"]
    assert found["slow"] >= 4 > 1 > found["fast"]
    assert torch.get_num_threads() == before


def test_threads_are_restored_after_a_failure() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        measure_latencies({"unfit": nn.Linear(4, 4)}, torch.randn(1, 3), threads=before + 1)
    assert torch.get_num_threads() == before


def test_a_clock_in_long_ticks_still_measures() -> None:
    found = measure_latencies(
        {"a": nn.Linear(2, 2)}, torch.ones(1, 2), 3, 1, lambda: time.perf_counter() // 2e-3 * 2e-3
    )
    assert 0 < found["a"] < 1
