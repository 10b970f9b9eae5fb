"""Variances of gates that follow the loss's curvature at the means: natural steps, which need no learning rate.

With Adam, log sigma^2 travels at most the learning rate a step: from -10 to 3 in 1,000 steps it takes a rate that lets
noise elsewhere outgrow the weights.  Natural gradient steps bring a posterior to rest within some tens of steps,
however far it has to go.

Khan et al.: Fast and Scalable Bayesian Deep Learning by Weight-Perturbation in Adam, ICML 2018.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..nn import ChannelGate, find_gates
from ..posterior import elements

RATE = 0.02
"""Weight of the newest batch in the mean of the curvature: a mean over about 50 batches."""
ITERATIONS = 6
"""Steps towards the variance that a curvature asks for; the distance is at least halved by each."""
LARGEST_LOG_SIGMA2 = 20.0
"""Where a channel has no influence on the loss, its variance would grow without end: up to here, or 1 below."""


def start_natural_steps_(model: nn.Module) -> list[ChannelGate]:
    """Freeze the gates' variances for the optimizer, and have the gates observe the gradient of the loss.

    The gates no longer draw noise: their variances are those of a Laplace approximation at the means.

    Args:
        model: A network with gates, changed in place; make its optimizer afterwards.

    Returns:
        The gates.
    """
    gates = find_gates(model)
    for gate in gates:
        gate.log_sigma2.requires_grad_(False)
        # The noise of all channels at once has broken networks: on 1,500 photos one fell from 58 to 8 % in an epoch.
        gate.observe_()
    return gates


def take_natural_steps_(
    gates: list[ChannelGate],
    batch_size: int,
    n_train: int,
    coefficient: float,
    steps_done: int,
    average: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Move the variances of gates after a backward pass of the mean loss.

    Args:
        gates: From `start_natural_steps_`; one that took no part in the forward pass stays as it is.
        batch_size: Samples in the batch.
        n_train: The number N of training samples.
        coefficient: Weight of the KL in units of 1 / N.
        steps_done: How many such steps were taken before; the first ones are a plain mean over the batches.
        average: Averages a tensor over several processes, each of which has seen a batch of its own.
    """
    rate = max(RATE, 1.0 / (steps_done + 1))
    for gate in gates:
        curvature = gate.take_curvature(batch_size)
        if curvature is None:
            continue
        if average is not None:
            curvature = average(curvature)
        if bool(curvature.isfinite().all()):
            gate.log_sigma2.data.copy_(_step(gate, n_train / coefficient * curvature, rate))


def _step(gate: ChannelGate, pull: Tensor, rate: float) -> Tensor:
    """Log sigma^2 after a step.

    1. The objective is N * loss + c * KL.  Its derivative by sigma^2 is N / 2 * curvature + c * slope / sigma^2, where
       slope = d KL / d log alpha: it is 0 where precision * (-2 slope) = N / c * curvature, the data's pull.
    2. -2 slope is 1 for small alpha: there the precision is the pull, and a step goes a part of the way to it (Khan et
       al. 2018, eq. 7).  For large alpha -2 slope goes to 0, which keeps alpha finite where the data hardly care.
    3. Why the mean is taken of the pull and not of the precision: a channel that seldom fires has a large alpha and a
       slope of nearly 0.  The one batch in which it fires would divide by that, and make it count more than all others.
    4. What mean has led to the present variance need not be remembered: it is precision * (-2 slope).
    5. The channels of a gate without influence would all come to rest at the same log alpha.  Where one of them leaves,
       all would, the last one, too: so each has a limit of its own.
    """
    with torch.no_grad():
        limit = LARGEST_LOG_SIGMA2 - torch.linspace(0, 1, len(gate.mu), device=gate.mu.device)  # 5
        before = _log_pull(gate, gate.log_sigma2).exp()
        wanted = _log((1 - rate) * before + rate * pull)
        # log(precision * (-2 slope)) falls by 1 to 2.5 with each unit of log sigma^2: half of the distance brings it
        # nearer by at least a half, and the steps of later batches go on.
        log_sigma2: Tensor = gate.log_sigma2
        for _ in range(ITERATIONS):
            log_sigma2 = log_sigma2 + (_log_pull(gate, log_sigma2) - wanted) / 2
            log_sigma2 = log_sigma2.minimum(limit)
        return log_sigma2


def _log_pull(gate: ChannelGate, log_sigma2: Tensor) -> Tensor:
    """Log of precision * (-2 slope): the pull of data that would hold the gate at this variance."""
    slope = elements.kl_slope(elements.log_alpha(gate.mu, log_sigma2), gate.settings.prior)
    return _log(-2 * slope) - log_sigma2


def _log(values: Tensor) -> Tensor:
    """The logarithm, and a very small number for 0."""
    return values.clamp_min(torch.finfo(values.dtype).tiny).log()
