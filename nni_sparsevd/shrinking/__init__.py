"""Exact shrinking: from zeros in the weights to a smaller network that computes the same function."""

from .apply import apply_plan, apply_plan_
from .comparison import TOLERANCE_32, CheckResult, check
from .drawing import batch_sizes, draw_inputs
from .fusion import fuse
from .gradients import gradient_difference
from .layer_norm import RememberingLayerNorm
from .mask_extension import extend_masks
from .padded_norm import PaddedNorm, pad_norm_
from .plan import GroupPlan, Plan
from .planning import make_plan, plan_removal
from .resizing import (
    Attributes,
    read_attributes,
    read_changed_attributes,
    resize_,
    set_possible_attributes_,
    split_attributes,
)
from .running import to_type
from .shrink_copy import shrink, shrink_masked
from .shrink_in_place import shrink_
from .variants import Variant, VariantSearch

__all__ = [
    "TOLERANCE_32",
    "Attributes",
    "CheckResult",
    "GroupPlan",
    "PaddedNorm",
    "Plan",
    "RememberingLayerNorm",
    "Variant",
    "VariantSearch",
    "apply_plan",
    "apply_plan_",
    "batch_sizes",
    "check",
    "draw_inputs",
    "extend_masks",
    "fuse",
    "gradient_difference",
    "make_plan",
    "pad_norm_",
    "plan_removal",
    "read_attributes",
    "read_changed_attributes",
    "resize_",
    "set_possible_attributes_",
    "shrink",
    "shrink_",
    "shrink_masked",
    "split_attributes",
    "to_type",
]
