"""Cut a network to a budget: find the ratio at which it has the multiply-accumulates that are wanted."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ...errors import ShrinkError
from ...measure import count_macs

ROUNDS = 12
"""Rounds of the bisection: it finds the ratio to 1/4096."""
SCAN = 64
"""Number of ratios that are tried where the bisection finds none."""


@dataclass(frozen=True)
class _Candidate:
    macs: int
    network: nn.Module
    ratio: float


def cut_to(target: float, cut: Callable[[float], nn.Module], example: Tensor) -> tuple[nn.Module, float]:
    """Find the largest network within a budget.

    Args:
        target: The most multiply-accumulates that are allowed.
        cut: Ratio of channels to remove, between 0 and 1 -> the network without them.
        example: One input, (1, channels, height, width).

    Returns:
        The network, and the ratio that gave it.

    Raises:
        ShrinkError: No ratio leaves a network within the budget.
    """
    candidates: list[_Candidate] = []

    def is_within_budget(ratio: float) -> bool:
        network = cut(ratio)
        candidates.append(_Candidate(count_macs(network, example), network, ratio))
        return candidates[-1].macs <= target

    low, high = 0.0, 1.0
    for _ in range(ROUNDS):
        ratio = (low + high) / 2
        if is_within_budget(ratio):
            high = ratio
        else:
            low = ratio
    # A bisection needs a cost that falls as the ratio rises. A host that refuses to empty a layer leaves the layer
    # whole from some ratio on, so the ratios that fit may be an island that the bisection misses.
    if all(candidate.macs > target for candidate in candidates):
        for step in range(1, SCAN):
            is_within_budget(step / SCAN)
    within = [candidate for candidate in candidates if candidate.macs <= target]
    if not within:
        least = min(candidates, key=lambda candidate: candidate.macs)
        raise ShrinkError(f"no ratio leaves {target:,.0f} MACs; the least, at {least.ratio:.4f}, is {least.macs:,}")
    largest = max(within, key=lambda candidate: candidate.macs)
    return largest.network, largest.ratio
