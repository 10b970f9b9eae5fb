"""How the learning rate and the coefficient of the KL change over a stage, and where its random numbers come from."""

from hashlib import blake2b

from ..recipe import SparseStage, Stage


def learning_rate_at(stage: Stage, progress: float) -> float:
    """The peak rate while `progress` is at most `stage.hold`; from there it falls linearly to 0.

    Args:
        stage: Has the peak rate and `hold`.
        progress: The part of the stage that is done, from 0 to 1.

    Returns:
        The rate, exactly 0 at the end.
    """
    return stage.learning_rate * min(1.0, (1.0 - progress) / (1.0 - stage.hold))


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
