"""What each layer of a network costs before and after, and what its posterior says of it."""

from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from ..measure import LayerCost, measure_layers
from ..nn import output_dim


def describe_layers(
    dense: nn.Module, masked: nn.Module, small: nn.Module, example: Tensor, sensitivities: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Describe each layer that has weights of two dimensions or more; norms and biases are not counted anywhere.

    Args:
        dense: The network before Sparse VD.
        masked: The network with zeros where weights were removed, of the same layers.
        small: The shrunk network, of the same layers.
        example: One normalized image, shape (1, channels, height, width).
        sensitivities: What the posteriors say of the channels that they keep, from the run folder.

    Returns:
        One row a layer, as JSON has it: its name and shape, the weights of the dense layer and those that are kept,
        inputs (with a weight that is not zero) and outputs of the small layer, and for both networks the `cost`.
        `log_alpha` and `loss_rise` are there where the layer's output channels have posteriors; see `Sensitivity`.
    """
    costs = measure_layers({"dense": dense, "shrunk": small}, example)
    by_writer = {writer: account for account in sensitivities for writer in account["writers"]}
    rows = []
    for name, layer in dense.named_modules():
        weight = layer._parameters.get("weight")
        if weight is None or weight.dim() < 2:
            continue
        kept = int(masked.get_submodule(name).get_parameter("weight").count_nonzero())
        small_weight = small.get_submodule(name).get_parameter("weight")
        out = output_dim(layer)
        all_but_inputs = [dim for dim in range(small_weight.dim()) if dim != 1 - out]
        row: dict[str, Any] = {
            "name": name,
            "shape": list(weight.shape),
            "weights": weight.numel(),
            "kept": kept,
            "sparsity": 1 - kept / weight.numel(),
            "inputs": int((small_weight != 0).any(all_but_inputs).sum()),
            "outputs": small_weight.shape[out],
            "outputs_before": weight.shape[out],
            # A layer that never runs costs nothing.
            "cost": {network: asdict(layers.get(name, LayerCost(0, 0.0))) for network, layers in costs.items()},
        }
        if name in by_writer:
            row |= {key: by_writer[name][key] for key in ("log_alpha", "loss_rise")}
        rows.append(row)
    return rows
