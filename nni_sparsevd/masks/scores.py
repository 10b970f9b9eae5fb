"""What decides about a weight, a gate or a channel of weights: the higher its score, the sooner it goes.

There are three scores:

- Log alpha, the noise-to-signal ratio; of a channel log(sum sigma^2 / sum theta^2).
- With `threshold="evidence"` the change in log evidence when the weight or gate is fixed at zero; of a channel the sum
  over its weights, which are independent.
- With `criterion="opd"` minus the logarithm of P theta^2, where P is the precision of the posterior (OPD: Dhahri et al.
  2024, arXiv 2402.15978); of a channel P theta^2 is summed over its weights, as in the authors' code.  Here P is
  1 / sigma^2, so that the score of a single weight is its log alpha.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..nn import ChannelGate, Variational, named_posteriors
from ..posterior import REASONS_AGAINST_EVIDENCE, evidence_gain
from ..settings import MaskSettings

Summand = Callable[[Variational], Tensor]
"""A layer -> a float64 number for each of its weights, in the shape of the weight; 0 in a fixed row."""


@dataclass(frozen=True)
class ChannelScore:
    """How the score of a channel comes from its weights: numbers of each are summed, and the sums combined."""

    summands: tuple[Summand, ...]
    """What is summed over all weights that write the channel."""
    combine: Callable[..., Tensor]
    """The sums, one for each summand -> the score."""


def score_elements(posterior: Variational | ChannelGate, chosen: MaskSettings) -> Tensor:
    """Score every weight of a layer, or every channel of a gate."""
    if chosen.threshold != "evidence":
        return posterior.log_alpha()
    if isinstance(posterior, ChannelGate):
        return posterior.evidence_gain()
    return evidence_gain(posterior.log_alpha(), posterior.settings.prior)


def choose_channel_score(chosen: MaskSettings) -> ChannelScore:
    """Choose how channels without gates are scored."""
    if chosen.threshold == "evidence":
        return ChannelScore((_evidence_gain,), lambda gain: gain)
    # Without a ratio there is a threshold, and thresholds are on log alpha.
    if chosen.criterion == "opd" and chosen.ratio is not None:
        return ChannelScore((_precision_times_square,), lambda damage: -_log(damage))
    return ChannelScore((_variance, _square), lambda noise, signal: noise.log() - _log(signal))


def check_evidence(model: nn.Module) -> None:
    """Check that the evidence can decide about every posterior of a network.

    Raises:
        SettingError: A posterior was trained with a prior of which it cannot.
    """
    for name, posterior in named_posteriors(model):
        prior = posterior.settings.prior
        if isinstance(posterior, ChannelGate) and posterior.is_log_normal():
            continue  # its prior is log-uniform, whatever that of the weights is
        if prior in REASONS_AGAINST_EVIDENCE:
            raise SettingError(
                f"threshold='evidence' cannot decide about {name}, whose prior is {prior!r}: "
                f"{REASONS_AGAINST_EVIDENCE[prior]}; give a number, or train with prior='log_uniform'"
            )


def _evidence_gain(layer: Variational) -> Tensor:
    return layer.fill_fixed_row(evidence_gain(layer.log_alpha(), layer.settings.prior), 0.0)


def _precision_times_square(layer: Variational) -> Tensor:
    return layer.fill_fixed_row((-layer.log_alpha().double()).exp(), 0.0)


def _variance(layer: Variational) -> Tensor:
    return layer.fill_fixed_row(layer.log_sigma2.detach().double().exp().expand_as(layer.weight), 0.0)


def _square(layer: Variational) -> Tensor:
    theta: Tensor = layer.weight.detach()
    return layer.fill_fixed_row(theta.double().square(), 0.0)


def _log(values: Tensor) -> Tensor:
    return (values + torch.finfo(values.dtype).tiny).log()
