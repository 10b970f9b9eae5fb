"""What the posterior says about its own predictions: networks drawn from it, and their mean, spread and entropy."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .convert import bake_
from .errors import ModelError
from .masks import Masks
from .nn import ChannelGate, is_variational, named_posteriors


@dataclass(frozen=True)
class Prediction:
    """The predictive distribution of a classifier, over networks drawn from its posterior."""

    probabilities: Tensor
    """Mean over the networks, shape (inputs, classes)."""
    entropy: Tensor
    """Of that mean, in nats, shape (inputs,): all that is uncertain."""
    disagreement: Tensor
    """Mutual information of class and weights, in nats, shape (inputs,): what the networks disagree on.

    The rest of the entropy is what each network by itself is unsure of.
    """


def sample_network(model: nn.Module, masks: Masks | None = None) -> nn.Module:
    """Draw an ordinary network from the posterior of `model`, which stays as it is; what `masks` remove is zero.

    Uses torch's global random state.  Raises `ModelError` without posteriors, `MaskError` for masks that do not fit.
    """
    if not is_variational(model):
        raise ModelError(f"{type(model).__name__} has no posterior to draw from; call sparsify_ first")
    drawn = copy.deepcopy(model)
    with torch.no_grad():
        for _, module in named_posteriors(drawn):
            mean = module.mu if isinstance(module, ChannelGate) else module.weight
            mean.add_((0.5 * module.log_sigma2).exp() * torch.randn_like(mean))
    return bake_(drawn, {} if masks is None else masks, allow_empty=True)


def predict(model: nn.Module, inputs: Tensor, samples: int = 20, masks: Masks | None = None) -> Prediction:
    """Predict the classes of `inputs` by `samples` networks drawn from the posterior, each in evaluation mode.

    `model` returns logits of shape (inputs, classes).  With `masks` the pruned posterior speaks.  Raises `ModelError`
    without posteriors or for less than one sample.
    """
    if samples < 1:
        raise ModelError(f"samples: at least one network must be drawn, found {samples}")
    total = own = torch.zeros(())
    with torch.no_grad():
        for _ in range(samples):
            logits = sample_network(model, masks).eval()(inputs).double()
            total = total + logits.softmax(-1) / samples
            own = own + _entropy(logits.softmax(-1)) / samples
    entropy = _entropy(total)
    return Prediction(total, entropy, (entropy - own).clamp_min(0))


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(-1)  # type: ignore[no-any-return]
