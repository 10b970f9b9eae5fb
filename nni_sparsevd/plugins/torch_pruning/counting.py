"""What Torch-Pruning's counter of operations must know of posteriors: they cost nothing in the network that ships."""

from collections.abc import Callable
from typing import Any

from torch import nn

from ...nn import is_variational, make_plain_copy

Count = Callable[..., Any]
"""Torch-Pruning's `count_ops_and_params`."""


def count_plain_networks(host_count: Count) -> Count:
    """Make a `count_ops_and_params` that counts a network with posteriors as the ordinary network that it is without.

    The host's counter goes by the exact type of a layer, so that a layer with a posterior counts nothing, and it counts
    variances and gates as parameters.

    Args:
        host_count: Torch-Pruning's function.
    """

    def count_ops_and_params(model: nn.Module, example_inputs: Any, layer_wise: bool = False) -> Any:
        if not is_variational(model):
            return host_count(model, example_inputs, layer_wise)
        plain = make_plain_copy(model)
        counts = host_count(plain, example_inputs, layer_wise)
        if not layer_wise:
            return counts
        macs, parameters, *by_layer = counts
        # The caller looks the layers of his own network up; its gates have no counterpart.
        counterparts = dict(plain.named_modules())
        own_layers = [(layer, counterparts.get(name)) for name, layer in model.named_modules()]
        own_counts = []
        for count in by_layer:
            own_counts.append({layer: count.get(counterpart) for layer, counterpart in own_layers})
        return macs, parameters, *own_counts

    return count_ops_and_params
