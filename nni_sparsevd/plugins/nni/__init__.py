"""Sparse VD for NNI 3.0, which this import also makes work on today's PyTorch: `enable()`, undone by `disable()`."""

import nni.compression.pruning

from ...regularize import SparseVDSettings
from .compatibility import disable, enable
from .exact import ExactSpeedup, save_masks
from .graph import trace
from .posteriors import register_apply_methods
from .pruner import SparseVDPruner

__all__ = ["ExactSpeedup", "SparseVDPruner", "SparseVDSettings", "disable", "enable", "save_masks", "trace"]

enable()
register_apply_methods()
nni.compression.pruning.SparseVDPruner = SparseVDPruner  # found where NNI's own pruners are found
