"""How the learning rate and the weight of the KL change over a stage, and where its random numbers come from."""

from hashlib import blake2b

from ..recipe import SparseStage, Stage


def learning_rate_at(stage: Stage, progress: float) -> float:
    """Hold the peak rate up to `hold`, from there linearly to 0; `progress` in [0, 1] of the stage."""
    return stage.learning_rate * min(1.0, (1.0 - progress) / (1.0 - stage.hold))


def kl_coefficient_at(stage: SparseStage, epoch: float) -> float:
    """0 up to `warmup_from`, linearly to `kl_coefficient` at `warmup_to`; `epoch` counts fractions."""
    if epoch >= stage.warmup_to:
        return stage.kl_coefficient
    if epoch <= stage.warmup_from:
        return 0.0
    return stage.kl_coefficient * (epoch - stage.warmup_from) / (stage.warmup_to - stage.warmup_from)


def derive_seed(*place: object) -> int:
    """Make a seed that is a function of the place alone, e.g. (seed, stage, step, rank).

    Noise, order and augmentation are drawn from such seeds, so a resumed run draws what it would have drawn.
    """
    return int.from_bytes(blake2b(repr(place).encode(), digest_size=7).digest(), "big")
