"""What keeps posteriors from learning in a loop of the user's own, and whether they have learned at its end."""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..errors import SparseVDWarning
from ..nn import named_posteriors

LEAST_RISE = 0.05
"""By how much the KL alone raises log sigma^2 on average in any training that is worth its name."""


def warn_before_first_step(caller: str, model: nn.Module) -> None:
    """Warn where the posteriors of a network cannot learn from its loss; nothing else would say so.

    Call it where the KL is about to join the gradients of a loss for the first time.

    Args:
        caller: What regularizes the network, as the warnings name it.
        model: The network.
    """
    learning = [module for _, module in named_posteriors(model) if module.log_sigma2.requires_grad]
    if not learning:
        return
    variances = [module.log_sigma2 for module in learning]
    if not any(module.training for module in learning):
        _warn(
            f"{caller}: the network is in evaluation mode, so it computes without noise, and the loss says nothing "
            "about the variances: call model.train() before the loop"
        )
    elif all(variance.grad is None for variance in variances):
        _warn(
            f"{caller}: backward has left no gradient at any variance, so the loss says nothing about them: regularize "
            "between loss.backward() and optimizer.step(), and train the very network that has the posteriors"
        )
    warn_of_half_precision(caller, variances)


def warn_of_half_precision(caller: str, variances: Iterable[Tensor]) -> None:
    """Warn where variances cannot move: around log sigma^2 = -10, float16 and bfloat16 know steps of 0.01 and 0.06.

    Args:
        caller: What regularizes the network, as the warning names it.
        variances: Log sigma^2 of posteriors.
    """
    if any(variance.dtype in (torch.float16, torch.bfloat16) for variance in variances):
        _warn(
            f"{caller}: the variances are in half precision, where steps of the learning rate round to nothing: keep "
            "the network in float32, and let autocast compute in half precision"
        )


def have_learned(variances: Iterable[Tensor], start: float, *, with_kl: bool) -> bool:
    """Whether a training has left its mark on variances.

    The noise of the gradients moves variances in any training, but nothing but the KL raises them all in all. So where
    no KL is known of, as after `load_state_dict`, they have learned only if they have risen.

    Args:
        variances: Log sigma^2 of all posteriors.
        start: What they were at first.
        with_kl: Whether the KL is known to have taken part.
    """
    values = torch.cat([variance.detach().flatten().double().cpu() for variance in variances])
    if with_kl:
        return bool((values != start).any())
    return float(values.mean()) > start + LEAST_RISE


def _warn(message: str) -> None:
    warnings.warn(message, SparseVDWarning, stacklevel=4)
