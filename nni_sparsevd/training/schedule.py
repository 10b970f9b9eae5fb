"""How the learning rate and the coefficient of the KL change over a stage, and where its random numbers come from."""

import math
from hashlib import blake2b

from ..recipe import SparseStage, Stage

WARMUP_FROM = 0.01
"""Part of the peak rate at which a warm-up begins: at 0 the first step would be none."""


def learning_rate_at(stage: Stage, progress: float) -> float:
    """The rate rises up to `stage.warmup`, stays at its peak up to `stage.hold`, and falls to 0 from there.

    Args:
        stage: Has the peak rate and the schedule.
        progress: The part of the stage that is done, from 0 to 1.

    Returns:
        The rate, exactly 0 at the end.
    """
    if progress < stage.warmup:
        return stage.learning_rate * (WARMUP_FROM + (1 - WARMUP_FROM) * progress / stage.warmup)
    peak_until = max(stage.hold, stage.warmup)
    left = min(1.0, (1.0 - progress) / (1.0 - peak_until))
    if stage.schedule == "cosine" and 0 < left < 1:
        left = 0.5 * (1.0 - math.cos(math.pi * left))
    return stage.learning_rate * left


def kl_coefficient_at(stage: SparseStage, epoch: float) -> float:
    """The weight of the KL in units of 1/N: 0 up to `warmup_from`, linear, full from `warmup_to`.

    Args:
        stage: Has the full coefficient and both epochs of the warm-up.
        epoch: Epochs done, fractions included.

    Returns:
        A factor from 0 to `stage.kl_coefficient`.
    """
    if epoch >= stage.warmup_to:
        return stage.kl_coefficient
    if epoch <= stage.warmup_from:
        return 0.0
    return stage.kl_coefficient * (epoch - stage.warmup_from) / (stage.warmup_to - stage.warmup_from)


def derive_seed(*place: object) -> int:
    """A seed that is a function of `place` alone, e.g. (seed, stage, step, rank).

    Noise, order and augmentation are drawn from such seeds, so that a resumed run draws what it would have drawn.

    Args:
        place: Numbers and strings that say what the seed is for; other values give other seeds.

    Returns:
        A number of 56 bits.
    """
    return int.from_bytes(blake2b(repr(place).encode(), digest_size=7).digest(), "big")
