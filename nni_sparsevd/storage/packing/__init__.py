"""Sparse tensors in few bytes: positions near their entropy, values as exact as asked for."""

from .tensors import pack, unpack
from .values import CODINGS, Coding

__all__ = ["CODINGS", "Coding", "pack", "unpack"]
