"""Images and their labels."""

from .datasets import DataSets, Split, augment, load_data, to_memory_format

__all__ = ["DataSets", "Split", "augment", "load_data", "to_memory_format"]
