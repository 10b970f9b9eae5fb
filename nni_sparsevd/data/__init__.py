"""Images and their labels."""

from .datasets import DataSets, Split, augmented, laid_out, load

__all__ = ["DataSets", "Split", "augmented", "laid_out", "load"]
