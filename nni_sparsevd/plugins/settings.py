"""What the pruners of all hosts can be told about posteriors and their training."""

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from ..recipe import Fraction, Posterior, Settings


class SparseVD(Settings):
    """How the posteriors are made and trained; one value, also the search space of a sweep."""

    posterior: Posterior = Posterior()
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
