"""`sparsify_` and `bake_`: ordinary layers learn a posterior, and become ordinary again."""

from .conversion import bake_, remove_posteriors_, sparsify_
from .gating import attach_gate_, find_gateable_groups
from .passed_over import find_passed_over
from .selection import check_patterns, find_kl_weight, settle_estimator

__all__ = [
    "attach_gate_",
    "bake_",
    "check_patterns",
    "find_gateable_groups",
    "find_kl_weight",
    "find_passed_over",
    "remove_posteriors_",
    "settle_estimator",
    "sparsify_",
]
