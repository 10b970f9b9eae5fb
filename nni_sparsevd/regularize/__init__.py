"""What drives the KL in any training loop: its weight and gradient, the optimizer of the variances, the budget.

Two classes do all of it in a loop of the user's own, and are the place to begin: `Regularizer`, which makes weights or
channels noisy that the loss does not need, and `GradualPruner`, which meets a budget.  Below them:

- The objective: `objective` (mean loss + weight * KL), `settings` (the weight and its warm-up), `variances` (Adam for
  log sigma^2), `weighing` (a larger KL for what costs more), `step_hooks`, `first_step` (warnings).
- A budget that is met in one cut: `budget` finds the cut, `controller` presses the KL towards it.
- A budget that is met gradually: `cut_schedule` says when channels leave and how many, `removal` which ones,
  `gradual_removal` removes them, `natural` moves the variances of their gates, `reach` tells what can be met at all.
- `costs`: multiply-accumulates and weights, by layer and by gate.
"""

from .budget import Arrival, Budget, BudgetSearch, Cost, misses
from .controller import Controller, regularize_under_pressure_
from .costs import count_gate_costs
from .cut_schedule import cost_left_at, count_steps_needed, plan_stretches
from .first_step import have_learned, warn_before_first_step, warn_of_half_precision
from .gradual_pruner import GradualPruner
from .gradual_removal import GradualRemoval
from .natural import start_natural_steps_, take_natural_steps_
from .objective import add_kl_to_loss, kl_weight_now
from .reach import Reach, measure_reach
from .regularizer import Regularizer, count_samples
from .removal import choose_cutoffs, use_cutoffs_
from .settings import SparseVDSettings, settings_or_defaults
from .step_hooks import read_loss_scale
from .variances import RateGroups, VarianceOptimizer
from .weighing import weigh_by_macs_

__all__ = [
    "Arrival",
    "Budget",
    "BudgetSearch",
    "Controller",
    "Cost",
    "GradualPruner",
    "GradualRemoval",
    "RateGroups",
    "Reach",
    "Regularizer",
    "SparseVDSettings",
    "VarianceOptimizer",
    "add_kl_to_loss",
    "choose_cutoffs",
    "cost_left_at",
    "count_gate_costs",
    "count_samples",
    "count_steps_needed",
    "have_learned",
    "kl_weight_now",
    "measure_reach",
    "misses",
    "plan_stretches",
    "read_loss_scale",
    "regularize_under_pressure_",
    "settings_or_defaults",
    "start_natural_steps_",
    "take_natural_steps_",
    "use_cutoffs_",
    "warn_before_first_step",
    "warn_of_half_precision",
    "weigh_by_macs_",
]
