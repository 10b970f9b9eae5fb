"""Exact shrinking: from zeros in the weights to a smaller network that computes the same function."""

from .check import CheckResult, check
from .plan import GroupPlan, Plan, make_plan
from .randomise import randomise_
from .shrink import shrink, shrink_masked
from .silence import silenced

__all__ = [
    "CheckResult",
    "GroupPlan",
    "Plan",
    "check",
    "make_plan",
    "randomise_",
    "shrink",
    "shrink_masked",
    "silenced",
]
