"""What the posterior says about its own predictions: networks drawn from it, and their mean, spread and entropy."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .convert import bake_
from .errors import ModelError
from .graph import Inputs, as_arguments, copy_module, name_leaves
from .masks import Masks
from .nn import ChannelGate, is_variational, named_posteriors


@dataclass(frozen=True)
class Prediction:
    """The predictive distribution of a classifier, over networks drawn from its posterior.

    Example:
        ```python
        import nni_sparsevd as svd
        import torch
        from torch import nn

        model = svd.sparsify_(nn.Linear(8, 3))
        prediction = svd.predict(model, torch.randn(5, 8))
        assert (prediction.disagreement <= prediction.entropy).all()
        ```
    """

    probabilities: Tensor
    """Mean of the class probabilities over the networks, shape (inputs, classes)."""
    entropy: Tensor
    """Entropy of that mean, in nats, shape (inputs,): the whole uncertainty."""
    disagreement: Tensor
    """Mutual information of class and weights, in nats, shape (inputs,): the part of the entropy on which the networks
    disagree.

    The rest of the entropy is what each network by itself is unsure of.
    """


def sample_network(model: nn.Module, masks: Masks | None = None) -> nn.Module:
    """Draw an ordinary network from the posterior of a variational one.

    The random numbers come from torch's global generator.

    Args:
        model: A variational network; it stays as it is.
        masks: What to set to zero in the drawn network; None: nothing.

    Returns:
        A new network with ordinary layers.

    Raises:
        ModelError: The network has no posterior.
        MaskError: The masks do not fit the network.

    Example:
        ```python
        import nni_sparsevd as svd
        from torch import nn

        model = svd.sparsify_(nn.Linear(8, 3))
        drawn = svd.sample_network(model, svd.compute_masks(model))
        assert type(drawn) is nn.Linear
        ```
    """
    if not is_variational(model):
        raise ModelError(f"{type(model).__name__} has no posterior to draw from; call sparsify_ first")
    drawn = copy_module(model)
    with torch.no_grad():
        for _, module in named_posteriors(drawn):
            if isinstance(module, ChannelGate):
                module.fix_(module.draw())
            else:
                noise = (0.5 * module.log_sigma2).exp() * torch.randn_like(module.weight)
                module.weight.add_(module.fill_fixed_row(noise, 0.0))
    return bake_(drawn, {} if masks is None else masks, allow_empty=True)


def predict(model: nn.Module, inputs: Inputs, samples: int = 20, masks: Masks | None = None) -> Prediction:
    """Predict classes with networks drawn from the posterior, each in evaluation mode.

    Args:
        model: A variational network that returns logits of shape (inputs, classes), alone or under the name "logits".
            It stays as it is.
        inputs: What the network is called with: a tensor of shape (inputs, ...), a tuple, a dict of keywords, or a pair
            (args, kwargs).
        samples: How many networks to draw.
        masks: What to set to zero in the drawn networks; None: nothing.

    Returns:
        Class probabilities, entropy and disagreement for each input.

    Raises:
        ModelError: The network has no posterior, `samples` is less than 1, or it is unclear which output is the logits.
        MaskError: The masks do not fit the network.

    Example:
        ```python
        import nni_sparsevd as svd
        import torch
        from torch import nn

        model = svd.sparsify_(nn.Linear(8, 3))
        prediction = svd.predict(model, torch.randn(5, 8), samples=10)
        assert prediction.probabilities.shape == (5, 3)
        ```
    """
    if samples < 1:
        raise ModelError(f"samples: at least one network must be drawn, found {samples}")
    probabilities = own_entropy = torch.zeros(())
    arguments = as_arguments(inputs)
    with torch.no_grad():
        for _ in range(samples):
            # Copies, because a network may write into its inputs, and all networks are to see the same.
            own_arguments = arguments.map_tensors(torch.clone)
            logits = _find_logits(own_arguments.call(sample_network(model, masks).eval())).double()
            own_probabilities = logits.softmax(-1)
            probabilities = probabilities + own_probabilities / samples
            own_entropy = own_entropy + _entropy(own_probabilities) / samples
    entropy = _entropy(probabilities)
    # Rounding may leave a mutual information of 0 slightly below 0.
    return Prediction(probabilities, entropy, (entropy - own_entropy).clamp_min(0))


def _find_logits(output: Any) -> Tensor:
    """The output named "logits", or the only tensor."""
    tensors = {name: leaf for name, leaf in name_leaves(output) if isinstance(leaf, Tensor)}
    if "logits" in tensors:
        return tensors["logits"]
    if len(tensors) != 1:
        raise ModelError(
            f"which output is the logits? Found {', '.join(tensors) or 'no tensor'}; name one of them logits"
        )
    return next(iter(tensors.values()))


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(-1)  # type: ignore[no-any-return]
