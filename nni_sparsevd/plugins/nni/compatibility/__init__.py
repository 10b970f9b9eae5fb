"""NNI 3.0 on today's PyTorch, without a fork: `enable()` applies each repair that the installed versions need."""

from . import lightning, settings, speedup, transformers  # noqa: F401  each enters its repairs in the table
from .repairs import REPAIRS, Repair, addition, disable, enable, enable_once

__all__ = ["REPAIRS", "Repair", "addition", "disable", "enable", "enable_once"]
