"""What the pruners of all hosts can be told about posteriors and their training."""

import math

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from ..recipe import Fraction, PosteriorSettings, Settings


class SparseVDSettings(Settings):
    """How the posteriors are made and trained; one value, also the search space of a sweep."""

    posterior: PosteriorSettings = PosteriorSettings()
    """Prior, noise estimator, granularity (weight, gate, both), first log sigma^2 and threshold on log alpha."""
    n_train: PositiveInt | None = None
    """Training samples N in loss + KL / N; nothing: asked of the evaluator, else the samples of the run."""
    kl_coefficient: NonNegativeFloat = 1.0
    """Weight of the KL in units of 1/N; 1 is the evidence lower bound."""
    warmup: Fraction = 0.2
    """Part of the training in which the KL's weight rises linearly from 0."""
    learning_rate: PositiveFloat = 1e-3
    """Rate of the variances' own Adam; falls linearly to 0.  The weights stay with the user's optimizer."""
    gate_rate: PositiveFloat = 10.0
    """Rate of gates, as a multiple of it."""

    @property
    def share_at_threshold(self) -> float:
        """The signal's share of the power, 1 / (1 + alpha), where log alpha is the threshold."""
        return 1 / (1 + math.exp(self.posterior.threshold))

    def ramp(self, progress: float) -> float:
        """Factor on the KL in the warm-up, from 0 to 1; `progress` is the part of the training that is done."""
        return min(1.0, progress / self.warmup) if self.warmup else 1.0
