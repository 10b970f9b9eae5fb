"""The decision, as data: masks, {module name: {"weight" or "bias": tensor of 0 and 1}}.

In the order in which to read:

- `format`: the format, and what masks do to a network.
- `decision`: `compute_masks`, which chooses one of the ways below.
- `scores`, `selection`: how weights and channels are scored, and which of them stay.
- `single_weights`, `layer_channels`, `group_channels`: weights one by one, the output channels of each layer, and
  coupled channels in all layers that write them.
"""

from .decision import compute_masks, compute_masks_by_each
from .format import Masks, apply_masks_, count_weights, find_holders, flatten_masks, unflatten_masks, validate_masks
from .group_channels import find_group_gates, mask_group_channels_

__all__ = [
    "Masks",
    "apply_masks_",
    "compute_masks",
    "compute_masks_by_each",
    "count_weights",
    "find_group_gates",
    "find_holders",
    "flatten_masks",
    "mask_group_channels_",
    "unflatten_masks",
    "validate_masks",
]
