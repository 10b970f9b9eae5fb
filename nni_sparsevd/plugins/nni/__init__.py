"""Sparse VD for NNI 3.0: a pruner, an exact speedup, and repairs that make NNI work on today's PyTorch.

Importing this package changes nothing in NNI.  The first `SparseVDPruner` applies the repairs, or an explicit
`enable()`; `disable()` undoes them.
"""

from ...regularize import SparseVDSettings
from .compatibility import disable, enable
from .exact import ExactSpeedup, save_masks
from .graph import trace
from .pruner import SparseVDPruner

__all__ = ["ExactSpeedup", "SparseVDPruner", "SparseVDSettings", "disable", "enable", "save_masks", "trace"]
