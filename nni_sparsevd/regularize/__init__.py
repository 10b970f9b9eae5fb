"""What drives the KL in any training loop: the regularizer, the optimizer of the variances, the budget."""

from .budget import Arrival, Budget, Controller, best_cutoff, copy_with_map, cost_of, weigh_by_macs_
from .regularizer import Regularizer, samples_of
from .settings import SparseVDSettings
from .variances import Rated, Variances

__all__ = [
    "Arrival",
    "Budget",
    "Controller",
    "Rated",
    "Regularizer",
    "SparseVDSettings",
    "Variances",
    "best_cutoff",
    "copy_with_map",
    "cost_of",
    "samples_of",
    "weigh_by_macs_",
]
