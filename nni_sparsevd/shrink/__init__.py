"""Exact shrinking: from zeros in the weights to a smaller network that computes the same function."""

from .apply import apply_plan_
from .check import TOLERANCE_32, CheckResult, check, gradient_difference, random_like
from .fuse import fuse
from .learning import shrink_
from .norm import RememberingLayerNorm
from .plan import GroupPlan, Plan, make_plan, plan_of
from .randomise import randomise_, settle_
from .shrink import shrink, shrink_masked
from .silence import silenced
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
    "fuse",
    "gradient_difference",
    "make_plan",
    "plan_of",
    "random_like",
    "randomise_",
    "resize_",
    "settle_",
    "shrink",
    "shrink_",
    "shrink_masked",
    "silenced",
]
