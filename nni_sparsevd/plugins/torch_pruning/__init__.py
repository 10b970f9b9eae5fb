"""Sparse VD for Torch-Pruning: another importance for all its pruners, and a pruner that decides by itself.

Importing this package changes nothing in Torch-Pruning. What it must cut along with weights it learns from `enable`,
which our classes call when they are used, and forgets with `disable`.
"""

from ...regularize import Budget, SparseVDSettings
from .cutting import disable, enable
from .importance import SparseVDImportance
from .pruner import SparseVDPruner

__all__ = ["Budget", "SparseVDImportance", "SparseVDPruner", "SparseVDSettings", "disable", "enable"]
