"""Sparse VD for Torch-Pruning: another importance for all its pruners, and a pruner that decides by itself."""

from ..settings import SparseVD
from .budget import Budget
from .cutting import register
from .importance import SparseVDImportance
from .pruner import SparseVDPruner

__all__ = ["Budget", "SparseVD", "SparseVDImportance", "SparseVDPruner"]

register()
