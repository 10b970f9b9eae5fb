"""Cutting to a budget: the ratio at which a network has the multiply-accumulates that are wanted."""

from collections.abc import Callable

from torch import Tensor, nn

from ...errors import ShrinkError
from ...measure import count_macs

ROUNDS = 12
"""Of the bisection: to 1/4096 of the ratio."""
SCAN = 64
"""Ratios looked at where the bisection finds none."""


def cut_to(target: float, cut: Callable[[float], nn.Module], example: Tensor) -> tuple[nn.Module, float]:
    """(network, ratio): the largest of the networks `cut(ratio)` with at most `target` MACs.

    More is cut as the ratio rises, as a rule: a host that refuses to empty a layer leaves it whole from some ratio on.
    So where a bisection finds none, all ratios are looked through.

    Raises `ShrinkError` where every ratio leaves more.
    """
    tried: list[tuple[int, nn.Module, float]] = []

    def fits(ratio: float) -> bool:
        small = cut(ratio)
        tried.append((count_macs(small, example), small, ratio))
        return tried[-1][0] <= target

    low, high = 0.0, 1.0
    for _ in range(ROUNDS):
        ratio = (low + high) / 2
        low, high = (low, ratio) if fits(ratio) else (ratio, high)
    if all(cost > target for cost, _, _ in tried):
        for step in range(1, SCAN):
            fits(step / SCAN)
    within = [one for one in tried if one[0] <= target]
    if not within:
        cost, _, ratio = min(tried, key=lambda one: one[0])
        raise ShrinkError(f"no ratio leaves {target:,.0f} MACs; the least, at {ratio:.4f}, is {cost:,}")
    _, small, ratio = max(within, key=lambda one: one[0])
    return small, ratio
