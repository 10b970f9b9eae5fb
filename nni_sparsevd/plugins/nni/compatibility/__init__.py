"""NNI 3.0 on today's PyTorch, without a fork: `enable()` applies each repair that the installed versions need."""

from . import lightning, speedup, transformers  # noqa: F401  enter their repairs
from .repairs import REPAIRS, Repair, disable, enable

__all__ = ["REPAIRS", "Repair", "disable", "enable"]
