"""What keeps posteriors from learning in a loop of the user's own, said before its first step."""

import warnings

import torch
from torch import nn

from ..errors import SparseVDWarning
from ..nn import named_posteriors


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
    if any(variance.dtype in (torch.float16, torch.bfloat16) for variance in variances):
        _warn(
            f"{caller}: the variances are in half precision, where log sigma^2 = -10 has neighbors at a distance of "
            "0.01 to 0.06, and steps of the learning rate round to nothing: keep the network in float32, and let "
            "autocast compute in half precision"
        )


def _warn(message: str) -> None:
    warnings.warn(message, SparseVDWarning, stacklevel=4)
