"""The settings of posteriors and of their training, the same in every host."""

import math

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from ..errors import SettingError
from ..settings import Fraction, PosteriorSettings, Settings
from .objective import kl_weight_now


class SparseVDSettings(Settings):
    """How the posteriors are made and how they are trained: the `settings` of both pruners and both callbacks.

    Settings are immutable, and an unknown key is an error. The search space of a sweep is a dictionary of these keys.
    """

    posterior: PosteriorSettings = PosteriorSettings()
    """Prior, noise estimator, granularity (weight, gate, both), first log sigma^2 and threshold on log alpha."""
    n_train: PositiveInt | None = None
    """Number N of training samples in loss + KL / N; None: the data loader or the evaluator is asked, where a host has
    one, and NNI's pruner falls back on the samples of the run."""
    kl_coefficient: NonNegativeFloat = 1.0
    """Weight of the KL in units of 1/N; 1 is the evidence lower bound."""
    warmup: Fraction = 0.2
    """Part of the training in which the KL's weight rises linearly from 0."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate of the variances' own Adam; falls linearly to 0. The weights stay with the user's optimizer."""
    gate_rate: PositiveFloat = 10.0
    """Learning rate of gates, as a multiple of the variances' `learning_rate`."""

    @property
    def share_at_threshold(self) -> float:
        """The signal's share of the power, 1 / (1 + alpha), where log alpha is the threshold."""
        return 1 / (1 + math.exp(self.posterior.threshold))

    def ramp(self, progress: float | None) -> float:
        """Factor on the KL in the warm-up.

        Args:
            progress: The part of the training that is done, from 0 to 1; None where the end is not known.

        Returns:
            A factor from 0 to 1; 1 where the end is not known, since nothing says how long a warm-up would be.
        """
        if progress is None or not self.warmup:
            return 1.0
        return min(1.0, progress / self.warmup)

    def kl_weight_now(self, progress: float | None, n_train: int, *, loss_scale: float = 1.0) -> float:
        """Weight of the KL beside the mean loss: kl_coefficient * ramp / N * loss_scale.

        Args:
            progress: The part of the training that is done, from 0 to 1; None where the end is not known.
            n_train: The number N of training samples.
            loss_scale: The factor of a loss scaler (float16) that the gradients still carry, else 1.

        Returns:
            The weight, in units of the loss per nat.
        """
        return kl_weight_now(self.kl_coefficient, n_train, ramp=self.ramp(progress), loss_scale=loss_scale)


def settings_or_defaults(caller: str, settings: object) -> SparseVDSettings:
    """The `settings` of a call.

    Args:
        caller: What is called, as the message names it.
        settings: A `SparseVDSettings`; None: the defaults.

    Raises:
        SettingError: It is anything else.
    """
    if settings is None:
        return SparseVDSettings()
    if not isinstance(settings, SparseVDSettings):
        hint = "posterior=..., n_train=..." if isinstance(settings, PosteriorSettings) else "n_train=..., ..."
        raise SettingError(
            f"{caller}: settings has to be a SparseVDSettings({hint}), found a {type(settings).__name__}"
        )
    return settings
