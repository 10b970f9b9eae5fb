"""The command line: `nni-sparsevd compress | report | check | export | predict | list-models | zoo | reproduce | bench`."""

from .program import main

__all__ = ["main"]
