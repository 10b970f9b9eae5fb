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
        `log_alpha`, `loss_rise` and `channel_macs` are there where the layer's output channels have posteriors; see
        `Sensitivity`.
    """
    costs = measure_layers({"dense": dense, "shrunk": small}, example)
    by_writer = {writer: account for account in sensitivities for writer in account["writers"]}
    rows = []
    for name, layer in dense.named_modules():
        weight = layer._parameters.get("weight")
        if weight is None or weight.dim() < 2:
            continue
        masked_weight = masked.get_submodule(name).get_parameter("weight")
        small_weight = small.get_submodule(name).get_parameter("weight")
        row = {"name": name, **_describe_weights(weight, masked_weight, small_weight, output_dim(layer)), "cost": {}}
        for network, costs_by_layer in costs.items():
            # A layer that never runs costs nothing.
            row["cost"][network] = asdict(costs_by_layer.get(name, LayerCost(0, 0.0)))
        if name in by_writer:
            # A resumed run may have written its sensitivities with a version that did not count `channel_macs`.
            row |= {key: by_writer[name].get(key) for key in ("log_alpha", "loss_rise", "channel_macs")}
        rows.append(row)
    return rows


def _describe_weights(dense: Tensor, masked: Tensor, small: Tensor, output_dim: int) -> dict[str, Any]:
    """What is left of the weights of a layer, which has them along `output_dim` for each of its outputs."""
    input_dim = 1 - output_dim
    all_but_inputs = [dim for dim in range(small.dim()) if dim != input_dim]
    kept = int(masked.count_nonzero())
    return {
        "shape": list(dense.shape),
        "weights": dense.numel(),
        "kept": kept,
        "sparsity": 1 - kept / dense.numel(),
        "inputs": int((small != 0).any(all_but_inputs).sum()),
        "outputs": small.shape[output_dim],
        "outputs_before": dense.shape[output_dim],
    }
