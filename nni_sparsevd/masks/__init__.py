"""The decision, as data."""

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
