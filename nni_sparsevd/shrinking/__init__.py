"""Exact shrinking: from zeros in the weights to a smaller network that computes the same function."""

from .apply import apply_plan_
from .comparison import TOLERANCE_32, CheckResult, check, gradient_difference, random_like
from .fusion import fuse
from .layer_norm import RememberingLayerNorm
from .mask_extension import extend_masks
from .plan import GroupPlan, Plan, make_plan, plan_of
from .shrink_copy import shrink, shrink_masked
from .shrink_in_place import shrink_
from .sizes import Attributes, attributes, differences, resize_

__all__ = [
    "TOLERANCE_32",
    "Attributes",
    "CheckResult",
    "GroupPlan",
    "Plan",
    "RememberingLayerNorm",
    "apply_plan_",
    "attributes",
    "check",
    "differences",
    "extend_masks",
    "fuse",
    "gradient_difference",
    "make_plan",
    "plan_of",
    "random_like",
    "resize_",
    "shrink",
    "shrink_",
    "shrink_masked",
]
