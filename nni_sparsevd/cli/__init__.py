"""The command line: `nni-sparsevd compress | report | check | export | list-models | zoo | reproduce | bench`."""

from .program import main

__all__ = ["main"]
