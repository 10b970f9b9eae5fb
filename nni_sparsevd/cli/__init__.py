"""The command line: `nni-sparsevd compress`, `report`, `check`, `export`, `predict`, and others."""

from .program import main

__all__ = ["main"]
