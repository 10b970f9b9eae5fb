"""Exact shrinking: from zeros in the weights to a smaller network that computes the same function.

`shrink` (in `shrink_copy`) takes these steps, which is also the order in which to read the files:

1. *Constants.*  What does every channel carry: a constant, or something that depends on the input?  (`constants`; at
   several input sizes, `agreement`)
2. *Readings.*  What does every reader take of each channel: nothing, a constant that its bias can absorb, or more?
   (`readings`)
3. *Removal.*  Which is the largest set of channels that nothing kept needs?  One channel may carry the constants of
   others (`removal`, `carriers`).
4. *Plan.*  The cuts, folded constants and sizes, and an account of each group (`planning`, `plan`, `plan_parts`,
   `group_plans`, `held_members`); saved to a file and checked against a network (`plan_file`, `plan_fit`).
5. *Apply.*  The plan is carried out on a copy (`apply`); norms that lose channels remember them (`layer_norm`,
   `padded_norm`).
6. *Check.*  Both networks are run on random inputs and compared (`comparison`, `variants`, `drawing`, `running`).

Beside that, `shrink_in_place` does the same to a network that is still learning, `mask_extension` prepares masks,
`fusion` folds batch norms, `resizing` stores and restores sizes, and `gradients` compares gradients.

docs/shrinking.md explains each step with examples.  The words are those of `nni_sparsevd.graph`; a channel is **dead**
if it carries a constant, and **unread** if no kept output takes anything from it.
"""

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
