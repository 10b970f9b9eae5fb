"""Sparse VD for Torch-Pruning: another importance for all its pruners, and a pruner that decides by itself."""

from ...regularize import Budget, SparseVDSettings
from .cutting import register
from .importance import SparseVDImportance
from .pruner import SparseVDPruner

__all__ = ["Budget", "SparseVDImportance", "SparseVDPruner", "SparseVDSettings"]

register()
