"""The objective of every training, mean loss + weight * KL, and the one place that computes the weight.

A training loop takes two steps: it asks for the weight (`SparseVDSettings.kl_weight_now` where the settings know the
warm-up, `kl_weight_now` where the loop has a schedule of its own), and then either adds the gradient of weight * KL
after backward (`nni_sparsevd.regularize_`, half the cost) or adds weight * KL to the loss (`add_kl_to_loss`).
"""

from torch import Tensor


def kl_weight_now(coefficient: float, n_train: int, *, ramp: float = 1.0, loss_scale: float = 1.0) -> float:
    """Weight of the KL beside a loss that is a mean over samples: coefficient * ramp / N * loss_scale.

    The negative evidence lower bound, divided by N, is mean loss + KL / N (Molchanov et al. 2017, eq. 3 and 4): the
    weight is 1 / N where the coefficient is 1 and the warm-up is over.

    Args:
        coefficient: The KL's weight in units of 1 / N.
        n_train: The number N of training samples.
        ramp: The warm-up's factor, from 0 to 1.
        loss_scale: The factor of a loss scaler (float16) that the gradients still carry, else 1.

    Returns:
        The weight, in units of the loss per nat.
    """
    return coefficient * ramp / n_train * loss_scale


def add_kl_to_loss(loss: Tensor, kl: Tensor, weight: float) -> Tensor:
    """Loss + weight * KL, for a host that allows nothing between backward and the optimizer's step.

    Args:
        loss: The mean loss of a batch, a scalar.
        kl: The KL in nats, a scalar with gradient, on any device.
        weight: What `kl_weight_now` has returned. At 0 the KL stays in the graph: DistributedDataParallel waits for a
            gradient of every parameter that it knows.

    Returns:
        A scalar of the loss's type on the loss's device.
    """
    return loss + (weight * kl).to(loss)
