"""Cutting to a budget: the ratio at which a network has the multiply-accumulates that are wanted."""

from collections.abc import Callable

from torch import Tensor, nn

from ..errors import ShrinkError
from ..report import macs

ROUNDS = 12
"""Of the bisection: to 1/4096 of the ratio."""


def cut_to(target: float, cut: Callable[[float], nn.Module], example: Tensor) -> tuple[nn.Module, float]:
    """(network, ratio): the largest of the networks `cut(ratio)` with at most `target` MACs.

    More is cut as the ratio rises.

    Raises `ShrinkError` where even the largest ratio leaves more.
    """
    low, high, best, cost = 0.0, 1.0, None, 0
    for _ in range(ROUNDS):
        ratio = (low + high) / 2
        small = cut(ratio)
        cost = macs(small, example)
        if cost <= target:
            high = ratio
            if best is None or cost > best[0]:
                best = cost, small, ratio
        else:
            low = ratio
    if best is None:
        raise ShrinkError(f"no ratio below 1 leaves {target:,.0f} MACs; {low:.4f} leaves {cost:,}")
    return best[1], best[2]
