"""Sparse VD for Torch-Pruning: another importance for all its pruners, and a pruner that decides by itself.

Importing this package changes nothing in Torch-Pruning. What it must cut along with weights it learns from `enable`,
which our classes call when they are used, and forgets with `disable`. In the order in which to read:

- `importance`: `SparseVDImportance`, the score of each channel of a coupled group.
- `pruner`: `SparseVDPruner`, with `options` (its arguments), `scored_group` (which channels go at a cutoff) and
  `attention` (heads, and the sizes that attention modules remember).
- `cutting`, `counting`: what Torch-Pruning must cut along with weights, and must not count.
"""

from ...regularize import Budget, SparseVDSettings
from .cutting import disable, enable
from .importance import SparseVDImportance
from .pruner import SparseVDPruner

__all__ = ["Budget", "SparseVDImportance", "SparseVDPruner", "SparseVDSettings", "disable", "enable"]
